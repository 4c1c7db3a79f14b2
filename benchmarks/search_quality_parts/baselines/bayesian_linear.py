"""Bayesian linear regression on units and pairs, with Thompson sampling.

After R. Baptista and M. Poloczek, "Bayesian Optimization of Combinatorial Structures", ICML 2018
(BOCS): a second-order model, a draw from its posterior, and the subset that minimises the draw. The
prior is normal with one variance for units and one for pairs, chosen by the marginal likelihood, in
place of their horseshoe; the draw is minimised by descents over swaps.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from prunesearch.algorithms.constraints import Constraints
from prunesearch.algorithms.operators import Mask, Real

_STARTS = 4  # descents from random subsets, besides the one from the best subset
_GRID = tuple(itertools.product((0.03, 0.1, 0.3, 0.6), (0.02, 0.1, 0.3)))
"""Share of the variance that pairs explain, and variance of the noise."""


@dataclass
class BayesianLinear:
    """Proposes the subset that is best under a draw from the posterior of a quadratic function.

    Attributes:
        constraints: constraints on the subsets.
    """

    constraints: Constraints
    _fitted: int = 0  # evaluations when the variances were last chosen
    _setting: tuple[float, float] = _GRID[0]

    def propose(self, X_ND: Mask, score_N: Real, rng: np.random.Generator) -> Mask:
        """Return the next subset."""
        share = float(X_ND.mean())
        Z_ND = X_ND - share
        upper = np.triu_indices(Z_ND.shape[1], 1)
        feature_NF = np.concatenate([Z_ND, Z_ND[:, upper[0]] * Z_ND[:, upper[1]]], axis=1)
        units = Z_ND.shape[1]
        # Scale both groups of features, so that each has a mean squared length of 1.
        size_F = np.ones(feature_NF.shape[1])
        size_F[:units] = (feature_NF[:, :units] ** 2).sum(1).mean()
        size_F[units:] = (feature_NF[:, units:] ** 2).sum(1).mean()
        linear_NN = feature_NF[:, :units] @ feature_NF[:, :units].T / size_F[0]
        pairs_NN = feature_NF[:, units:] @ feature_NF[:, units:].T / size_F[-1]
        if len(X_ND) >= 1.25 * self._fitted:
            self._setting = _best_setting(linear_NN, pairs_NN, score_N)
            self._fitted = len(X_ND)
        pairs, noise = self._setting
        variance_F = np.where(np.arange(size_F.size) < units, 1 - pairs, pairs) / size_F
        # A draw from the posterior, by a draw from the prior that is corrected with the data
        # (J. T. Wilson et al., "Pathwise Conditioning of Gaussian Processes", JMLR 22, 2021, eq.
        # 24).
        prior_F = rng.standard_normal(size_F.size) * np.sqrt(variance_F)
        kernel_NN = (1 - pairs) * linear_NN + pairs * pairs_NN
        kernel_NN[np.diag_indices(len(X_ND))] += noise
        seen_N = feature_NF @ prior_F + rng.standard_normal(len(X_ND)) * np.sqrt(noise)
        weight_N = linalg.solve(kernel_NN, score_N - seen_N, assume_a="pos")
        drawn_F = prior_F + variance_F * (feature_NF.T @ weight_N)
        pair_DD = np.zeros((units, units))
        pair_DD[upper] = drawn_F[units:]
        draw = _Quadratic(drawn_F[:units], pair_DD + pair_DD.T, share)
        # The best of some descents.
        sizes = rng.integers(self.constraints.k_min, self.constraints.k_max + 1, size=_STARTS)
        starts_MD = self.constraints.random_subsets(sizes, rng)
        best_D, least = X_ND[0], np.inf
        for X_D in (X_ND[int(np.argmin(score_N))], *starts_MD):
            Y_D, value = draw.descent(X_D, self.constraints)
            if value < least:
                best_D, least = Y_D, value
        return np.asarray(best_D)


def _best_setting(linear_NN: Real, pairs_NN: Real, score_N: Real) -> tuple[float, float]:
    """Return the variances with the largest marginal likelihood."""
    setting, largest = _GRID[0], -np.inf
    for pairs, noise in _GRID:
        kernel_NN = (1 - pairs) * linear_NN + pairs * pairs_NN
        kernel_NN[np.diag_indices(len(score_N))] += noise
        root = linalg.cholesky(kernel_NN, lower=True)
        white_N = linalg.solve_triangular(root, score_N, lower=True)
        likelihood = -0.5 * white_N @ white_N - np.log(np.diag(root)).sum()
        if likelihood > largest:
            setting, largest = (pairs, noise), float(likelihood)
    return setting


@dataclass(frozen=True)
class _Quadratic:
    """The function c^T z + 1/2 z^T W z of z = x - share."""

    cost_D: Real
    pair_DD: Real
    share: float

    def descent(self, X_D: Mask, constraints: Constraints) -> tuple[Mask, float]:
        """Take the best swap as long as there is a better one; return the subset and its value."""
        X_D = X_D.copy()
        while True:
            # A swap that gives up i and takes j changes the value by g_j - g_i - W_ij.
            z_D = X_D - self.share
            slope_D = self.cost_D + self.pair_DD @ z_D
            chosen, spare = np.flatnonzero(X_D), np.flatnonzero(constraints.free_D & ~X_D)
            change_KS = slope_D[spare][None] - slope_D[chosen][:, None]
            change_KS = change_KS - self.pair_DD[np.ix_(chosen, spare)]
            place = int(np.argmin(change_KS))
            out, into = divmod(place, spare.size)
            gain, flips = float(change_KS.ravel()[place]), [chosen[out], spare[into]]
            # Where the size is free, a unit may be given up or taken alone.
            if chosen.size > constraints.k_min and -slope_D[chosen].max() < gain:
                gain, flips = -float(slope_D[chosen].max()), [chosen[slope_D[chosen].argmax()]]
            if chosen.size < constraints.k_max and slope_D[spare].min() < gain:
                gain, flips = float(slope_D[spare].min()), [spare[slope_D[spare].argmin()]]
            if gain >= -1e-12:
                value = self.cost_D @ z_D + 0.5 * z_D @ self.pair_DD @ z_D
                return X_D, float(value)
            X_D[flips] ^= True
