"""The bias of the best of many noisy scores."""

import math

import numpy as np
import pytest
from scipy import stats

from prunesearch.analysis.selection_bias import (
    expected_bias,
    expected_maximum,
    mean_bias,
    selection_bias,
    true_spread,
)


def test_the_mean_of_the_largest_of_n() -> None:
    assert expected_maximum(1) == 0.0
    assert expected_maximum(2) == pytest.approx(1 / math.sqrt(math.pi))
    assert expected_maximum(3) == pytest.approx(1.5 / math.sqrt(math.pi))
    assert expected_maximum(100) == pytest.approx(2.50759, abs=1e-5)
    assert expected_maximum(100_000) == pytest.approx(4.3845, abs=1e-3)


def test_the_expected_bias_is_that_of_a_simulation() -> None:
    rng = np.random.default_rng(0)
    true = 0.5 * rng.normal(size=(4000, 50))
    scores = true + 0.3 * rng.normal(size=true.shape)
    best = scores.argmax(axis=1)
    rows = np.arange(4000)
    bias = scores[rows, best] - true[rows, best]
    assert expected_bias(50, 0.3, 0.5) == pytest.approx(bias.mean(), abs=4 * stats.sem(bias))
    assert true_spread(scores.ravel(), 0.3) == pytest.approx(0.5, abs=0.01)
    assert expected_bias(1, 0.3) == 0.0 and expected_bias(10, 0.0) == 0.0
    assert true_spread([1.0, 1.1], 5.0) == 0.0


def test_a_winner_on_fresh_data() -> None:
    found = selection_bias(0.5, 0.03, 0.6, 0.04)
    assert (found.bias, found.stderr) == pytest.approx((0.1, 0.05))
    assert (found.low, found.high) == pytest.approx((0.1 - 0.098, 0.1 + 0.098), abs=1e-4)
    assert math.isnan(selection_bias(0.5, None, 0.6, 0.04).stderr)


def test_the_mean_bias_of_several_searches() -> None:
    found = mean_bias([0.1, 0.2, 0.3])
    low, high = stats.t.interval(0.95, 2, loc=0.2, scale=stats.sem([0.1, 0.2, 0.3]))
    assert (found.mean, found.low, found.high) == pytest.approx((0.2, low, high))
    assert math.isnan(mean_bias([0.1]).stderr)
