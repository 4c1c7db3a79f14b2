"""Which layers matter, from a study's trials: how often each was dropped, and what dropping it cost.

Optuna's default importance (PED-ANOVA) says which parameters tell the best trials from the good ones. A layer that
every search soon learns to keep tells them apart no more, so it looks unimportant there. Here the harm of each layer is
estimated instead, by a ridge regression of the losses on what was dropped. The model is additive: it says what a layer
costs on average over the subsets that were tried, not in the company of particular others.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from prunesearch.store.selection import best_trials

_BEST_SHARE, _BEST_LEAST = 0.1, 5  # of the trials, those that count as the best, and how many at least
_RIDGES = tuple(10.0**e for e in range(-5, 1))  # strengths, for each trial
_HALVES = {"_attn": "a", "_mlp": "m"}


@dataclass(frozen=True)
class LayerImportance:
    """What a study knows about a layer, or sublayer.

    Attributes:
        layer: as ``--drop`` takes it: ``7``, ``7a``, or ``4-5`` for blocks that go together.
        dropped: share of the finished trials that drop it.
        dropped_best: share of the best trials that drop it.
        with_, without: mean of the searched value in the trials that drop it, and in the others; None without any.
        harm: how much worse the value gets when it is dropped, less the mean over all layers; positive is worse, in the
            units of the value. None where all trials drop it or none does.
        stderr: standard error of the harm.
        rank: by harm, 1 for the layer that matters most.
    """

    layer: str
    dropped: float
    dropped_best: float
    with_: float | None
    without: float | None
    harm: float | None
    stderr: float | None
    rank: int | None


def layer_importances(study: Study) -> list[LayerImportance]:
    """Every layer's importance, in the order of the model; nothing for a study without finished trials."""
    trials = [t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if t.values]
    if not trials:
        return []
    names = sorted(name for name in trials[0].params if name.startswith("drop_"))
    dropped_TD = np.array([[t.params.get(name, 0) for name in names] for t in trials], dtype=float)
    values_T = np.array([t.values[0] for t in trials])
    best_TD = np.array([[t.params.get(name, 0) for name in names] for t in _best(study, trials)], dtype=float)
    sign = -1.0 if study.directions[0] == StudyDirection.MAXIMIZE else 1.0
    varies_D = (dropped_TD.min(0) == 0) & (dropped_TD.max(0) == 1)
    harm_D, error_D = np.full(len(names), np.nan), np.full(len(names), np.nan)
    if len(trials) > 2 and varies_D.any():
        harm_D[varies_D], error_D[varies_D] = ridge(dropped_TD[:, varies_D], sign * values_T)
    ranks = {int(index): place for place, index in enumerate(np.argsort(-harm_D[varies_D], kind="stable"), 1)}
    place_of = dict(zip(np.flatnonzero(varies_D).tolist(), range(int(varies_D.sum())), strict=True))
    found = []
    for index, name in enumerate(names):
        gone_T = dropped_TD[:, index] == 1
        known = math.isfinite(harm_D[index])
        found.append(
            LayerImportance(
                layer=_layer(name),
                dropped=float(gone_T.mean()),
                dropped_best=float(best_TD[:, index].mean()),
                with_=_mean(values_T[gone_T]),
                without=_mean(values_T[~gone_T]),
                harm=float(harm_D[index]) if known else None,
                stderr=float(error_D[index]) if known else None,
                rank=ranks[place_of[index]] if known else None,
            )
        )
    return found


def ridge(dropped_TD: np.ndarray, losses_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Harm of each layer and its standard error, by ridge regression.

    The strength of the ridge is the one with the least error of leave-one-out prediction. The standard errors are those
    of the posterior of which the ridge estimate is the mean.

    Args:
        dropped_TD: 1 where a trial drops a layer.
        losses_T: less is better.
    """
    x_TD, y_T = dropped_TD - dropped_TD.mean(0), losses_T - losses_T.mean()
    u_TK, s_K, v_KD = np.linalg.svd(x_TD, full_matrices=False)
    least, penalty, rest_T = math.inf, math.nan, y_T
    for strength in _RIDGES:
        tried = strength * len(y_T)
        shrink_K = s_K**2 / (s_K**2 + tried)
        left_T = y_T - u_TK @ (shrink_K * (u_TK.T @ y_T))
        leverage_T = (u_TK**2) @ shrink_K + 1 / len(y_T)  # the mean is fitted too
        error = float(np.mean((left_T / np.maximum(1e-9, 1 - leverage_T)) ** 2))
        if error < least:
            least, penalty, rest_T = error, tried, left_T
    harm_D = v_KD.T @ (s_K / (s_K**2 + penalty) * (u_TK.T @ y_T))
    freedom = max(1.0, len(y_T) - 1 - float((s_K**2 / (s_K**2 + penalty)).sum()))
    # Along directions in which no trial differs from another, the prior remains.
    inside_DD = (v_KD.T / (s_K**2 + penalty)) @ v_KD
    outside_DD = (np.eye(len(harm_D)) - v_KD.T @ v_KD) / penalty
    centre_DD = np.eye(len(harm_D)) - 1 / len(harm_D)  # harm is what a layer costs more than the mean layer
    variance_D = (centre_DD @ (inside_DD + outside_DD) @ centre_DD).diagonal().clip(0)
    return harm_D - harm_D.mean(), np.sqrt(float(rest_T @ rest_T) / freedom * variance_D)


def _best(study: Study, trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
    """The best trials: the first tenth, or the whole front of a Pareto study."""
    if len(study.directions) > 1:
        return best_trials(study, None)
    return best_trials(study, max(_BEST_LEAST, round(_BEST_SHARE * len(trials))))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _layer(name: str) -> str:
    """``drop_07_attn`` as ``7a``."""
    match = re.fullmatch(r"drop_(\d+)(?:-(\d+))?(_attn|_mlp)?", name)
    if match is None:
        return name
    span = str(int(match[1])) if match[2] is None else f"{int(match[1])}-{int(match[2])}"
    return span + _HALVES.get(match[3] or "", "")
