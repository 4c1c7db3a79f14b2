"""The best value so far, by evaluations and by seconds."""

import math

import numpy as np
import pytest
from scipy import stats

from prunesearch.analysis.anytime import (
    Step,
    best_at_times,
    best_so_far,
    half_width,
    improvements,
    mean_curve,
)


def test_the_best_so_far_ignores_what_is_not_finite() -> None:
    losses = [math.nan, 3.0, -math.inf, 4.0, 1.0, math.inf]
    assert best_so_far(losses).tolist() == [math.inf, 3.0, 3.0, 3.0, 1.0, 1.0]
    assert best_so_far([]).tolist() == []


def test_improvements_are_steps() -> None:
    found = improvements([2.0, 2.0, math.nan, 1.0], [0.5, 1.0, 1.5, 2.0])
    assert found == [Step(1, 0.5, 2.0), Step(4, 2.0, 1.0)]


def test_the_best_at_a_time_counts_what_had_ended() -> None:
    # Evaluations of parallel workers end in another order than that of their numbers.
    found = best_at_times([3.0, 1.0, 2.0], [1.0, 9.0, 2.0], [0.5, 1.0, 2.5, 8.9, 9.0])
    assert found.tolist() == [math.inf, 3.0, 2.0, 2.0, 1.0]


def test_a_mean_curve_has_students_interval() -> None:
    curves = [[4.0, 2.0, 1.0], [6.0, 3.0], [5.0, 1.0, 0.5, 0.1]]
    found = mean_curve(curves)
    # The shortest search has two evaluations.
    assert found.evaluations == (1, 2) and found.searches == 3
    assert found.mean == pytest.approx((5.0, 2.0))
    assert found.stderr == pytest.approx((1 / math.sqrt(3),) * 2)
    low, high = stats.t.interval(0.95, 2, loc=5.0, scale=stats.sem([4.0, 6.0, 5.0]))
    assert (found.low[0], found.high[0]) == pytest.approx((low, high))


def test_one_search_has_no_error() -> None:
    found = mean_curve([np.array([2.0, 1.0])])
    assert found.mean == (2.0, 1.0) and np.isnan(found.stderr).all()
    assert math.isnan(half_width(1)) and half_width(3) == pytest.approx(4.30265, abs=1e-5)
