"""A surrogate on real vectors: an additive trend, and radial basis functions for the rest.

    f(u) = sum_d g_d(u_d) + r(u)

Each g_d is a parabola plus a few cosines. Their coefficients come from ridge regression, whose
penalty minimises the generalised cross-validation (G. H. Golub, M. Heath and G. Wahba,
Technometrics 21(2), 1979). Cosines of a high frequency are penalised more, so g_d is smooth. The
rest r is interpolated by cubic radial basis functions with a linear tail (`scipy.interpolate`), as
in R. G. Regis, "Particle swarm with radial basis function surrogates for expensive black-box
optimization", J. Comput. Sci. 5(1), 2014. A trend helps where coordinates matter apart from each
other, which interpolation alone learns slowly in many dimensions.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.interpolate import RBFInterpolator

from prunesearch.algorithms.operators import Real

Interpolant = Callable[[Real], Real]
_PENALTIES = 10.0 ** np.arange(-8.0, 2.0)  # of the ridge regression, as shares of the largest one
_LEAST_SHARE = 0.02  # share of the variance that a trend must predict, to be used
_TINY = 1e-300
_DIGITS = 12  # points that agree in this number of decimals are one point


class AdditiveTrend:
    """The sum of one smooth function per coordinate.

    Args:
        u_ND: points; the trend expects coordinates around [-1, 1].
        value_N: their values.
        waves: number of cosines per coordinate; 0 for a parabola alone.

    Attributes:
        share: share of the variance that the trend predicts, by generalised cross-validation.
    """

    def __init__(self, u_ND: Real, value_N: Real, waves: int) -> None:
        self._waves, self._mean = waves, float(value_N.mean())
        feature_NF = self._features(u_ND)
        self._centre_F = feature_NF.mean(axis=0)
        feature_NF = feature_NF - self._centre_F
        rest_N = value_N - self._mean
        variance = float(np.mean(rest_N**2))
        # Squared singular values and left singular vectors, from the smaller Gram matrix.
        if len(feature_NF) <= feature_NF.shape[1]:
            square_R, left_NR = np.linalg.eigh(feature_NF @ feature_NF.T)
        else:
            square_R, right_FR = np.linalg.eigh(feature_NF.T @ feature_NF)
            left_NR = feature_NF @ right_FR / np.sqrt(np.maximum(square_R, _TINY))
        square_R = np.maximum(square_R, 0.0)
        left_NR = left_NR * (square_R > 1e-13 * square_R[-1])
        part_R = left_NR.T @ rest_N
        unexplained = max(variance * value_N.size - float(part_R @ part_R), 0.0)
        # Choose the penalty with the least generalised cross-validation.
        error, penalty = np.inf, 1.0
        for tried in max(float(square_R[-1]), _TINY) * _PENALTIES:
            kept_R = square_R / (square_R + tried)
            left = max(1.0 - (float(kept_R.sum()) + 1.0) / value_N.size, 1e-3)
            squares = float((((1.0 - kept_R) * part_R) ** 2).sum()) + unexplained
            if squares / value_N.size / left**2 < error:
                error, penalty = squares / value_N.size / left**2, tried
        self.share = 1.0 - error / max(variance, _TINY)
        self._weight_F = feature_NF.T @ (left_NR @ (part_R / (square_R + penalty)))
        if self.share < _LEAST_SHARE:
            self._weight_F = np.zeros_like(self._weight_F)

    def __call__(self, u_MD: Real) -> Real:
        """Return the trend at some points."""
        return np.asarray(self._mean + (self._features(u_MD) - self._centre_F) @ self._weight_F)

    def effect(self, u_D: Real, reach: float) -> Real:
        """Return how much the trend changes along each coordinate within `reach` of a point."""
        below_D, here_D, above_D = self._parts(np.stack([u_D - reach, u_D, u_D + reach]))
        curved_D = np.abs(above_D - 2.0 * here_D + below_D)
        return np.asarray(curved_D + 0.5 * np.abs(above_D - below_D))

    def _parts(self, u_MD: Real) -> Real:
        """Return the functions of the single coordinates, shape (M, D)."""
        weighed_MF = self._features(u_MD) * self._weight_F
        return np.asarray(weighed_MF.reshape(len(u_MD), -1, u_MD.shape[1]).sum(axis=1))

    def _features(self, u_MD: Real) -> Real:
        """Return the features: linear, quadratic, and cosines that shrink with their
        frequency.
        """
        columns = [u_MD, u_MD**2 - 1.0 / 3.0]
        for wave in range(1, self._waves + 1):
            columns.append(np.cos(np.pi / 2.0 * wave * (u_MD + 1.0)) / wave**1.5)
        return np.concatenate(columns, axis=1)


class VectorSurrogate:
    """The fitted surrogate.

    Args:
        u_ND: points that were evaluated, with coordinates around [-1, 1].
        value_N: their values.
        waves: number of cosines of the trend.
        smoothing: how far the radial basis functions may deviate from the values; 0 to interpolate.
        trend: a trend that was fitted to the same points; None to fit one.
    """

    def __init__(
        self,
        u_ND: Real,
        value_N: Real,
        *,
        waves: int,
        smoothing: float,
        trend: AdditiveTrend | None = None,
    ) -> None:
        u_ND, value_N = _distinct(u_ND, value_N)
        self.trend = AdditiveTrend(u_ND, value_N, waves) if trend is None else trend
        self._rest = _interpolate(u_ND, value_N - self.trend(u_ND), smoothing)

    def __call__(self, u_MD: Real) -> Real:
        """Return the predicted values of some points."""
        trend_M = self.trend(u_MD)
        if self._rest is None:
            return trend_M
        return np.asarray(trend_M + self._rest(u_MD))


def squashed(value_N: Real) -> Real:
    """Scale values so that the least becomes 0 and the median 1, and grow with the logarithm above.

    The scale of bad values says little about good ones. Infinite values become finite ones.
    """
    finite_N = value_N[np.isfinite(value_N)]
    if not finite_N.size:
        return np.zeros_like(value_N)
    clipped_N = np.clip(value_N, finite_N.min(), finite_N.max())
    # Halves, because the difference of two large numbers may be infinite.
    least, middle = clipped_N.min() / 2.0, float(np.median(clipped_N / 2.0))
    width = middle - least
    if width <= 0.0:
        width = max(float(clipped_N.max() / 2.0) - least, np.finfo(np.float64).tiny)
    with np.errstate(over="ignore"):
        share_N = np.minimum((clipped_N / 2.0 - least) / width, 1e300)
    return np.asarray(np.where(share_N <= 1.0, share_N, 1.0 + np.log(np.maximum(share_N, 1.0))))


def _distinct(u_ND: Real, value_N: Real) -> tuple[Real, Real]:
    """Return each point once, with the mean of its values."""
    rounded_ND = np.round(u_ND, _DIGITS)
    _, first, place_N = np.unique(rounded_ND, axis=0, return_index=True, return_inverse=True)
    place_N = place_N.ravel()
    mean_U = np.bincount(place_N, weights=value_N) / np.bincount(place_N)
    return u_ND[first], mean_U


def _interpolate(u_ND: Real, value_N: Real, smoothing: float) -> Interpolant | None:
    """Return radial basis functions through the values; None if the points allow none."""
    attempts: Sequence[tuple[str, int]] = (("cubic", 1), ("linear", 0))
    for kernel, degree in attempts:
        # A linear tail needs more points than coordinates.
        if degree == 1 and len(u_ND) < u_ND.shape[1] + 2:
            continue
        try:
            interpolant: Interpolant = RBFInterpolator(
                u_ND, value_N, kernel=kernel, degree=degree, smoothing=smoothing
            )
        except np.linalg.LinAlgError:
            continue  # the points lie in a plane
        return interpolant
    return None
