"""The best value so far after each evaluation, and its mean over searches."""

import math

import numpy as np
import pytest
from scipy import stats

from prunesearch.analysis.anytime import best_places, best_so_far, mean_curve
from prunesearch.analysis.intervals import half_width


def test_the_best_so_far_ignores_what_is_not_finite() -> None:
    losses = [math.nan, 3.0, -math.inf, 4.0, 1.0, math.inf]
    assert best_so_far(losses).tolist() == [math.inf, 3.0, 3.0, 3.0, 1.0, 1.0]
    assert best_so_far([]).tolist() == []


def test_the_place_of_the_best_is_that_of_the_first_of_equal_losses() -> None:
    assert best_places([math.nan, 3.0, 3.0, 4.0, 1.0]).tolist() == [-1, 1, 1, 1, 4]


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
