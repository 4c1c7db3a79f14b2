"""Gaussian process on candidates, with a covariance that subclasses define.

The covariance is a sum of parts. Each part has an amplitude; the evidence chooses among a few
combinations of them:

    k(S, T) = sum_s share_s similarity_s(S, T) + sum_f share_f features_f(S) . features_f(T)

C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes for Machine Learning", MIT Press 2006, is
the source of the posterior (eqs. 2.25 and 2.26, algorithm 2.1), of the evidence that chooses the
amplitudes (eq. 5.8, with the overall variance integrated out), and of the leave-one-out means (eq.
5.12). Losses are replaced by the normal scores of their ranks, so a monotone change of the
objective does not change the model, and bad candidates have little influence.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from prunesearch.algorithms.operators import Counts, Mask, Real

NOISE = 0.1  # variance of what the model does not explain, on the scale of the normal scores
_LEAST = 1e-12  # smallest variance
_LEAST_RELIABLE = 0.2  # smallest share of the scores' variance that is not noise
_LEAST_NOISE = 1e-6  # keeps the covariance of scores without noise positive definite
LARGEST = 128  # largest number of trials in the model: the best and the latest
LARGEST_NOISY = 400  # the same if losses are noisy, so that each tells little
FEWEST = 6  # smallest number of trials in the model
# Variances of the signal, as shares of a covariance whose amplitudes are about 1: the evidence
# chooses among them where the noise of each trial is known.
_SCALES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)

Amplitudes = tuple[float, ...]


def normal_scores(loss_N: Real) -> Real:
    """Replace values by the normal quantiles of their ranks. Equal values get equal scores."""
    _, place_N, count_U = np.unique(loss_N, return_inverse=True, return_counts=True)
    middle_U = np.cumsum(count_U) - count_U / 2.0
    quantile = NormalDist().inv_cdf
    return np.array([quantile(middle / loss_N.size) for middle in middle_U])[place_N]


@dataclass(frozen=True)
class Flips:
    """Covariances of a candidate, and their changes when one of R units leaves it or one of S units
    joins it.

    Attributes:
        k_Q, own: its covariances with the Q candidates of the model, and its prior variance.
        out_RQ, into_SQ: changes of `k_Q`.
        out_R, into_S: changes of `own`.
        both_RS: covariance of the changes of the process itself, by a unit that leaves and one that
            joins.
    """

    k_Q: Real
    own: float
    out_RQ: Real
    into_SQ: Real
    out_R: Real
    into_S: Real
    both_RS: Real


class GaussianProcess(ABC):
    """The fitted model.

    Args:
        X_ND: candidates that were evaluated.
        score_N: their normal scores, or losses with mean 0 and variance 1.
        noise_N: variance of the noise of each score, in squared units of the scores. If None, the
            noise of all scores is `NOISE` times the overall variance.

    Attributes:
        correlation: correlation of leave-one-out predictions with what was measured.
    """

    def __init__(self, X_ND: Mask, score_N: Real, noise_N: Real | None = None) -> None:
        n = score_N.size
        F_NF, ends = self._features(X_ND), self._ends(X_ND.shape[1])
        points_NP = self._points(X_ND)
        groups = [F_NF[:, start:end] for start, end in itertools.pairwise(ends)]
        grams = np.stack(
            [*self._similarities(points_NP, points_NP), *(group @ group.T for group in groups)]
        )
        # The scores as one more row of the matrix, so that its Cholesky factor's last row is L^-1 z
        # at no extra cost.
        K = np.empty((n + 1, n + 1))
        K[n, :n] = K[:n, n] = score_N
        best = -np.inf
        factor_NN: Real = np.eye(n)
        # With known noise the overall variance is one more choice; else it is integrated out.
        scales: Sequence[float | None] = (None,) if noise_N is None else _SCALES
        for amplitudes, scale in _paired(self._candidates(), scales):
            relative_N = _relative_noise(n, noise_N, scale)
            shares = [*self._similar_shares(amplitudes), *self._shares(amplitudes)]
            K[:n, :n] = (np.array(shares) @ grams.reshape(len(grams), -1)).reshape(n, n)
            K[np.arange(n), np.arange(n)] += relative_N
            # Enough to stay positive definite.
            K[n, n] = 1.0 + score_N @ score_N / float(relative_N.min())
            L = np.linalg.cholesky(K)
            fit = float(L[n, :n] @ L[n, :n]) / n
            variance = max(fit, _LEAST) if scale is None else scale  # 0 where all scores tie
            evidence = -0.5 * n * np.log(variance) - float(np.log(np.diag(L)[:n]).sum())
            if scale is not None:
                evidence -= 0.5 * n * fit / scale
            if evidence > best:
                best, self._amplitudes, self._variance = evidence, amplitudes, variance
                factor_NN = np.asarray(L[:n, :n], dtype=np.float64)
                self._pending_noise = float(relative_N.mean())
        # Q rows: the N evaluated candidates, then those under way.
        widths = np.diff(ends)
        self._scale_F = np.sqrt(np.repeat(self._shares(self._amplitudes), widths))
        self._points_QP, self._F_QF = points_NP, F_NF * self._scale_F
        self._inverse_QQ = np.linalg.inv(factor_NN)
        precision_NN = self._inverse_QQ.T @ self._inverse_QQ
        self._alpha_N = precision_NN @ score_N
        left_out_N = score_N - self._alpha_N / np.diag(precision_NN)
        self.correlation = _correlation(left_out_N, score_N)
        if noise_N is not None:
            # Noise cannot be predicted: C. Spearman, "The proof and measurement of association
            # between two things", Am. J. Psychol. 15, 1904, corrects a correlation for it.
            reliable = 1.0 - float(noise_N.mean()) / max(float(score_N.var()), _LEAST)
            self.correlation /= np.sqrt(max(reliable, _LEAST_RELIABLE))

    def _candidates(self) -> Iterator[Amplitudes]:
        """Yield the combinations of the grid, then those near the best of them."""
        yield from self._grid()
        yield from self._refined(self._amplitudes)

    def _refined(self, amplitudes: Amplitudes) -> Sequence[Amplitudes]:
        """Return further combinations to try, near the best one of the grid."""
        return ()

    @abstractmethod
    def _grid(self) -> Sequence[Amplitudes]:
        """Return the combinations of amplitudes that the evidence chooses among."""

    @abstractmethod
    def _features(self, X_MD: Mask) -> Real:
        """Return the features of candidates, in groups with one amplitude each."""

    @abstractmethod
    def _ends(self, units: int) -> list[int]:
        """Return the start of each group of features, and the end of the last."""

    @abstractmethod
    def _shares(self, amplitudes: Amplitudes) -> list[float]:
        """Return the variance of each group of features."""

    @abstractmethod
    def _points(self, X_MD: Mask) -> Real:
        """Return the coordinates that similarities are computed from."""

    @abstractmethod
    def _similarities(self, A_MP: Real, B_QP: Real) -> list[Real]:
        """Return the similarities of candidates, each of shape (M, Q)."""

    @abstractmethod
    def _similar_shares(self, amplitudes: Amplitudes) -> list[float]:
        """Return the amplitude of each similarity."""

    @abstractmethod
    def _self_similarity(self, A_MP: Real) -> Real:
        """Return the sum of each candidate's similarities with itself, times their amplitudes,
        shape (M,).
        """

    def predict(self, X_MD: Mask) -> tuple[Real, Real]:
        """Return the posterior means and standard deviations of candidates, on the scale of the
        scores, shape (M,).
        """
        K_MQ, own_M = self._covariance(X_MD)
        mean_M = K_MQ[:, : self._alpha_N.size] @ self._alpha_N
        white_MQ = K_MQ @ self._inverse_QQ.T
        left_M = own_M - np.einsum("mq,mq->m", white_MQ, white_MQ)
        return mean_M, np.sqrt(np.maximum(left_M, 1e-12) * self._variance)

    def predict_exchanges(self, X_D: Mask, out_R: Counts, into_S: Counts) -> tuple[Real, Real]:
        """Return approximate posterior means and standard deviations of all candidates that
        exchange one unit.

        The change of the covariance by an exchange is taken as the sum of the changes by its two
        units. So all R x S exchanges cost as much as R + S candidates.

        Args:
            X_D: the candidate that is changed.
            out_R: units that may leave it.
            into_S: units that may join it.

        Returns:
            Two arrays of shape (R + 1, S + 1). In the last row no unit leaves; in the last column
            none joins.
        """
        flips = self._flips(X_D, out_R, into_S)
        n, alpha_N = self._alpha_N.size, self._alpha_N
        # Leaving out a unit, or adding none, is one more choice.
        none_1Q = np.zeros((1, flips.k_Q.size))
        out_RQ = np.concatenate([flips.out_RQ, none_1Q])
        into_SQ = np.concatenate([flips.into_SQ, none_1Q])
        mean_RS = _outer_sum(out_RQ[:, :n] @ alpha_N, into_SQ[:, :n] @ alpha_N)
        mean_RS += float(flips.k_Q[:n] @ alpha_N)
        # What the trials explain of the prior variance: |w + w_out + w_into|^2 with w = L^-1 k.
        white_Q = self._inverse_QQ @ flips.k_Q
        out_RQ, into_SQ = out_RQ @ self._inverse_QQ.T, into_SQ @ self._inverse_QQ.T
        explained_RS = _outer_sum(
            np.einsum("rq,rq->r", out_RQ + 2.0 * white_Q, out_RQ),
            np.einsum("sq,sq->s", into_SQ + 2.0 * white_Q, into_SQ),
        )
        explained_RS += 2.0 * (out_RQ @ into_SQ.T) + white_Q @ white_Q
        # The prior variance itself.
        own_RS = flips.own + _outer_sum(np.append(flips.out_R, 0.0), np.append(flips.into_S, 0.0))
        own_RS[:-1, :-1] += 2.0 * flips.both_RS
        left_RS = np.maximum(own_RS - explained_RS, _LEAST)
        return mean_RS, np.sqrt(left_RS * self._variance)

    def condition_on_pending(self, X_D: Mask) -> None:
        """Condition on a candidate that is under way. The means do not change, but similar ones
        become less uncertain.

        This is the posterior if the candidate's loss will be as predicted ("kriging believer": D.
        Ginsbourger, R. Le Riche and L. Carraro, 2010). The inverse Cholesky factor grows by one
        row.
        """
        (k_Q,), (own,) = self._covariance(X_D[None])
        white_Q = self._inverse_QQ @ k_Q
        pivot = np.sqrt(max(float(own - white_Q @ white_Q) + self._pending_noise, 1e-12))
        grown_QQ = np.zeros((k_Q.size + 1, k_Q.size + 1))
        grown_QQ[:-1, :-1] = self._inverse_QQ
        grown_QQ[-1] = np.append(-(white_Q @ self._inverse_QQ) / pivot, 1.0 / pivot)
        self._inverse_QQ = grown_QQ
        self._points_QP = np.concatenate([self._points_QP, self._points(X_D[None])])
        self._F_QF = np.concatenate([self._F_QF, self._features(X_D[None]) * self._scale_F])

    def _flips(self, X_D: Mask, out_R: Counts, into_S: Counts) -> "Flips":
        """Return how the covariances of a candidate change with single units."""
        # The candidate itself comes first, then without one unit, then with one more.
        R, S = out_R.size, into_S.size
        Y_MD = np.repeat(X_D[None], 1 + R + S, axis=0)
        Y_MD[1 + np.arange(R), out_R] = False
        Y_MD[1 + R + np.arange(S), into_S] = True
        K_MQ, own_M = self._covariance(Y_MD)
        # The covariances of those with each other.
        F_MF, points_MP = self._features(Y_MD) * self._scale_F, self._points(Y_MD)
        K_MM = F_MF @ F_MF.T
        similar = self._similarities(points_MP, points_MP)
        for share, gram_MM in zip(self._similar_shares(self._amplitudes), similar, strict=True):
            K_MM = K_MM + share * gram_MM
        out, into = slice(1, 1 + R), slice(1 + R, None)
        return Flips(
            k_Q=K_MQ[0],
            own=float(own_M[0]),
            out_RQ=K_MQ[out] - K_MQ[0],
            into_SQ=K_MQ[into] - K_MQ[0],
            out_R=own_M[out] - own_M[0],
            into_S=own_M[into] - own_M[0],
            both_RS=K_MM[out, into] - _outer_sum(K_MM[out, 0], K_MM[0, into]) + K_MM[0, 0],
        )

    def _covariance(self, X_MD: Mask) -> tuple[Real, Real]:
        """Return the covariances with the Q candidates, shape (M, Q), and the prior variances,
        shape (M,).
        """
        F_MF = self._features(X_MD) * self._scale_F
        K_MQ = F_MF @ self._F_QF.T
        points_MP = self._points(X_MD)
        similar = self._similarities(points_MP, self._points_QP)
        for share, gram_MQ in zip(self._similar_shares(self._amplitudes), similar, strict=True):
            K_MQ = K_MQ + share * gram_MQ
        own_M = np.einsum("mf,mf->m", F_MF, F_MF) + self._self_similarity(points_MP)
        return K_MQ, own_M


def _relative_noise(n: int, noise_N: Real | None, scale: float | None) -> Real:
    """Return the noise of each score as a share of the overall variance, shape (N,)."""
    if noise_N is None or scale is None:
        return np.full(n, NOISE)
    return np.maximum(noise_N / scale, _LEAST_NOISE)


def _paired(
    candidates: Iterable[Amplitudes], scales: Sequence[float | None]
) -> Iterator[tuple[Amplitudes, float | None]]:
    """Yield all pairs. A candidate is taken when it is needed, because the last ones depend on the
    evidence of the first.
    """
    for amplitudes in candidates:
        for scale in scales:
            yield amplitudes, scale


def _outer_sum(a_R: Real, b_S: Real) -> Real:
    """Return the sums of all pairs, shape (R, S)."""
    return np.asarray(a_R[:, None] + b_S)


def _correlation(a_N: Real, b_N: Real) -> float:
    """Return the correlation of two samples; 0 if there are too few values or they do not vary."""
    if a_N.size < 3 or a_N.std() < 1e-9 or b_N.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(a_N, b_N)[0, 1])
