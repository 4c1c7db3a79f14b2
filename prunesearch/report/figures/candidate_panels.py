"""Panels of the candidates of searches: quality against size or latency, and the hypervolume."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from prunesearch.analysis.intervals import half_width, standard_error
from prunesearch.analysis.pareto import hypervolume_history
from prunesearch.report.figures.figure import SEARCHED_ON, Panel, Rule, Series
from prunesearch.report.figures.pooled import PooledStudies
from prunesearch.report.figures.scales import GIB, needs_logarithm
from prunesearch.report.figures.styles import DENSE, style_of
from prunesearch.report.figures.thinning import thinned
from prunesearch.report.figures.units import joined
from prunesearch.studies.study_data import StudyData, TrialData

_EQUAL = 0.999  # least share of the largest cost, from which costs do not differ


@dataclass(frozen=True)
class CostAxis:
    """What a candidate saves, as a horizontal axis.

    Attributes:
        attribute: attribute of trials.
        label: label of the axis.
        scale: what a value is divided by.
        title: end of the panel's title.
    """

    attribute: str
    label: str
    scale: float
    title: str


SIZE = CostAxis("bytes", "size (GiB)", GIB, "size")
LATENCY = CostAxis("latency_ms", "latency of a prefill, predicted (ms)", 1.0, "latency")


def search_panel(
    group: PooledStudies,
    cost: CostAxis,
    names: dict[str, str],
    baselines: Sequence[Series],
) -> list[Panel]:
    """Return the panel of a group's candidates; none if all candidates cost nearly the same.

    Args:
        group: the studies.
        cost: the horizontal axis.
        names: short names of the studies.
        baselines: what was measured on the same data, against this cost.
    """
    # 1. The means over studies are named in the legend, so their studies are not.
    means: dict[str, list[Series]] = {}
    for sampler, studies in group.by_sampler().items():
        means[sampler] = _winner_series(sampler, studies, cost)
    # 2. Draw the candidates and fronts of each study.
    content: list[Series] = []
    values: list[float] = []
    for study in group.studies:
        points = _points(study.complete(), cost)
        named = study.is_pareto or not means[study.sampler]
        content += _study_series(study, points, names[study.name], named)
        values += [trial.values[0] for _, trial in points]
    # 3. Add the means, the dense model and the baselines.
    log_y = needs_logarithm(values)
    for series_of_sampler in means.values():
        content += series_of_sampler
    for series in (*_dense_point(group.studies, cost), *baselines):
        if not log_y or min(series.y) > 0:
            content.append(series)
    places = [place for series in content for place in series.x if isinstance(place, float)]
    if not places or min(places) >= _EQUAL * max(places):
        return []
    return [
        Panel(
            joined(group.title, f"against {cost.title} ({SEARCHED_ON})"),
            cost.label,
            group.value_label,
            tuple(content),
            rules=_dense_rule(group.studies[0], log_y),
            log_y=log_y,
        )
    ]


def _points(trials: Iterable[TrialData], cost: CostAxis) -> list[tuple[float, TrialData]]:
    """Return the cost of each trial whose cost is known."""
    found = []
    for trial in trials:
        amount = trial.figure(cost.attribute)
        if amount is not None and math.isfinite(amount):
            found.append((amount / cost.scale, trial))
    return found


def _study_series(
    study: StudyData, points: Sequence[tuple[float, TrialData]], name: str, named: bool
) -> list[Series]:
    """Return the candidates of a study, and its front.

    Args:
        study: the study.
        points: costs and trials; may be empty.
        name: short name of the study.
        named: whether the legend names the study.
    """
    if not points:
        return []
    style = style_of(study.sampler)
    front = attained(study, points)
    on_front = {trial.number for _, trial in front}
    keep = [place for place, (_, trial) in enumerate(points) if trial.number in on_front]
    candidates = Series(
        f"{name}: candidates",
        [x for x, _ in points],
        [trial.values[0] for _, trial in points],
        "points",
        style=style,
        labels=[_label(trial) for _, trial in points],
        emphasis="faint",
        in_legend=False,
    )
    best = Series(
        name,
        [x for x, _ in front],
        [trial.values[0] for _, trial in front],
        "step" if len(front) > 1 else "points",
        style=style,
        labels=[_label(trial) for _, trial in front],
        emphasis="strong",
        in_legend=named,
    )
    return [thinned(candidates, keep), best]


def _winner_series(sampler: str, studies: Sequence[StudyData], cost: CostAxis) -> list[Series]:
    """Return the mean of the best values that a sampler found for each amount that is removed.

    There is none for a single amount. Studies of the same amount, such as those of several seeds,
    are one point with a 95 % interval.
    """
    # 1. Collect the best trials of each amount.
    winners: dict[str, list[tuple[float, float]]] = {}
    for study in studies:
        best = study.best()
        if study.is_pareto or best is None:
            continue
        for x, trial in _points([best], cost):
            pair = x, trial.values[0]
            winners.setdefault(study.recipe.search.amount, []).append(pair)
    if len(winners) < 2:
        return []
    # 2. Take the means.
    rows = []
    for pairs in winners.values():
        values = np.array([value for _, value in pairs])
        error = 0.0
        if len(pairs) > 1:
            error = half_width(len(pairs)) * standard_error(values)
        mean = float(values.mean())
        rows.append((float(np.mean([x for x, _ in pairs])), mean, mean - error, mean + error))
    rows.sort()
    return [
        Series(
            f"{sampler}: best",
            [row[0] for row in rows],
            [row[1] for row in rows],
            "line",
            [row[2] for row in rows],
            [row[3] for row in rows],
            style_of(sampler),
        )
    ]


def _label(trial: TrialData) -> str:
    """Return the text of a point."""
    dropped = trial.dropped
    if len(dropped) > 60:
        dropped = f"{dropped[:57]}..."
    return f"trial {trial.number}: {dropped}"


def attained(
    study: StudyData, points: Sequence[tuple[float, TrialData]]
) -> list[tuple[float, TrialData]]:
    """Return the points that no point of at most equal cost is better than, the cheapest first.

    Args:
        study: study of the trials.
        points: pairs of a cost and a trial.
    """
    found: list[tuple[float, TrialData]] = []
    ordered = sorted(points, key=lambda point: (point[0], study.losses(point[1])[0]))
    least = math.inf
    for cost, trial in ordered:
        loss = study.losses(trial)[0]
        if loss < least:
            found.append((cost, trial))
            least = loss
    return found


def _dense_point(studies: Sequence[StudyData], cost: CostAxis) -> list[Series]:
    """Return the dense model's point, if its latency is known from the model of the blocks."""
    for study in studies:
        value = study.dense.get(study.value_names[0])
        if cost is LATENCY and value is not None and study.latency is not None:
            x = study.latency.dense_ms
            return [Series("dense", [x], [value], "points", style=DENSE, emphasis="strong")]
    return []


def _dense_rule(study: StudyData, log_y: bool) -> tuple[Rule, ...]:
    """Return the line of the dense model, if it has a place on the axis."""
    dense = study.dense.get(study.metric)
    weighted = study.value_names[0] != study.metric
    if dense is None or weighted or (log_y and dense <= 0):
        return ()
    return (Rule(dense, "dense", style=DENSE),)


def hypervolume_panel(group: PooledStudies, names: dict[str, str]) -> list[Panel]:
    """Return the panels of the hypervolume after each evaluation; none without Pareto studies.

    Studies against the size have another panel than those against the latency.
    """
    by_values: dict[tuple[str, ...], list[StudyData]] = {}
    for study in group.studies:
        if study.is_pareto:
            by_values.setdefault(study.value_names, []).append(study)
    panels = []
    for value_names, studies in by_values.items():
        title = joined(group.title, "hypervolume")
        if len(by_values) > 1:
            title += f" of {' and '.join(value_names)}"
        panels.append(_hypervolume(studies, title, names))
    return panels


def _hypervolume(studies: Sequence[StudyData], title: str, names: dict[str, str]) -> Panel:
    """Return the panel of the hypervolume of studies with the same values."""
    # 1. Scale the losses of all candidates to a box of side 1, so that studies can be compared.
    losses = []
    for study in studies:
        losses.append(np.array([study.losses(trial) for trial in study.complete()]))
    every_ND = np.concatenate(losses)
    least_D, most_D = every_ND.min(axis=0), every_ND.max(axis=0)
    span_D = np.where(most_D > least_D, most_D - least_D, 1.0)
    # 2. Compute the volume of each study's front after each evaluation.
    content = []
    for study, losses_ND in zip(studies, losses, strict=True):
        history_N = hypervolume_history((losses_ND - least_D) / span_D, np.ones(len(span_D)))
        changed = [0, *(np.flatnonzero(np.diff(history_N)) + 1).tolist(), len(history_N) - 1]
        places = sorted(set(changed))
        content.append(
            Series(
                names[study.name],
                [float(place + 1) for place in places],
                [float(history_N[place]) for place in places],
                "step",
                style=style_of(study.sampler),
            )
        )
    return Panel(
        title, "evaluations", "hypervolume (share of the box of all candidates)", tuple(content)
    )
