"""A cheap model of the loss, fitted to the study's own history, that picks which proposals are worth an evaluation.

A Gaussian process over subsets. Dropping blocks is close to additive on the log loss, with an interaction between near
blocks, so the covariance of two subsets S and T is a sum of interpretable parts:

    k(S, T) = c0 + a1 |S n T| / K                       a weight of its own for each unit
            + a2 sum_d r^(d-1) pairs_d(S n T)           a weight for each pair of units at distance d <= 4
            + ar (sum_d q^(d-1) n_d(S) n_d(T) / K       a weight for near pairs wherever they are, and one for each
                  + triples(S n T) / 2)                 three in a row: a gap may cost less than its parts
            + a3 exp(-|S ^ T| / 2 l)                    anything else that is alike for like subsets
            + ap phi(S) . phi(T)                        how far a prior ranking of the units can be trusted

C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes for Machine Learning", MIT Press 2006, is the source of the
posterior (eqs. 2.25 and 2.26, algorithm 2.1), of the evidence that chooses the amplitudes (eq. 5.8, with the overall
variance integrated out), and of the leave-one-out means (eq. 5.12). Losses are replaced by the normal scores of their
ranks: any monotone change of the objective leaves the model as it is, and bad candidates teach little about good ones.
Since the prior ranking enters as a feature with a weight, not as a fixed mean, its say falls as evidence comes in.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from prunesearch.swarm.moves import Mask, Real

_REACH = 4  # largest distance of a pair of units with a weight of its own
_CONSTANT, _RANKING = 4.0, 2.0  # c0, and ap of each prior feature
_ALIKE, _RADIUS = 0.3, 2.0  # a3, and l: subsets that differ in two units still resemble each other
_FADE = 0.7  # q
# a1, a2, r, ar and the noise: the evidence chooses among these, for a total variance that is integrated out.
_GRID = tuple(
    (a1, a2, r, ar, noise)
    for a1 in (1.0, 4.0)
    for a2, r in ((0.05, 0.5), (0.2, 0.9), (0.6, 0.5))
    for ar in (0.0, 0.2)
    for noise in (0.03, 0.1)
)
LARGEST = 192  # trials that are modelled: the best and the latest
FEWEST = 6  # below this nothing is known


def normal_scores(loss_N: Real) -> Real:
    """Replace values by the normal quantiles of their ranks; equal values get equal scores."""
    _, place_N, count_U = np.unique(loss_N, return_inverse=True, return_counts=True)
    middle_U = np.cumsum(count_U) - count_U / 2.0
    quantile = NormalDist().inv_cdf
    return np.array([quantile(middle / loss_N.size) for middle in middle_U])[place_N]


@dataclass(frozen=True)
class Ranking:
    """What is believed of the units beforehand: a positive harm for dropping each, on any scale."""

    harm_D: Real

    def features(self, X_MD: Mask) -> Real:
        """Two views of a subset's harm, shape (M, 2): the sum of logs, and the log of the sum; roughly unit scale."""
        log_D = np.log(self.harm_D)
        spread = float(log_D.std()) or 1.0
        size_M = np.maximum(X_MD.sum(1), 1)
        sum_M = (X_MD @ (log_D - log_D.mean())) / spread / np.sqrt(size_M)
        log_M = (np.log(np.maximum(X_MD @ self.harm_D, 1e-300) / size_M) - np.log(self.harm_D.mean())) / spread
        return np.stack([sum_M, log_M], axis=1)


class Surrogate:
    """The fitted model.

    Args:
        X_ND: subsets that were evaluated.
        score_N: their normal scores.
        ranking: a prior ranking of the units, or None.

    Attributes:
        trust: correlation of leave-one-out predictions with what was measured.
    """

    def __init__(self, X_ND: Mask, score_N: Real, ranking: Ranking | None) -> None:
        self._X_QD, self._ranking = X_ND, ranking  # Q: the N evaluated subsets, then those under way
        self._size = float(max(1.0, X_ND.sum(1).mean()))
        parts = self._parts(X_ND, X_ND)
        best = -np.inf
        factor_NN: Real = np.eye(score_N.size)
        for amplitudes in _GRID:
            K_NN = self._blend(parts, amplitudes)
            K_NN[np.diag_indices_from(K_NN)] += amplitudes[-1]
            L_NN = np.linalg.cholesky(K_NN)
            w_N = np.linalg.solve(L_NN, score_N)
            variance = float(w_N @ w_N) / score_N.size
            evidence = -0.5 * score_N.size * np.log(variance) - float(np.log(np.diag(L_NN)).sum())
            if evidence > best:
                best, self._amplitudes, self._variance = evidence, amplitudes, variance
                factor_NN = np.asarray(L_NN, dtype=np.float64)
        self._inverse_QQ = np.linalg.inv(factor_NN)
        precision_NN = self._inverse_QQ.T @ self._inverse_QQ
        self._alpha_N = precision_NN @ score_N
        left_out_N = score_N - self._alpha_N / np.diag(precision_NN)
        self.trust = _correlation(left_out_N, score_N)

    def predict(self, X_MD: Mask) -> tuple[Real, Real]:
        """Posterior means and standard deviations of subsets, in units of the scores, each of shape (M,)."""
        K_MQ = self._blend(self._parts(X_MD, self._X_QD), self._amplitudes)
        mean_M = K_MQ[:, : self._alpha_N.size] @ self._alpha_N
        left_M = self._prior(X_MD) - ((K_MQ @ self._inverse_QQ.T) ** 2).sum(1)
        return mean_M, np.sqrt(np.maximum(left_M, 1e-12) * self._variance)

    def expect(self, X_D: Mask) -> None:
        """Take a subset as under way: the means stay as they are, but what resembles it is less uncertain from now on.

        That is the posterior once it is measured and comes out as predicted ("kriging believer": D. Ginsbourger,
        R. Le Riche and L. Carraro, 2010); the inverse Cholesky factor grows by one row.
        """
        k_Q = self._blend(self._parts(X_D[None], self._X_QD), self._amplitudes)[0]
        white_Q = self._inverse_QQ @ k_Q
        left = float(self._prior(X_D[None])[0] - white_Q @ white_Q) + self._amplitudes[-1]
        pivot = np.sqrt(max(left, 1e-12))
        row = np.append(-(white_Q @ self._inverse_QQ) / pivot, 1.0 / pivot)
        self._inverse_QQ = np.vstack([np.pad(self._inverse_QQ, ((0, 0), (0, 1))), row])
        self._X_QD = np.vstack([self._X_QD, X_D])

    def _prior(self, X_MD: Mask) -> Real:
        """Prior variances, shape (M,)."""
        a1, a2, r, ar, _ = self._amplitudes
        pairs_DM, triples_M = _near(X_MD)
        own_M = _CONSTANT + a1 * X_MD.sum(1) / self._size + _ALIKE + 0.5 * ar * triples_M
        for distance, pairs_M in enumerate(pairs_DM):
            own_M = own_M + a2 * r**distance * pairs_M + ar * _FADE**distance * pairs_M**2 / self._size
        if self._ranking is not None:
            own_M = own_M + _RANKING * (self._ranking.features(X_MD) ** 2).sum(1)
        return np.asarray(own_M)

    def _parts(self, A_MD: Mask, B_ND: Mask) -> list[Real]:
        """The covariance's parts: units, likeness, runs, pairs at each distance, and the ranking."""
        A, B = A_MD.astype(np.float64), B_ND.astype(np.float64)
        shared = A @ B.T
        apart = A.sum(1)[:, None] + B.sum(1)[None, :] - 2.0 * shared
        two_A = [A[:, :-d] * A[:, d:] for d in range(1, _REACH + 1)]
        two_B = [B[:, :-d] * B[:, d:] for d in range(1, _REACH + 1)]
        pairs = [a @ b.T for a, b in zip(two_A, two_B, strict=True)]
        runs = 0.5 * (two_A[0][:, :-1] * A[:, 2:]) @ (two_B[0][:, :-1] * B[:, 2:]).T
        for distance, (a, b) in enumerate(zip(two_A, two_B, strict=True)):
            runs += (_FADE**distance / self._size) * np.outer(a.sum(1), b.sum(1))
        parts = [shared, np.exp(-apart / (2.0 * _RADIUS)), runs, *pairs]
        if self._ranking is not None:
            parts.append(self._ranking.features(A_MD) @ self._ranking.features(B_ND).T)
        return parts

    def _blend(self, parts: list[Real], amplitudes: tuple[float, ...]) -> Real:
        a1, a2, r, ar, _ = amplitudes
        K = _CONSTANT + (a1 / self._size) * parts[0] + _ALIKE * parts[1]
        if ar:
            K += ar * parts[2]
        for distance in range(_REACH):
            K += (a2 * r**distance) * parts[3 + distance]
        if self._ranking is not None:
            K += _RANKING * parts[-1]
        return K


def _near(X_MD: Mask) -> tuple[list[Real], Real]:
    """Numbers of pairs at each distance and of three in a row, each of shape (M,)."""
    pairs = [(X_MD[:, :-d] & X_MD[:, d:]).sum(1).astype(np.float64) for d in range(1, _REACH + 1)]
    return pairs, (X_MD[:, :-2] & X_MD[:, 1:-1] & X_MD[:, 2:]).sum(1).astype(np.float64)


def harm_of(loss_D: Real) -> Real:
    """A positive harm from losses on any scale: themselves where all are positive, else their ranks' exponentials."""
    return loss_D if (loss_D > 0.0).all() else np.exp(normal_scores(loss_D))


def _correlation(a_N: Real, b_N: Real) -> float:
    if a_N.size < 3 or a_N.std() < 1e-9 or b_N.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(a_N, b_N)[0, 1])
