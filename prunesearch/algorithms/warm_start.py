"""Prior knowledge from another search of the same model.

What dropping a unit costs, and a pair of near units, carries over to another objective, another
number of units and another seed, up to a monotone change of the loss. So the trials of a finished
search give estimates of these effects, and a new search uses them in three ways: its first subsets
are those that the estimates favour, the subsets after them are drawn by the estimated costs of the
units, and the estimate of a subset is a feature of the surrogate. The evidence of the new search
decides how far the feature is trusted.

The estimates are the posterior means of a Bayesian linear regression (C. E. Rasmussen and C. K. I.
Williams, "Gaussian Processes for Machine Learning", MIT Press 2006, eq. 2.12, and eq. 5.8 for the
evidence that chooses its variances):

    score(x) = c + sum_i u_i x_i + sum_d sum_i p_{d,i} x_i x_{i+d} + noise,   d = 1 to 4
"""

import itertools
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from prunesearch.algorithms.gaussian_process import normal_scores
from prunesearch.algorithms.operators import Counts, Mask, Real
from prunesearch.algorithms.surrogate import Ranking

FEWEST = 12
"""Smallest number of trials that effects are estimated from."""
_LARGEST = 512  # largest number of them, the best ones
_REACH = 4  # largest distance d of a pair
_CONSTANT = 4.0  # variance of c
# Variance of the pairs at distance 1 relative to that of the units, and variance of the noise.
_GRID = tuple(itertools.product((0.02, 0.1, 0.3), (0.03, 0.1, 0.3, 1.0)))
_FADE = 0.9  # variance of the pairs at distance d + 1 relative to those at d
_DIGITS = 6  # digits of a stored effect after the point
_STARTS = 12  # descents in search of the best subsets
_FIRST = 3
"""Subsets that a search begins with."""


class StoredEffects(TypedDict):
    """Effects as JSON values, rounded."""

    units: list[float]
    pairs: list[list[float]]


@dataclass(frozen=True)
class Effects:
    """Estimated effects on the normal score of a loss.

    Attributes:
        unit_D: effect u of dropping each unit.
        pair_RD: effect p of dropping both units of a pair: row d - 1 has those of i and i + d.
    """

    unit_D: Real
    pair_RD: Real

    def stored(self) -> "StoredEffects":
        """Return the effects as they are stored in a study, rounded."""
        pairs = [np.round(pair_D, _DIGITS).tolist() for pair_D in self.pair_RD]
        return {"units": np.round(self.unit_D, _DIGITS).tolist(), "pairs": pairs}

    @classmethod
    def of_stored(cls, stored: "StoredEffects") -> "Effects":
        """Return the effects that a study has stored."""
        return cls(np.array(stored["units"]), np.array(stored["pairs"]))

    def of_units(self, X_MD: Mask) -> Real:
        """Return the sum of the effects of a subset's units, shape (M,)."""
        return np.asarray(X_MD @ self.unit_D)

    def of_subsets(self, X_MD: Mask) -> Real:
        """Return the estimate of each subset, shape (M,)."""
        return np.asarray(self.of_units(X_MD) + _pairs(X_MD) @ _flat(self.pair_RD))

    def matrix(self) -> Real:
        """Return the effects of the pairs as a symmetric matrix, shape (D, D)."""
        units = self.unit_D.size
        pair_DD = np.zeros((units, units))
        for d, pair_D in enumerate(self.pair_RD, start=1):
            rows = np.arange(units - d)
            pair_DD[rows, rows + d] = pair_DD[rows + d, rows] = pair_D[: units - d]
        return pair_DD


def estimate(X_ND: Mask, loss_N: Real) -> Effects:
    """Estimate the effects from the trials of a search.

    Args:
        X_ND: subsets that were evaluated, of any sizes.
        loss_N: their losses; smaller is better.
    """
    best_N = np.sort(np.argsort(loss_N, kind="stable")[:_LARGEST])
    X_ND, score_N = X_ND[best_N], normal_scores(loss_N[best_N])
    # 1. The covariance of the scores, by groups of features.
    units = X_ND.shape[1]
    size = float(max(1.0, X_ND.sum(1).mean()))
    unit_NF, pair_NF = X_ND.astype(float), _pairs(X_ND)
    fade_F = np.repeat(_FADE ** np.arange(_REACH), [units - d for d in range(1, _REACH + 1)])
    unit_NN = unit_NF @ unit_NF.T / size + _CONSTANT
    pair_NN = (pair_NF * fade_F) @ pair_NF.T
    # 2. The variances with the largest evidence; the overall variance is integrated out.
    best, chosen = -np.inf, (_GRID[0], np.zeros(len(score_N)))
    for share, noise in _GRID:
        kernel_NN = unit_NN + share * pair_NN + noise * np.eye(len(score_N))
        root_NN = np.linalg.cholesky(kernel_NN)
        alpha_N = np.linalg.solve(kernel_NN, score_N)
        fit = max(float(score_N @ alpha_N) / score_N.size, 1e-12)
        evidence = -0.5 * score_N.size * np.log(fit) - np.log(np.diag(root_NN)).sum()
        if evidence > best:
            best, chosen = float(evidence), ((share, noise), alpha_N)
    # 3. The posterior means of the weights.
    (share, _), alpha_N = chosen
    pair_F = share * fade_F * (pair_NF.T @ alpha_N)
    pair_RD = np.zeros((_REACH, units))
    start = 0
    for d in range(1, _REACH + 1):
        pair_RD[d - 1, : units - d] = pair_F[start : start + units - d]
        start += units - d
    return Effects(unit_NF.T @ alpha_N / size, pair_RD)


@dataclass(frozen=True)
class WarmStart(Ranking):
    """Prior ranking of the units from another search, which also knows pairs.

    Attributes:
        effects: the estimated effects. `harm_D` is the exponential of those of the units.
    """

    effects: Effects

    @classmethod
    def of(cls, effects: Effects) -> "WarmStart":
        """Return the prior ranking that estimated effects give."""
        return cls(np.exp(effects.unit_D), effects)

    def features(self, X_MD: Mask) -> Real:
        """Return two features of a subset, shape (M, 2): its estimate, and the part of the units.

        Both have about unit scale.
        """
        unit_D = self.effects.unit_D
        spread = float(unit_D.std()) or 1.0
        size_M = np.maximum(X_MD.sum(1), 1)
        center_M = size_M * unit_D.mean()
        both_M2 = np.stack([self.effects.of_subsets(X_MD), self.effects.of_units(X_MD)], axis=1)
        scale_M = spread * np.sqrt(size_M)
        return np.asarray((both_M2 - center_M[:, None]) / scale_M[:, None])

    def favourites(self, free_D: Mask, size: int, rng: np.random.Generator) -> list[Mask]:
        """Return the subsets of one size with the best estimates that descents find, best first.

        Args:
            free_D: units that may be chosen.
            size: number of chosen units.
            rng: random generator.
        """
        pair_DD = self.effects.matrix()
        found: dict[bytes, tuple[float, Mask]] = {}
        for start in range(_STARTS):
            # The first descent starts at the cheapest units, the others anywhere.
            order_D = np.where(free_D, rng.random(free_D.size), np.inf)
            if start == 0:
                order_D = np.where(free_D, self.effects.unit_D, np.inf)
            X_D = np.zeros(free_D.size, dtype=np.bool_)
            X_D[np.argsort(order_D, kind="stable")[:size]] = True
            X_D = _descent(X_D, free_D, self.effects.unit_D, pair_DD)
            value = round(float(self.effects.of_subsets(X_D[None])[0]), 9)
            found[X_D.tobytes()] = (value, X_D)
        ordered = sorted(found.values(), key=lambda pair: (pair[0], pair[1].tobytes()))
        return [X_D for _, X_D in ordered[:_FIRST]]


def _descent(X_D: Mask, free_D: Mask, unit_D: Real, pair_DD: Real) -> Mask:
    """Take the best swap as long as there is a better one."""
    X_D = X_D.copy()
    while True:
        # A swap that gives up i and takes j changes the estimate by s_j - s_i - p_ij, with s the
        # slopes.
        slope_D = unit_D + pair_DD @ X_D
        chosen: Counts = np.flatnonzero(X_D)
        spare: Counts = np.flatnonzero(free_D & ~X_D)
        if not spare.size:
            return X_D
        change = slope_D[spare][None] - slope_D[chosen][:, None] - pair_DD[np.ix_(chosen, spare)]
        out, into = divmod(int(np.argmin(change)), spare.size)
        if change[out, into] > -1e-9:
            return X_D
        X_D[chosen[out]], X_D[spare[into]] = False, True


def _pairs(X_MD: Mask) -> Real:
    """Return the products of the pairs by distance, shape (M, number of pairs)."""
    A_MD = X_MD.astype(float)
    parts = []
    for d in range(1, _REACH + 1):
        parts.append(A_MD[:, :-d] * A_MD[:, d:])
    return np.concatenate(parts, axis=1)


def _flat(pair_RD: Real) -> Real:
    """Return the effects of the pairs in the order of `_pairs`."""
    units = pair_RD.shape[1]
    parts = [pair_RD[d - 1, : units - d] for d in range(1, _REACH + 1)]
    return np.concatenate(parts)
