"""Importance of each layer in a study: how often it was dropped, and how much dropping it cost.

Optuna's default importance (PED-ANOVA) finds the parameters that distinguish the best trials from
the good ones. A layer that every search soon learns to keep no longer distinguishes them, so it
looks unimportant there. Here the harm of each layer is estimated instead, by a ridge regression of
the losses on the dropped layers. The model is additive: it estimates the average cost of a layer
over the subsets that were tried, and no interactions between layers. In a search over widths, the
share of a sublayer that is removed takes the place of 0 and 1.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from optuna.distributions import IntDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from prunesearch.studies.selection import best_trials

_BEST_SHARE, _BEST_LEAST = 0.1, 5  # share of the trials that count as the best; their least number
_RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # strengths of the ridge per trial
_HALVES = {"_attn": "a", "_mlp": "m"}
_PARAMETER = re.compile(r"drop_(\d+)(?:-(\d+))?(_attn|_mlp)?|(?P<kind>mlp|kv)_(?P<layer>\d+)")
_WIDTHS = {"mlp": "m", "kv": "a"}


@dataclass(frozen=True)
class LayerImportance:
    """The importance of a layer or sublayer.

    Attributes:
        layer: name of the layer as in `layers`: ``7``, ``7a``, or ``4-5`` for blocks that are
            dropped together.
        dropped: share of the finished trials that drop the layer; for widths the mean share of it
            that they remove.
        dropped_best: the same of the best trials.
        with_, without: mean of the searched value in the trials that drop the layer, or a part of
            it, and in the others. None if there are no such trials.
        harm: by how much dropping the layer makes the value worse, minus the mean over all layers.
            It is in the units of the value; positive is worse. None if all trials drop the layer,
            or none does.
        stderr: standard error of the harm.
        rank: rank by harm; 1 for the layer that matters most.
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
    """Return every layer's importance, in the order of the model.

    The list is empty without finished trials.
    """
    trials = [
        t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if t.values
    ]
    if not trials:
        return []
    # 1. Make arrays of what the trials dropped and of their values.
    names = sorted(name for name in trials[0].params if _PARAMETER.fullmatch(name))
    dropped_TD = _dropped(trials, names)
    values_T = np.array([t.values[0] for t in trials])
    best_TD = _dropped(_best(study, trials), names)
    # 2. Estimate the harm of those layers that some trials drop and others keep.
    sign = -1.0 if study.directions[0] == StudyDirection.MAXIMIZE else 1.0
    varies_D = dropped_TD.min(0) < dropped_TD.max(0)
    harm_D, error_D = np.full(len(names), np.nan), np.full(len(names), np.nan)
    if len(trials) > 2 and varies_D.any():
        harm_D[varies_D], error_D[varies_D] = ridge(dropped_TD[:, varies_D], sign * values_T)
    # 3. Rank these layers, the most harmful first.
    varying = np.flatnonzero(varies_D)
    order = np.argsort(-harm_D[varying], kind="stable")
    ranks = dict(zip(varying[order].tolist(), range(1, len(varying) + 1), strict=True))
    # 4. Collect the figures of each layer.
    found = []
    for index, name in enumerate(names):
        gone_T, whole_T = dropped_TD[:, index] > 0, dropped_TD[:, index] == 0
        harm, stderr, rank = None, None, None
        if math.isfinite(harm_D[index]):
            harm, stderr, rank = float(harm_D[index]), float(error_D[index]), ranks[index]
        found.append(
            LayerImportance(
                layer=unit_of_parameter(name) or name,
                dropped=float(dropped_TD[:, index].mean()),
                dropped_best=float(best_TD[:, index].mean()),
                with_=_mean(values_T[gone_T]),
                without=_mean(values_T[whole_T]),
                harm=harm,
                stderr=stderr,
                rank=rank,
            )
        )
    return found


def _dropped(trials: Sequence[FrozenTrial], names: Sequence[str]) -> np.ndarray:
    """Return an array with a row per trial and a column per layer; 1 means that it is dropped.

    For widths, a number is the share of a sublayer that is removed.
    """
    rows = []
    for trial in trials:
        rows.append([_share(trial, name) for name in names])
    return np.array(rows, dtype=float)


def _share(trial: FrozenTrial, name: str) -> float:
    """Return how much of a layer a trial drops, from 0 to 1."""
    value = float(trial.params.get(name, 0))
    if name.startswith("drop_"):
        return value
    # A width is what is kept; the largest one is the whole sublayer.
    distribution = trial.distributions.get(name)
    if not isinstance(distribution, IntDistribution):
        return 0.0
    return 1.0 - value / distribution.high


def ridge(dropped_TD: np.ndarray, losses_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the harm of each layer and its standard error by ridge regression.

    The strength of the ridge is the one with the least leave-one-out prediction error. The ridge
    estimate is the mean of a posterior distribution, whose standard deviations are the standard
    errors.

    Args:
        dropped_TD: array with a row per trial and a column per layer; 1 where the trial drops the
            layer.
        losses_T: losses of the trials; less is better.

    Returns:
        The harm of each layer, and its standard error.
    """
    # 1. Centre both, and decompose the design matrix once for all strengths.
    x_TD, y_T = dropped_TD - dropped_TD.mean(0), losses_T - losses_T.mean()
    u_TK, s_K, v_KD = np.linalg.svd(x_TD, full_matrices=False)
    # 2. Choose the strength with the least leave-one-out error.
    least, penalty, rest_T = math.inf, math.nan, y_T
    for strength in _RIDGES:
        tried = strength * len(y_T)
        shrink_K = s_K**2 / (s_K**2 + tried)
        left_T = y_T - u_TK @ (shrink_K * (u_TK.T @ y_T))
        leverage_T = (u_TK**2) @ shrink_K + 1 / len(y_T)  # the mean is fitted too
        error = float(np.mean((left_T / np.maximum(1e-9, 1 - leverage_T)) ** 2))
        if error < least:
            least, penalty, rest_T = error, tried, left_T
    # 3. Compute the estimate, and the degrees of freedom that are left for the variance of the
    # noise.
    harm_D = v_KD.T @ (s_K / (s_K**2 + penalty) * (u_TK.T @ y_T))
    freedom = max(1.0, len(y_T) - 1 - float((s_K**2 / (s_K**2 + penalty)).sum()))
    # 4. Compute the variance of the posterior. In directions in which the trials do not differ, it
    # is that of the prior.
    inside_DD = (v_KD.T / (s_K**2 + penalty)) @ v_KD
    outside_DD = (np.eye(len(harm_D)) - v_KD.T @ v_KD) / penalty
    # 5. Harm is relative to the mean layer, so centre the estimate and its variance.
    centre_DD = np.eye(len(harm_D)) - 1 / len(harm_D)
    variance_D = (centre_DD @ (inside_DD + outside_DD) @ centre_DD).diagonal().clip(0)
    return harm_D - harm_D.mean(), np.sqrt(float(rest_T @ rest_T) / freedom * variance_D)


def _best(study: Study, trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
    """Return the best tenth of the trials, or the whole front of a Pareto study."""
    if len(study.directions) > 1:
        return best_trials(study, None)
    return best_trials(study, max(_BEST_LEAST, round(_BEST_SHARE * len(trials))))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def unit_of_parameter(name: str) -> str | None:
    """Return the unit that a parameter stands for: ``7a`` for ``drop_07_attn`` or ``kv_07``.

    It is None for a parameter of another kind.
    """
    match = _PARAMETER.fullmatch(name)
    if match is None:
        return None
    if match["kind"]:
        return f"{int(match['layer'])}{_WIDTHS[match['kind']]}"
    span = str(int(match[1]))
    if match[2] is not None:
        span = f"{span}-{int(match[2])}"
    return span + _HALVES.get(match[3] or "", "")
