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

from prunesearch.analysis.intervals import Real
from prunesearch.analysis.ridge import LEAST_TRIALS, FoldSums, RidgeFit

MOST_PAIRS = 3_300
"""Largest number of pairs. Of more, those are kept whose rarest combination is the most frequent.
"""
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
    sums = FoldSums.of(centred_TV, target_T)
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
        sums = FoldSums.of(np.hstack([centred_TV, products_TP]), target_T)
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
    # 1. Count the four combinations: both dropped, either alone, and none.
    gone_TV = (varying_TV > 0).astype(np.float32)
    both_VV = gone_TV.T @ gone_TV
    gone_V = gone_TV.sum(axis=0)
    first_VV = gone_V[:, None] - both_VV
    none_VV = trials - gone_V[:, None] - gone_V[None, :] + both_VV
    rarest_VV = np.minimum(np.minimum(both_VV, none_VV), np.minimum(first_VV, first_VV.T))
    # 2. A pair counts as often as its rarest combination.
    first, second = np.triu_indices(units, 1)
    rarest_P = rarest_VV[first, second]
    kept = np.flatnonzero(rarest_P >= LEAST_TRIALS)
    # 3. Of too many pairs, keep those that are known best.
    if len(kept) > MOST_PAIRS:
        most = np.argsort(-rarest_P[kept], kind="stable")[:MOST_PAIRS]
        kept = np.sort(kept[most])
    return np.stack([first[kept], second[kept]], axis=1)


def _fit_pairs(sums: FoldSums, alone: RidgeFit, pairs: int) -> RidgeFit:
    """Fit units and pairs with the strength of the pairs that has the largest evidence.

    The units keep the strength that they had alone. The evidence has one peak along the logarithm
    of the strength, which golden sections find.
    """

    def fit_at(power: float) -> RidgeFit:
        return sums.fit(np.concatenate([alone.strength_F, np.full(pairs, 10.0**power)]))

    # Each step keeps one of the two inner points, so it needs one fit.
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
