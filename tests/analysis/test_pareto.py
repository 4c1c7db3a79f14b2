"""Fronts and hypervolumes."""

import math

import numpy as np
import pytest
from optuna._hypervolume import compute_hypervolume

from prunesearch.analysis.pareto import (
    front_mask,
    hypervolume,
    hypervolume_history,
    reference_point,
)


def test_the_front_has_what_nothing_dominates() -> None:
    points = [(1.0, 3.0), (2.0, 2.0), (2.0, 2.0), (3.0, 2.0), (math.nan, 0.0), (3.0, 1.0)]
    assert front_mask(points).tolist() == [True, True, True, False, False, True]
    assert front_mask(np.zeros((0, 2))).tolist() == []


def test_a_volume_by_hand() -> None:
    # Rectangles of 3 x 1, 2 x 1 and 1 x 1.
    assert hypervolume([(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)], (4.0, 4.0)) == 6.0
    assert hypervolume([(5.0, 1.0)], (4.0, 4.0)) == 0.0
    assert hypervolume([(0.0, 0.0, 0.0)], (1.0, 2.0, 3.0)) == 6.0


@pytest.mark.parametrize("losses", [2, 3])
def test_volumes_and_histories_are_optunas(losses: int) -> None:
    points = np.random.default_rng(0).random((40, losses)).round(1)
    reference = np.full(losses, 0.9)
    history = hypervolume_history(points, reference)
    for count in range(1, 41):
        inside = points[:count][(points[:count] < reference).all(axis=1)]
        expected = compute_hypervolume(inside, reference) if len(inside) else 0.0
        assert hypervolume(points[:count], reference) == pytest.approx(expected)
        assert history[count - 1] == pytest.approx(expected)


def test_what_is_not_finite_adds_nothing() -> None:
    history = hypervolume_history([(math.nan, 0.0), (1.0, 1.0), (math.inf, 0.0)], (2.0, 2.0))
    assert history.tolist() == [0.0, 1.0, 1.0]


def test_a_reference_point_is_worse_than_all() -> None:
    assert reference_point([(1.0, 5.0), (3.0, 5.0), (math.nan, 9.0)]).tolist() == [3.2, 5.5]
