"""Surrogate of the loss, fitted to the study's trials, that selects the proposals that are worth an
evaluation.

It is a Gaussian process over subsets. The effects of dropped blocks nearly add up on the log loss,
with an interaction of near blocks. So the covariance of two subsets S and T is a sum of
interpretable parts:

    k(S, T) = c0 + a1 |S n T| / K
            + a2 sum_d r^(d-1) pairs_d(S n T)
            + ar (sum_d q^(d-1) n_d(S) n_d(T) / K + triples(S n T) / 2)
            + a3 exp(-|S ^ T| / 2 l)
            + ap phi(S) . phi(T)

* a1: a weight of its own for each unit.
* a2: a weight for each pair of units at a distance d <= 4.
* ar: a weight for near pairs wherever they are, and one for each three in a row. A gap may cost
  less than its parts.
* a3: anything else that is alike for like subsets.
* ap: how far a prior ranking of the units can be trusted.

`gaussian_process` has the posterior, and the evidence that chooses the amplitudes. The prior
ranking enters as a weighted feature, not as a fixed mean, so its influence falls with more
evidence.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from prunesearch.algorithms.gaussian_process import Amplitudes, GaussianProcess, normal_scores
from prunesearch.algorithms.operators import Mask, Real

_REACH = 4  # largest distance of a pair of units with a weight of its own
_CONSTANT, _RANKING = 4.0, 2.0  # c0, and ap of each prior feature
_ALIKE, _RADIUS = 0.3, 2.0  # a3, and l: subsets that differ in two units still resemble each other
_FADE = 0.7  # q
# a1, a2, r and ar: the evidence chooses among these, for a total variance that is integrated out.
_GRID = tuple(
    (a1, *a2_r, ar)
    for a1, a2_r, ar in itertools.product(
        (1.0, 4.0), ((0.05, 0.5), (0.2, 0.9), (0.6, 0.5)), (0.0, 0.2)
    )
)


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
        super().__init__(X_ND, score_N, noise_N)

    def _grid(self) -> Sequence[Amplitudes]:
        return _GRID

    def _points(self, X_MD: Mask) -> Real:
        return X_MD.astype(np.float64)

    def _similarities(self, A_MP: Real, B_QP: Real) -> list[Real]:
        return [_ALIKE * _alike(A_MP, B_QP)]

    def _similar_shares(self, amplitudes: Amplitudes) -> list[float]:
        return [1.0]

    @property
    def _self_similarity(self) -> float:
        return _ALIKE

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
        a1, a2, r, ar = amplitudes
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


def _alike(A_MD: Real, B_QD: Real) -> Real:
    """Return the similarity of subsets, from 0 to 1 for equal ones, shape (M, Q)."""
    apart_MQ = A_MD.sum(1)[:, None] + B_QD.sum(1) - 2.0 * (A_MD @ B_QD.T)
    return np.asarray(np.exp(-apart_MQ / (2.0 * _RADIUS)))


def harm_of(loss_D: Real) -> Real:
    """Return a positive harm from losses on any scale.

    It is the losses if all are positive, else the exponentials of their normal scores.
    """
    if (loss_D > 0.0).all():
        return loss_D
    return np.exp(normal_scores(loss_D))
