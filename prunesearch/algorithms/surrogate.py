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

C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes for Machine Learning", MIT Press 2006, is
the source of the posterior (eqs. 2.25 and 2.26, algorithm 2.1), of the evidence that chooses the
amplitudes (eq. 5.8, with the overall variance integrated out), and of the leave-one-out means (eq.
5.12). Losses are replaced by the normal scores of their ranks, so a monotone change of the
objective does not change the model, and bad candidates have little influence. The prior ranking
enters as a weighted feature, not as a fixed mean, so its influence falls with more evidence.
"""

import itertools
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from prunesearch.algorithms.operators import Mask, Real

_REACH = 4  # largest distance of a pair of units with a weight of its own
_CONSTANT, _RANKING = 4.0, 2.0  # c0, and ap of each prior feature
_ALIKE, _RADIUS = 0.3, 2.0  # a3, and l: subsets that differ in two units still resemble each other
_FADE = 0.7  # q
_NOISE = 0.1  # variance of what the model does not explain, on the scale of the normal scores
# a1, a2, r and ar: the evidence chooses among these, for a total variance that is integrated out.
_GRID = tuple(
    (a1, *a2_r, ar)
    for a1, a2_r, ar in itertools.product(
        (1.0, 4.0), ((0.05, 0.5), (0.2, 0.9), (0.6, 0.5)), (0.0, 0.2)
    )
)
_LEAST = 1e-12  # smallest variance
LARGEST = 128  # largest number of trials in the model: the best and the latest
FEWEST = 6  # smallest number of trials in the model


def normal_scores(loss_N: Real) -> Real:
    """Replace values by the normal quantiles of their ranks. Equal values get equal scores."""
    _, place_N, count_U = np.unique(loss_N, return_inverse=True, return_counts=True)
    middle_U = np.cumsum(count_U) - count_U / 2.0
    quantile = NormalDist().inv_cdf
    return np.array([quantile(middle / loss_N.size) for middle in middle_U])[place_N]


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


class Surrogate:
    """The fitted model.

    Args:
        X_ND: subsets that were evaluated.
        score_N: their normal scores.
        ranking: a prior ranking of the units, or None.

    Attributes:
        correlation: correlation of leave-one-out predictions with what was measured.
    """

    def __init__(self, X_ND: Mask, score_N: Real, ranking: Ranking | None) -> None:
        self._ranking = ranking
        self._size = float(max(1.0, X_ND.sum(1).mean()))
        n = score_N.size
        F_NF, ends = self._features(X_ND), self._ends(X_ND.shape[1])
        groups = [F_NF[:, start:end] for start, end in itertools.pairwise(ends)]
        grams = np.stack(
            [_ALIKE * _alike(groups[0], groups[0]), *(group @ group.T for group in groups)]
        )
        # The scores as one more row of the matrix, so that its Cholesky factor's last row is L^-1 z
        # at no extra cost.
        K = np.empty((n + 1, n + 1))
        K[n, :n] = K[:n, n] = score_N
        K[n, n] = 1.0 + score_N @ score_N / _NOISE  # enough to stay positive definite
        best = -np.inf
        factor_NN: Real = np.eye(n)
        for amplitudes in _GRID:
            K[:n, :n] = (
                np.array([1.0, *_shares(self._size, amplitudes)]) @ grams.reshape(len(grams), -1)
            ).reshape(n, n)
            K[np.arange(n), np.arange(n)] += _NOISE
            L = np.linalg.cholesky(K)
            variance = max(float(L[n, :n] @ L[n, :n]) / n, _LEAST)  # 0 where all scores tie
            evidence = -0.5 * n * np.log(variance) - float(np.log(np.diag(L)[:n]).sum())
            if evidence > best:
                best, self._amplitudes, self._variance = evidence, amplitudes, variance
                factor_NN = np.asarray(L[:n, :n], dtype=np.float64)
        # Q rows: the N evaluated subsets, then those under way.
        widths = np.diff(ends)
        self._scale_F = np.sqrt(np.repeat(_shares(self._size, self._amplitudes), widths))
        self._X_QD, self._F_QF = groups[0], F_NF * self._scale_F
        self._inverse_QQ = np.linalg.inv(factor_NN)
        precision_NN = self._inverse_QQ.T @ self._inverse_QQ
        self._alpha_N = precision_NN @ score_N
        left_out_N = score_N - self._alpha_N / np.diag(precision_NN)
        self.correlation = _correlation(left_out_N, score_N)

    def predict(self, X_MD: Mask) -> tuple[Real, Real]:
        """Return the posterior means and standard deviations of subsets, on the scale of the
        scores, shape (M,).
        """
        K_MQ, own_M = self._covariance(X_MD)
        mean_M = K_MQ[:, : self._alpha_N.size] @ self._alpha_N
        left_M = own_M - ((K_MQ @ self._inverse_QQ.T) ** 2).sum(1)
        return mean_M, np.sqrt(np.maximum(left_M, 1e-12) * self._variance)

    def condition_on_pending(self, X_D: Mask) -> None:
        """Condition on a subset that is under way. The means do not change, but similar subsets
        become less uncertain.

        This is the posterior if the subset's loss will be as predicted ("kriging believer": D.
        Ginsbourger, R. Le Riche and L. Carraro, 2010). The inverse Cholesky factor grows by one
        row.
        """
        (k_Q,), (own,) = self._covariance(X_D[None])
        white_Q = self._inverse_QQ @ k_Q
        pivot = np.sqrt(max(float(own - white_Q @ white_Q) + _NOISE, 1e-12))
        grown_QQ = np.zeros((k_Q.size + 1, k_Q.size + 1))
        grown_QQ[:-1, :-1] = self._inverse_QQ
        grown_QQ[-1] = np.append(-(white_Q @ self._inverse_QQ) / pivot, 1.0 / pivot)
        self._inverse_QQ = grown_QQ
        self._X_QD = np.concatenate([self._X_QD, X_D[None]])
        self._F_QF = np.concatenate([self._F_QF, self._features(X_D[None]) * self._scale_F])

    def _covariance(self, X_MD: Mask) -> tuple[Real, Real]:
        """Return the covariances with the Q subsets, shape (M, Q), and the prior variances, shape
        (M,).
        """
        F_MF = self._features(X_MD) * self._scale_F
        K_MQ = F_MF @ self._F_QF.T + _ALIKE * _alike(X_MD.astype(np.float64), self._X_QD)
        return K_MQ, (F_MF**2).sum(1) + _ALIKE

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
        pairs = [units - distance for distance in range(1, _REACH + 1)]
        always = 1 if self._ranking is None else 3
        return [0, *np.cumsum([units, *pairs, units - 2 + _REACH, always]).tolist()]


def _shares(size: float, amplitudes: tuple[float, ...]) -> list[float]:
    """Return the variance of each group of features."""
    a1, a2, r, ar = amplitudes
    return [a1 / size, *(a2 * r**d for d in range(_REACH)), ar, 1.0]


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


def _correlation(a_N: Real, b_N: Real) -> float:
    """Return the correlation of two samples; 0 if there are too few values or they do not vary."""
    if a_N.size < 3 or a_N.std() < 1e-9 or b_N.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(a_N, b_N)[0, 1])
