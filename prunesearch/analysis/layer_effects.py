"""What dropping each unit costs, and what dropping two of them together costs beyond that.

The loss of a trial is modelled as

    loss = mean + sum_i e_i (x_i - p_i) + sum_(i<j) w_ij (x_i - p_i)(x_j - p_j) + noise

where x_i is 1 if the trial drops unit i, and p_i is the mean of x_i. Then e_i is the mean cost of
dropping unit i over the trials, and w_ij is the interaction: how much more two drops cost together
than one by one. Both have normal prior distributions, so the estimates are those of a ridge
regression, and they have a posterior standard deviation (D. J. C. MacKay, "Bayesian interpolation",
Neural Comput. 4, 1992; C. M. Bishop, "Pattern Recognition and Machine Learning", 2006, section
3.5). The strengths of the ridge are those of the largest evidence.

Shapes: T trials, U units, P pairs, F features (units and pairs).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Real = NDArray[np.float64]
Single = NDArray[np.float32]
LEAST_TRIALS = 5
"""Number of trials without which nothing is estimated, and that each combination of a pair needs:
both dropped, either alone, and none."""
MOST_PAIRS = 3_300
"""Largest number of pairs. Of more, those are kept whose rarest combination is the most frequent.
"""
_FOLDS = 5
_UNIT_STRENGTHS = tuple(float(10**power) for power in np.arange(-3, 5.01, 0.5))
_PAIR_POWERS = (-1.0, 6.0)  # range of the strength of pairs, as powers of 10
_PAIR_STEPS = 5  # number of strengths that are tried after the first two


@dataclass(frozen=True)
class PairEffect:
    """The interaction of two units.

    Attributes:
        first, second: places of the units.
        effect: how much more it costs to drop both than the sum of both; negative if less.
        stderr: posterior standard deviation.
        together: number of trials that drop both.
    """

    first: int
    second: int
    effect: float
    stderr: float
    together: int


@dataclass(frozen=True)
class LayerEffects:
    """Effects of the units of a study.

    Attributes:
        trials: number of trials.
        effect: for each unit what dropping it costs, minus the mean over the units that vary. nan
            for a unit that all trials drop, or none.
        stderr: posterior standard deviation of each effect.
        pairs: interactions, in the order of the units.
        noise: standard deviation of what the model does not explain.
        explained: share of the variance of other trials that the units alone explain, by
            cross-validation. It can be negative. nan with few trials.
        explained_with_pairs: the same of units and pairs together; nan without pairs.
    """

    trials: int
    effect: tuple[float, ...]
    stderr: tuple[float, ...]
    pairs: tuple[PairEffect, ...]
    noise: float
    explained: float
    explained_with_pairs: float


def layer_effects(
    dropped_TU: Real, losses: Sequence[float] | Real, *, with_pairs: bool = True
) -> LayerEffects:
    """Estimate the effects of units and pairs. 10,000 trials of 80 units take a few seconds.

    Args:
        dropped_TU: how much of each unit each trial drops, from 0 to 1.
        losses: losses of the trials, all finite; less is better.
        with_pairs: whether to estimate the interactions of pairs.
    """
    losses_T = np.asarray(losses, dtype=float)
    trials, units = dropped_TU.shape
    effect_U, error_U = np.full(units, np.nan), np.full(units, np.nan)
    varying = np.zeros(0, dtype=np.intp)
    scale = 0.0
    if trials:
        varying = np.flatnonzero(dropped_TU.min(axis=0) < dropped_TU.max(axis=0))
        scale = float(losses_T.std())
    if trials < LEAST_TRIALS or not len(varying) or scale == 0:
        nothing = tuple(effect_U.tolist())
        return LayerEffects(trials, nothing, nothing, (), scale, np.nan, np.nan)
    # 1. Centre the units, and scale the losses to variance 1.
    varying_TV = dropped_TU[:, varying]
    centred_TV = (varying_TV - varying_TV.mean(axis=0)).astype(np.float32)
    target_T = ((losses_T - losses_T.mean()) / scale).astype(np.float32)
    # 2. Fit the units alone.
    sums = _Sums.of(centred_TV, target_T)
    fits = [sums.fit(np.full(len(varying), strength)) for strength in _UNIT_STRENGTHS]
    alone = max(fits, key=lambda fit: fit.evidence)
    explained = sums.explained(alone.strength_F)
    best, explained_with_pairs, chosen = alone, np.nan, np.zeros((0, 2), dtype=np.intp)
    # 3. Fit units and pairs together.
    if with_pairs:
        chosen = _frequent_pairs(varying_TV)
    if len(chosen):
        products_TP = centred_TV[:, chosen[:, 0]] * centred_TV[:, chosen[:, 1]]
        products_TP -= products_TP.mean(axis=0)
        sums = _Sums.of(np.hstack([centred_TV, products_TP]), target_T)
        best = _fit_pairs(sums, alone, len(chosen))
        explained_with_pairs = sums.explained(best.strength_F)
    # 4. Only differences between units are known if all trials drop equally many.
    covariance_FF = best.covariance()
    count = len(varying)
    centre_VV = np.eye(count) - 1 / count
    variance_V = (centre_VV @ covariance_FF[:count, :count] @ centre_VV).diagonal().clip(0)
    weight_V = best.weight_F[:count].astype(float)
    effect_U[varying] = scale * (weight_V - weight_V.mean())
    error_U[varying] = scale * np.sqrt(variance_V)
    pair_errors_P = scale * np.sqrt(covariance_FF.diagonal()[count:].clip(0))
    together_VV = (varying_TV > 0).astype(np.float32).T @ (varying_TV > 0).astype(np.float32)
    found = []
    for place, (first, second) in enumerate(chosen.tolist()):
        found.append(
            PairEffect(
                int(varying[first]),
                int(varying[second]),
                float(scale * best.weight_F[count + place]),
                float(pair_errors_P[place]),
                int(together_VV[first, second]),
            )
        )
    return LayerEffects(
        trials,
        tuple(effect_U.tolist()),
        tuple(error_U.tolist()),
        tuple(found),
        float(scale * np.sqrt(best.noise)),
        explained,
        explained_with_pairs,
    )


def _frequent_pairs(varying_TV: Real) -> NDArray[np.intp]:
    """Return the pairs of units whose four combinations all occur often enough, shape (P, 2)."""
    trials, units = varying_TV.shape
    gone_TV = (varying_TV > 0).astype(np.float32)
    both_VV = gone_TV.T @ gone_TV
    gone_V = gone_TV.sum(axis=0)
    first_VV = gone_V[:, None] - both_VV
    none_VV = trials - gone_V[:, None] - gone_V[None, :] + both_VV
    rarest_VV = np.minimum(np.minimum(both_VV, none_VV), np.minimum(first_VV, first_VV.T))
    first, second = np.triu_indices(units, 1)
    rarest_P = rarest_VV[first, second]
    kept = np.flatnonzero(rarest_P >= LEAST_TRIALS)
    if len(kept) > MOST_PAIRS:
        most = np.argsort(-rarest_P[kept], kind="stable")[:MOST_PAIRS]
        kept = np.sort(kept[most])
    return np.stack([first[kept], second[kept]], axis=1)


@dataclass(frozen=True)
class _Fit:
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
class _Sums:
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
    def of(cls, feature_TF: Single, target_T: Single) -> "_Sums":
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

    def fit(self, strength_F: Real) -> _Fit:
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


def _solve(gram_FF: Single, moment_F: Single, square: float, trials: int, strength_F: Real) -> _Fit:
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
    return _Fit(strength_F, weight_F, noise, float(evidence), factor_FF)


def _fit_pairs(sums: _Sums, alone: _Fit, pairs: int) -> _Fit:
    """Fit units and pairs with the strength of the pairs that has the largest evidence.

    The units keep the strength that they had alone. The evidence has one peak along the logarithm
    of the strength, which golden sections find.
    """

    def fit_at(power: float) -> _Fit:
        return sums.fit(np.concatenate([alone.strength_F, np.full(pairs, 10.0**power)]))

    low, high = _PAIR_POWERS
    golden = (np.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    fit_left, fit_right = fit_at(left), fit_at(right)
    for _ in range(_PAIR_STEPS):
        if fit_left.evidence > fit_right.evidence:
            high, right, fit_right = right, left, fit_left
            left = high - golden * (high - low)
            fit_left = fit_at(left)
        else:
            low, left, fit_left = left, right, fit_right
            right = low + golden * (high - low)
            fit_right = fit_at(right)
    return max(fit_left, fit_right, key=lambda fit: fit.evidence)
