"""A Gaussian process in a trust region over subsets, which scans all swaps.

After X. Wan et al., "Think Global and Act Local: Bayesian Optimisation over High-Dimensional
Categorical and Mixed Search Spaces", ICML 2021 (CASMOPOLITAN): a Gaussian process with a kernel on
the number of differing variables, and a trust region around the best point that grows with
successes and shrinks with failures. Here a point is a subset, and distance counts swaps.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np
from scipy import linalg

from benchmarks.search_quality_parts.baselines.model_search import all_swaps, new_rows
from prunesearch.algorithms.constraints import Constraints
from prunesearch.algorithms.operators import Mask, Real

_EXPLORATION = 2.0  # standard deviations that are subtracted from the mean
_SUCCESSES, _FAILURES = 3, 10  # in a row, until the region grows or shrinks
_FACTOR = 1.5  # by which it does
_LARGEST = 8.0  # swaps
_SURE = 256  # subsets with the best means, whose deviations are computed
_GRID = tuple(
    itertools.product((0.0, 0.3, 0.6, 0.9), (2.0, 4.0, 8.0, 16.0), (0.01, 0.05, 0.2))
)  # share of the linear part, length scale in swaps, variance of the noise


@dataclass
class TrustRegion:
    """Proposes the subset with the lowest confidence bound within a few swaps of the best one.

    Attributes:
        constraints: constraints on the subsets.
    """

    constraints: Constraints
    _radius: float = 4.0
    _streak: int = 0  # successes in a row; failures if negative
    _scores: int = 0  # evaluations when the model was last fitted
    _setting: tuple[float, float, float] = (0.6, 4.0, 0.05)
    _best: float = field(default=np.inf)
    _started: int = 0  # evaluations before the region was last placed

    def propose(self, X_ND: Mask, score_N: Real, rng: np.random.Generator) -> Mask:
        """Return the next subset."""
        local_N = score_N[self._started :]
        if self._resized(local_N):
            # The region is empty: place it at a random subset.
            self._started, self._radius, self._streak = len(X_ND), 4.0, 0
            size = rng.integers(self.constraints.k_min, self.constraints.k_max + 1, size=1)
            return np.asarray(self.constraints.random_subsets(size, rng)[0])
        if len(X_ND) >= 1.25 * self._scores:
            self._setting = best_setting(X_ND, score_N)
            self._scores = len(X_ND)
        model = _Process(X_ND, score_N, self._setting)
        # Descend from the best subset, one swap after the other, up to the radius.
        center_D = X_ND[self._started + int(np.argmin(local_N))]
        here_D, found_D, least = center_D, center_D, np.inf
        for _ in range(max(1, int(self._radius))):
            Y_MD = all_swaps(here_D, self.constraints)
            Y_MD = Y_MD[new_rows(Y_MD, X_ND)]
            if not len(Y_MD):
                break
            row, bound = model.lowest(Y_MD)
            if bound >= least:
                break
            here_D = found_D = Y_MD[row]
            least = bound
        return np.asarray(found_D)

    def _resized(self, local_N: Real) -> bool:
        """Adapt the radius to the last evaluation.

        Returns:
            True if the region has shrunk to nothing.
        """
        if local_N.size < 2:
            return False
        improved = local_N[-1] < local_N[:-1].min()
        if improved:
            self._streak = max(self._streak, 0) + 1
        else:
            self._streak = min(self._streak, 0) - 1
        if self._streak == _SUCCESSES:
            self._radius, self._streak = min(self._radius * _FACTOR, _LARGEST), 0
        elif self._streak == -_FAILURES:
            self._radius, self._streak = self._radius / _FACTOR, 0
        return self._radius < 0.5


def best_setting(X_ND: Mask, score_N: Real) -> tuple[float, float, float]:
    """Return the setting of the kernel with the largest marginal likelihood.

    log p(y) = -1/2 y^T K^-1 y - 1/2 log det K + constant
    """
    setting, largest = _GRID[0], -np.inf
    for candidate in _GRID:
        kernel_NN = _kernel(X_ND, X_ND, candidate)
        kernel_NN[np.diag_indices(len(X_ND))] += candidate[2]
        root = linalg.cholesky(kernel_NN, lower=True)
        white_N = linalg.solve_triangular(root, score_N, lower=True)
        likelihood = -0.5 * white_N @ white_N - np.log(np.diag(root)).sum()
        if likelihood > largest:
            setting, largest = candidate, float(likelihood)
    return setting


def _kernel(X_ND: Mask, Y_MD: Mask, setting: tuple[float, float, float]) -> Real:
    """Return the covariances of subsets, shape (N, M).

    k(x, y) = a <x - m, y - m> / c + (1 - a) exp(-h(x, y) / l), with m the mean share of chosen
    units, c the mean squared length, and h the number of swaps between x and y.
    """
    linear, length, _ = setting
    X, Y = X_ND.astype(float), Y_MD.astype(float)
    share = float(X.mean())
    inner_NM = (X - share) @ (Y - share).T
    scale = max(share * (1 - share) * X.shape[1], 1e-9)
    swaps_NM = (X.sum(1)[:, None] + Y.sum(1)[None] - 2 * X @ Y.T) / 2
    return np.asarray(linear * inner_NM / scale + (1 - linear) * np.exp(-swaps_NM / length))


class _Process:
    """A Gaussian process on subsets."""

    def __init__(self, X_ND: Mask, score_N: Real, setting: tuple[float, float, float]) -> None:
        self._X_ND, self._setting = X_ND, setting
        kernel_NN = _kernel(X_ND, X_ND, setting)
        kernel_NN[np.diag_indices(len(X_ND))] += setting[2]
        self._root = linalg.cholesky(kernel_NN, lower=True)
        self._weight_N = linalg.cho_solve((self._root, True), score_N)

    def lowest(self, Y_MD: Mask) -> tuple[int, float]:
        """Return the row with the lowest confidence bound, and the bound.

        Deviations are computed for the rows with the best means only.
        """
        kernel_NM = _kernel(self._X_ND, Y_MD, self._setting)
        mean_M = self._weight_N @ kernel_NM
        rows = np.argsort(mean_M, kind="stable")[:_SURE]
        white_NM = linalg.solve_triangular(self._root, kernel_NM[:, rows], lower=True)
        # The linear part of a subset with itself is 1 on average.
        variance_M = np.maximum(1.0 - (white_NM**2).sum(0), 1e-9)
        bound_M = mean_M[rows] - _EXPLORATION * np.sqrt(variance_M)
        least = int(np.argmin(bound_M))
        return int(rows[least]), float(bound_M[least])
