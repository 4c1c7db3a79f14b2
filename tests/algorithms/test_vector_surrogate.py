"""The surrogate on real vectors: its trend, its interpolation, and values of every kind."""

import warnings

import numpy as np
import pytest

from prunesearch.algorithms.vector_surrogate import AdditiveTrend, VectorSurrogate, squashed


def test_a_trend_learns_a_sum_of_single_coordinates_from_few_points() -> None:
    rng = np.random.default_rng(0)
    u_ND, new_MD = rng.uniform(-1, 1, (60, 8)), rng.uniform(-1, 1, (50, 8))
    weight_D = np.arange(1.0, 9.0)
    trend = AdditiveTrend(u_ND, u_ND**2 @ weight_D, 0)
    assert trend.share > 0.999
    np.testing.assert_allclose(trend(new_MD), new_MD**2 @ weight_D, atol=1e-3)
    effect_D = trend.effect(np.zeros(8), 0.5)
    np.testing.assert_allclose(effect_D / effect_D[0], weight_D, rtol=0.01)


def test_a_trend_without_signal_is_the_mean() -> None:
    rng = np.random.default_rng(1)
    value_N = rng.standard_normal(40)
    trend = AdditiveTrend(rng.uniform(-1, 1, (40, 6)), value_N, 8)
    if trend.share < 0.02:
        np.testing.assert_allclose(trend(rng.uniform(-1, 1, (5, 6))), value_N.mean())
    constant = AdditiveTrend(rng.uniform(-1, 1, (40, 6)), np.full(40, 3.0), 8)
    np.testing.assert_allclose(constant(rng.uniform(-1, 1, (5, 6))), 3.0)


def test_a_surrogate_interpolates_and_takes_the_mean_of_equal_points() -> None:
    rng = np.random.default_rng(2)
    u_ND = rng.uniform(-1, 1, (30, 3))
    value_N = np.sin(3 * u_ND).prod(axis=1)
    twice_ND, twice_N = np.concatenate([u_ND, u_ND[:1]]), np.append(value_N, value_N[0] + 2.0)
    surrogate = VectorSurrogate(twice_ND, twice_N, waves=4, smoothing=0.0)
    np.testing.assert_allclose(surrogate(u_ND[1:]), value_N[1:], atol=1e-6)
    np.testing.assert_allclose(surrogate(u_ND[:1]), value_N[0] + 1.0, atol=1e-6)


@pytest.mark.parametrize("points", [np.zeros((1, 4)), np.eye(4)[:3], np.tile(np.eye(4), (3, 1))])
def test_few_points_or_points_in_a_plane_are_enough(points: np.ndarray) -> None:
    value_N = np.arange(len(points), dtype=np.float64)
    surrogate = VectorSurrogate(points, value_N, waves=2, smoothing=1e-6)
    assert np.isfinite(surrogate(np.random.default_rng(0).random((5, 4)))).all()


def test_squashed_values_are_finite_and_keep_their_order() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for values in (
            [1.0, 2.0, 3.0, 100.0],
            [5.0, 5.0, 5.0],
            [5.0, 5.0, 5.0, 7.0],
            [np.inf, 1.0, 2.0, -np.inf],
            [np.inf, np.inf],
            [-1.7e308, 1.7e308, 0.0],
            [0.0, 0.0, 5e-324, 1.0],
        ):
            out_N = squashed(np.array(values))
            assert np.isfinite(out_N).all(), values
            order = np.argsort(values, kind="stable")
            assert (np.diff(out_N[order]) >= 0.0).all(), values
    np.testing.assert_allclose(squashed(np.array([1.0, 2.0, 3.0])), [0.0, 1.0, 1.0 + np.log(2.0)])
