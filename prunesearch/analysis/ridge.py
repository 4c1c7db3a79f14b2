"""Ridge regression with its evidence, fitted on sums so that many strengths can be tried.

The weights have normal prior distributions, and the evidence is the probability of the losses given
the strengths of the ridge: D. J. C. MacKay, "Bayesian interpolation", Neural Comput. 4, 1992; C. M.
Bishop, "Pattern Recognition and Machine Learning", 2006, section 3.5. The trials are read once, to
sum up products by fold. Fits and cross-validation then take the sums.

Shapes: T trials, F features, K folds.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from prunesearch.analysis.intervals import Real

Single = NDArray[np.float32]
LEAST_TRIALS = 5
"""Number of trials without which nothing is estimated, and that each combination of a pair needs:
both dropped, either alone, and none."""
_FOLDS = 5


@dataclass(frozen=True)
class RidgeFit:
    """A ridge regression.

    Attributes:
        strength_F: strength of the ridge for each feature: variance of the noise, divided by the
            prior variance of the weight.
        weight_F: the weights.
        noise: variance of the noise.
        evidence: logarithm of the probability of the losses, but for a constant.
        factor_FF: Cholesky factor of the regularised sums.
    """

    strength_F: Real
    weight_F: Single
    noise: float
    evidence: float
    factor_FF: Single

    def covariance(self) -> Real:
        """Return the posterior covariance of the weights."""
        inverse, failed = linalg.lapack.spotri(self.factor_FF, lower=True)
        assert not failed, "a factor with a positive diagonal has an inverse"
        lower = np.tril(inverse)
        return np.asarray(self.noise * (lower + np.tril(lower, -1).T), dtype=float)


@dataclass(frozen=True)
class FoldSums:
    """Sums of products of centred features and losses, by fold of the trials.

    Attributes:
        gram_KFF, moment_KF: sums of products of features, and of features with losses.
        feature_KF, loss_K, square_K: sums of features, of losses, and of squared losses.
        count_K: number of trials.
    """

    gram_KFF: list[Single]
    moment_KF: list[Single]
    feature_KF: list[Single]
    loss_K: list[float]
    square_K: list[float]
    count_K: list[int]

    @classmethod
    def of(cls, feature_TF: Single, target_T: Single) -> "FoldSums":
        """Sum over the trials, which are dealt to the folds at random with seed 0."""
        order = np.random.default_rng(0).permutation(len(target_T))
        sums = cls([], [], [], [], [], [])
        for fold in np.array_split(order, min(_FOLDS, len(order))):
            part, target = feature_TF[fold], target_T[fold]
            sums.gram_KFF.append(part.T @ part)
            sums.moment_KF.append(part.T @ target)
            sums.feature_KF.append(part.sum(axis=0))
            sums.loss_K.append(float(target.sum()))
            sums.square_K.append(float(target @ target))
            sums.count_K.append(len(fold))
        return sums

    def fit(self, strength_F: Real) -> RidgeFit:
        """Fit all trials. The features and the losses have mean 0."""
        gram_FF = sum(self.gram_KFF[1:], start=self.gram_KFF[0].copy())
        moment_F = sum(self.moment_KF[1:], start=self.moment_KF[0].copy())
        return _solve(gram_FF, moment_F, sum(self.square_K), sum(self.count_K), strength_F)

    def explained(self, strength_F: Real) -> float:
        """Return the explained share of the variance of trials that the fit has not seen."""
        count, left, around = sum(self.count_K), 0.0, 0.0
        for fold, size in enumerate(self.count_K):
            # 1. Fit the other folds, around their own means.
            rest = count - size
            if rest < LEAST_TRIALS or size < 1:
                return float("nan")
            mean_F = (-self.feature_KF[fold] / rest).astype(np.float32)
            mean = -self.loss_K[fold] / rest
            others = [place for place in range(len(self.count_K)) if place != fold]
            gram_FF = self.gram_KFF[others[0]].copy()
            moment_F = self.moment_KF[others[0]] - np.float32(rest * mean) * mean_F
            for place in others[1:]:
                gram_FF += self.gram_KFF[place]
                moment_F = moment_F + self.moment_KF[place]
            gram_FF -= rest * np.outer(mean_F, mean_F)
            square = sum(self.square_K) - self.square_K[fold] - rest * mean**2
            weight_F = _solve(gram_FF, moment_F, square, rest, strength_F).weight_F.astype(float)
            # 2. Add up the squared errors in this fold: |y - m - (x - m_x) w|^2.
            offset = mean - float(mean_F @ weight_F)
            moment, features = self.moment_KF[fold], self.feature_KF[fold]
            left += self.square_K[fold] - 2 * float(moment @ weight_F)
            left += float(weight_F @ (self.gram_KFF[fold] @ weight_F)) + size * offset**2
            left += 2 * offset * (float(features @ weight_F) - self.loss_K[fold])
            around += self.square_K[fold] - 2 * mean * self.loss_K[fold] + size * mean**2
        return 1.0 - left / around


def _solve(
    gram_FF: Single, moment_F: Single, square: float, trials: int, strength_F: Real
) -> RidgeFit:
    """Solve a ridge regression, and compute its evidence. `gram_FF` is changed."""
    gram_FF[np.diag_indices_from(gram_FF)] += strength_F.astype(np.float32)
    factor_FF = linalg.cholesky(gram_FF, lower=True, overwrite_a=True, check_finite=False)
    weight_F = linalg.cho_solve((factor_FF, True), moment_F, check_finite=False)
    # The noise has its most probable variance. The mean of the losses was estimated too.
    freedom = max(1, trials - 1)
    noise = max(1e-9 * square, square - float(moment_F @ weight_F)) / freedom
    log_determinant = 2 * float(np.log(factor_FF.diagonal().astype(float)).sum())
    log_prior = float(np.log(strength_F).sum())
    evidence = -0.5 * (freedom * np.log(noise) + log_determinant - log_prior)
    return RidgeFit(strength_F, weight_F, noise, float(evidence), factor_FF)
