"""Surrogate of the loss, fitted to the study's trials, that selects the proposals that are worth an
evaluation.

It is a Gaussian process over subsets. The effects of dropped blocks nearly add up on the log loss,
with an interaction of near blocks. So the covariance of two subsets S and T is a sum of
interpretable parts:

    k(S, T) = c0 + a1 |S n T| / K
            + a2 sum_d r^(d-1) pairs_d(S n T)
            + ar (sum_d q^(d-1) n_d(S) n_d(T) / K + triples(S n T) / 2)
            + af (c(S, T) / c)^2
            + a3 exp(-|S ^ T| / 2 l)
            + ap phi(S) . phi(T)

* a1: a weight of its own for each unit.
* a2: a weight for each pair of units at a distance d <= 4.
* ar: a weight for near pairs wherever they are, and one for each three in a row. A gap may cost
  less than its parts.
* af: a weight for each pair at any distance. With D units, c(S, T) = |S n T| - |S| |T| / D is what
  the subsets have in common beyond chance. Its square is the sum of the centred pairs' products,
  and c = K (1 - K / D) is its value for equal subsets.
* a3: anything else that is alike for like subsets.
* ap: how far a prior ranking of the units can be trusted.

`gaussian_process` has the posterior, and the evidence that chooses the amplitudes. The prior
ranking enters as a weighted feature, not as a fixed mean, so its influence falls with more
evidence.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from prunesearch.algorithms.gaussian_process import (
    Amplitudes,
    Flips,
    GaussianProcess,
    normal_scores,
)
from prunesearch.algorithms.operators import Counts, Mask, Real

_REACH = 4  # largest distance of a pair of units with a weight of its own
_CONSTANT, _RANKING = 4.0, 2.0  # c0, and ap of each prior feature
_ALIKE, _RADIUS = 0.3, 2.0  # a3, and l: subsets that differ in two units still resemble each other
_FADE = 0.7  # q
# a1, a2, r, ar and af: the evidence chooses among these, for a total variance that is integrated
# out. Pairs at any distance are tried with the best of the others.
_GRID = tuple(
    (a1, *a2_r, ar, 0.0)
    for a1, a2_r, ar in itertools.product(
        (1.0, 4.0), ((0.05, 0.5), (0.2, 0.9), (0.6, 0.5)), (0.0, 0.2)
    )
)
_FAR = (0.5, 2.0)  # af, where it is not 0


@dataclass(frozen=True)
class Ranking:
    """Prior ranking of the units: a positive harm of dropping each, on any scale."""

    harm_D: Real

    def features(self, X_MD: Mask) -> Real:
        """Return two features of a subset's harm, shape (M, 2): the sum of logs, and the log of the
        sum.

        Both have about unit scale.
        """
        log_D = np.log(self.harm_D)
        spread = float(log_D.std()) or 1.0
        size_M = np.maximum(X_MD.sum(1), 1)
        sum_M = (X_MD @ (log_D - log_D.mean())) / spread / np.sqrt(size_M)
        log_M = (
            np.log(np.maximum(X_MD @ self.harm_D, 1e-300) / size_M) - np.log(self.harm_D.mean())
        ) / spread
        return np.stack([sum_M, log_M], axis=1)


class Surrogate(GaussianProcess):
    """The fitted model of subsets.

    Args:
        X_ND: subsets that were evaluated.
        score_N: their normal scores, or losses with mean 0 and variance 1.
        ranking: a prior ranking of the units, or None.
        noise_N: variance of the noise of each score, in squared units of the scores; or None.
    """

    def __init__(
        self, X_ND: Mask, score_N: Real, ranking: Ranking | None, noise_N: Real | None = None
    ) -> None:
        self._ranking = ranking
        self._size = float(max(1.0, X_ND.sum(1).mean()))
        # What a subset has in common with itself beyond chance.
        self._usual = max(1.0 / X_ND.shape[1], self._size * (1.0 - self._size / X_ND.shape[1]))
        super().__init__(X_ND, score_N, noise_N)

    def _grid(self) -> Sequence[Amplitudes]:
        return _GRID

    def _refined(self, amplitudes: Amplitudes) -> Sequence[Amplitudes]:
        """Return the same amplitudes with pairs at any distance."""
        return [(*amplitudes[:-1], far) for far in _FAR]

    def _points(self, X_MD: Mask) -> Real:
        return X_MD.astype(np.float64)

    def _similarities(self, A_MP: Real, B_QP: Real) -> list[Real]:
        both_MQ, a_M1, b_Q = A_MP @ B_QP.T, A_MP.sum(1)[:, None], B_QP.sum(1)
        common_MQ = (both_MQ - a_M1 * (b_Q / A_MP.shape[1])) / self._usual
        alike_MQ = np.exp((both_MQ - 0.5 * (a_M1 + b_Q)) / _RADIUS)
        return [_ALIKE * alike_MQ, common_MQ**2]

    def _similar_shares(self, amplitudes: Amplitudes) -> list[float]:
        return [1.0, amplitudes[-1]]

    def _self_similarity(self, A_MP: Real) -> Real:
        size_M = A_MP.sum(1)
        common_M = (size_M - size_M**2 / A_MP.shape[1]) / self._usual
        return np.asarray(_ALIKE + self._amplitudes[-1] * common_M**2)

    def _flips(self, X_D: Mask, out_R: Counts, into_S: Counts) -> Flips:
        """Return how the covariances of a subset change with single units, without the features of
        the changed subsets.
        """
        s_D, T_QD = X_D.astype(np.float64), self._points_QP
        step_D = 1.0 - 2.0 * s_D  # 1 for a unit that joins, -1 for one that leaves
        # Units, pairs and triples. These features are 0 or 1, so the change of their variance is
        # that of their covariance with the subset of all units, which is added as a last row.
        all_TD = np.concatenate([T_QD, np.ones((1, s_D.size))])
        signed_TD = step_D * all_TD
        around_TD = self._shares_around(s_D * all_TD)
        own_D = around_TD[-1] * step_D
        # Likeness: the subset becomes more like some, and less like the others.
        both_Q1, size_Q1 = (T_QD @ s_D)[:, None], T_QD.sum(1, keepdims=True)
        size, D = float(s_D.sum()), s_D.size
        like_Q1 = _ALIKE * np.exp((both_Q1 - 0.5 * (size + size_Q1)) / _RADIUS)
        farther, nearer = np.expm1(-0.5 / _RADIUS), np.expm1(0.5 / _RADIUS)
        around_TD[:-1] -= (farther - nearer) * like_Q1
        change_QD = signed_TD[:-1] * around_TD[:-1]
        change_QD += like_Q1 * np.where(X_D, nearer, farther)
        # Counts of pairs, and the ranking.
        few_F, few_DF = self._few_features(X_D)
        change_QD += self._F_QF[:, -few_F.size :] @ (few_DF - few_F).T
        own_D += (few_DF**2 - few_F**2).sum(1)
        both_RS = (few_DF[out_R] - few_F) @ (few_DF[into_S] - few_F).T
        both_RS += _ALIKE * (np.exp(-1.0 / _RADIUS) - 2.0 * np.exp(-0.5 / _RADIUS) + 1.0)
        # Pairs at any distance: the squares of what the subsets have in common.
        far = self._amplitudes[-1]
        if far:
            common_Q1 = (both_Q1 - size_Q1 * size / D) / self._usual
            gain_QD = (signed_TD[:-1] - size_Q1 / D * step_D) / self._usual
            change_QD += far * gain_QD * (2.0 * common_Q1 + gain_QD)
            far /= self._usual**2
            now, then_D = size - size**2 / D, size + step_D - (size + step_D) ** 2 / D
            own_D += far * (then_D**2 - now**2)
            less, more = (size - 1.0) * (1.0 - size / D), size * (1.0 - (size + 1.0) / D)
            other = (size - 1.0) * (1.0 - (size + 1.0) / D)
            both_RS += far * (other**2 - less**2 - more**2 + now**2)
        (k_Q,), (own,) = self._covariance(X_D[None])
        return Flips(
            k_Q=k_Q,
            own=float(own),
            out_RQ=change_QD[:, out_R].T,
            into_SQ=change_QD[:, into_S].T,
            out_R=own_D[out_R],
            into_S=own_D[into_S],
            both_RS=both_RS,
        )

    def _shares_around(self, common_QD: Real) -> Real:
        """Return the variance of all that a unit takes part in: its own weight, and its pairs and
        triples with units of `common_QD`.
        """
        a1, a2, r, ar, _ = self._amplitudes
        share_DD = _pair_shares(common_QD.shape[1], a2, r)
        around_QD = common_QD @ share_DD + a1 / self._size
        if ar:
            next_QD = 0.5 * ar * common_QD[:, :-1] * common_QD[:, 1:]
            around_QD[:, :-2] += next_QD[:, 1:]
            around_QD[:, 2:] += next_QD[:, :-1]
            around_QD[:, 1:-1] += 0.5 * ar * common_QD[:, :-2] * common_QD[:, 2:]
        return around_QD

    def _few_features(self, X_D: Mask) -> tuple[Real, Real]:
        """Return the last features, which all units share: counts of pairs, and constant ones.

        Returns:
            Those of a subset, and those after each unit has changed sides.
        """
        s_D = X_D.astype(np.float64)
        counts, counts_D = [], []
        for distance in range(_REACH, 0, -1):
            weight = np.sqrt(_FADE ** (distance - 1) / self._size)
            beside_D = np.zeros(s_D.size)
            beside_D[:-distance] += s_D[distance:]
            beside_D[distance:] += s_D[:-distance]
            counts.append(weight * float(s_D[:-distance] @ s_D[distance:]))
            counts_D.append(counts[-1] + weight * (1.0 - 2.0 * s_D) * beside_D)
        always = np.sqrt(_CONSTANT)
        few_MF = np.concatenate(
            [
                np.array([[*counts, always]]),
                np.stack([*counts_D, np.full(s_D.size, always)], axis=1),
            ]
        )
        if self._ranking is not None:
            Y_MD = np.concatenate([X_D[None], X_D ^ np.eye(X_D.size, dtype=np.bool_)])
            ranked_MF = np.sqrt(_RANKING) * self._ranking.features(Y_MD)
            few_MF = np.concatenate([few_MF, ranked_MF], axis=1)
        few_MF = few_MF * self._scale_F[-few_MF.shape[1] :]
        return few_MF[0], few_MF[1:]

    def _features(self, X_MD: Mask) -> Real:
        """Return features in groups with one amplitude each: units, pairs by distance, runs, and
        constant ones.
        """
        D = X_MD.shape[1]
        ends = self._ends(D)
        F_MF = np.empty((len(X_MD), ends[-1]))
        F_MF[:, :D] = X_MD
        for distance in range(1, _REACH + 1):
            pairs = F_MF[:, ends[distance] : ends[distance + 1]]
            np.multiply(F_MF[:, : D - distance], F_MF[:, distance:D], out=pairs)
            F_MF[:, ends[-2] - distance] = np.sqrt(
                _FADE ** (distance - 1) / self._size
            ) * pairs.sum(1)
        run = ends[_REACH + 1]
        F_MF[:, run : run + D - 2] = np.sqrt(0.5) * F_MF[:, D : 2 * D - 2] * F_MF[:, 2:D]
        F_MF[:, ends[-2]] = np.sqrt(_CONSTANT)
        if self._ranking is not None:
            F_MF[:, ends[-2] + 1 :] = np.sqrt(_RANKING) * self._ranking.features(X_MD)
        return F_MF

    def _ends(self, units: int) -> list[int]:
        """Return the start of each group of features, and the end of the last."""
        return _ends_of(units, 1 if self._ranking is None else 3)

    def _shares(self, amplitudes: Amplitudes) -> list[float]:
        """Return the variance of each group of features."""
        a1, a2, r, ar, _ = amplitudes
        return [a1 / self._size, *(a2 * r**d for d in range(_REACH)), ar, 1.0]


@cache
def _ends_of(units: int, always: int) -> list[int]:
    """Return the start of each group of features, and the end of the last.

    Args:
        units: number of units.
        always: number of constant features.
    """
    pairs = [units - distance for distance in range(1, _REACH + 1)]
    return [0, *itertools.accumulate([units, *pairs, units - 2 + _REACH, always])]


@lru_cache(maxsize=16)
def _pair_shares(units: int, a2: float, r: float) -> Real:
    """Return the variance of the weight of each pair of two units, shape (D, D)."""
    distance_DD = np.abs(np.subtract.outer(np.arange(units), np.arange(units)))
    near_DD = (distance_DD >= 1) & (distance_DD <= _REACH)
    return np.where(near_DD, a2 * r ** (distance_DD - 1.0), 0.0)


def harm_of(loss_D: Real) -> Real:
    """Return a positive harm from losses on any scale.

    It is the losses if all are positive, else the exponentials of their normal scores.
    """
    if (loss_D > 0.0).all():
        return loss_D
    return np.exp(normal_scores(loss_D))
