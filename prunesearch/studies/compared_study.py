"""One study in a comparison, and whether two studies can be compared."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from prunesearch.analysis.anytime import best_places
from prunesearch.config.objective import ScoreWeights
from prunesearch.objectives.registry import REGISTRY
from prunesearch.runtime.json_values import json_as
from prunesearch.studies.recommendation import Recommendation
from prunesearch.studies.search_cost import SearchCost
from prunesearch.studies.study_data import StudyData

_KL_TOP = "kl_top"
SAME_SIZE = 0.005
"""Largest difference of the parameters of two winners of one budget, as a share of the larger."""


@dataclass(frozen=True)
class ComparedStudy:
    """A study in a comparison.

    Attributes:
        study, model, sampler, seed, objective: name and settings of the study.
        metric: name of the searched value.
        budget: what each candidate removes, as it was asked for.
        params: parameters that the winner keeps; None if they are not known.
        best: value of the best trial; None without one, and for a Pareto study.
        stderr: standard error of the winner's metric on the search data.
        dense: metric of the dense model.
        winner: layers that the best trial drops.
        front: number of trials on the front of a Pareto study; 0 for other studies.
        evaluations: number of finished trials, also those that a race ended early.
        distinct: number of different candidates among them.
        hits: number of trials that were found in the cache.
        running, failed: number of trials in these states.
        seconds: seconds that were spent on scoring.
        saved_seconds: seconds of scoring that the cache saved.
        wall_seconds: time from the first start to the last end of a trial. Breaks count.
        evaluations_to_best, seconds_to_best: evaluations and time until the best trial was found.
        best_at_equal: best value after `StudyComparison.equal_evaluations` evaluations.
        recommendation: how the winner was decided; None if its value is the best.
    """

    json_properties: ClassVar[tuple[str, ...]] = ("confirming_evaluations",)

    study: str
    model: str
    sampler: str
    seed: int | None
    objective: str
    metric: str
    budget: str
    params: int | None
    best: float | None
    stderr: float | None
    dense: float | None
    winner: str | None
    front: int
    evaluations: int
    distinct: int
    hits: int
    running: int
    failed: int
    seconds: float
    saved_seconds: float
    wall_seconds: float | None
    evaluations_to_best: int | None
    seconds_to_best: float | None
    best_at_equal: float | None = None
    recommendation: Recommendation | None = field(default=None, metadata=json_as(omit_none=True))

    @property
    def confirming_evaluations(self) -> float:
        """Scored documents that confirmed the winner, in evaluations of the search."""
        if self.recommendation is None:
            return 0.0
        return self.recommendation.spent / self.recommendation.documents


def row_of(study: StudyData) -> ComparedStudy:
    finished, cost = study.evaluated(), SearchCost.of(study)
    best = None if study.is_pareto else study.best()
    starts = [trial.started for trial in study.trials if trial.started is not None]
    to_best, seconds_to_best = None, None
    # Count until the best trial was found, itself included.
    if best is not None:
        to_best = [trial.number for trial in finished].index(best.number) + 1
        if best.finished is not None and starts:
            seconds_to_best = round(best.finished - min(starts), 3)
    params = None if best is None else best.figure("params")
    return ComparedStudy(
        study=study.name,
        model=study.model_name,
        sampler=study.sampler,
        seed=study.recipe.search.seed,
        objective=study.recipe.objective.task or study.recipe.objective.name,
        metric=study.value_names[0],
        budget=study.recipe.search.removed,
        params=None if params is None else int(params),
        best=None if best is None else best.values[0],
        stderr=None if best is None else study.error_of(best),
        dense=study.dense.get(study.metric),
        winner=None if best is None else best.dropped,
        front=len(study.front()) if study.is_pareto else 0,
        evaluations=len(finished),
        distinct=len({trial.dropped for trial in finished}),
        hits=cost.hits,
        running=sum(trial.state == "running" for trial in study.trials),
        failed=sum(trial.state == "fail" for trial in study.trials),
        seconds=round(cost.seconds, 3),
        saved_seconds=round(cost.saved_seconds, 3),
        wall_seconds=None if cost.span is None else round(cost.span, 3),
        evaluations_to_best=to_best,
        seconds_to_best=seconds_to_best,
        recommendation=study.recommendation,
    )


def best_after(study: StudyData, evaluations: int) -> float | None:
    """Return the best value of a study's first evaluations; None without one."""
    losses = study.search_losses()[:evaluations]
    if not losses:
        return None
    place = int(best_places(losses)[-1])
    return None if place < 0 else study.evaluated()[place].values[0]


def same_question(studies: Sequence[StudyData]) -> bool:
    """Return whether the values of all studies mean the same: model, data, metric and budget."""
    first = studies[0]
    if any(study.is_pareto for study in studies):
        return False
    return all(difference_of(first, other) is None for other in studies[1:])


def difference_of(first: StudyData, second: StudyData) -> str | None:
    """Return why the values of two studies cannot be compared; None if they can."""
    if first.model_content != second.model_content:
        return "they prune different models"
    if first.value_names[0] != second.value_names[0]:
        return f"one searches {first.value_names[0]} and one {second.value_names[0]}"
    if first.data_content != second.data_content:
        return "they score different data"
    one, other = value_settings(first), value_settings(second)
    if one != other:
        return _differing(first.value_names[0], one, other)
    return budget_difference(first, second)


def metric_difference(first: StudyData, second: StudyData) -> str | None:
    """Return how the metrics of two studies differ although they have one name; None if they do
    not.
    """
    if first.metric != second.metric:
        return None
    one, other = metric_settings(first, first.metric), metric_settings(second, second.metric)
    return None if one == other else _differing(first.metric, one, other)


def _differing(name: str, one: str, other: str) -> str:
    """Say how the settings of a value differ."""
    return f"the settings of {name} differ: {one or 'none'} and {other or 'none'}"


DEFAULT_SETTINGS = "default settings"
"""What is said of a value whose settings are the defaults, beside one with other settings."""


def value_settings(study: StudyData) -> str:
    """Return the settings of a study's first value that its name does not tell: those of the
    metric, and the weights of a weighted sum.
    """
    words = []
    if settings := metric_settings(study, study.metric):
        words.append(settings)
    weights = study.recipe.objective.score_weights
    if weights != ScoreWeights():
        words.append(
            f"quality={weights.quality:g}, size={weights.size:g}, latency={weights.latency:g}"
        )
    return ", ".join(words)


def metric_settings(study: StudyData, metric: str) -> str:
    """Return the settings of a metric that its name does not tell, such as ``kl_top 512``.

    Values with different settings cannot be compared. It is empty for a metric without settings.

    Args:
        study: study whose recipe has the settings.
        metric: name of the metric, which need not be the one that was searched.
    """
    objective = study.recipe.objective
    words = []
    is_mix = objective.is_mix and metric == study.metric
    if is_mix:
        words.append(objective.name)
    # KL and top-k KL have one name.
    takes_top = [entry.metric for entry in REGISTRY.entries() if _KL_TOP in entry.options]
    if objective.kl_top is not None and (is_mix or metric in takes_top):
        words.append(f"{_KL_TOP} {objective.kl_top}")
    return ", ".join(words)


def budget_difference(first: StudyData, second: StudyData) -> str | None:
    """Return how the budgets of two studies differ; None if they are equal.

    Budgets are equal if the winners keep equally many parameters, within half a percent. If these
    are not known, the amounts that were asked for must be equal.
    """
    one, other = first.recipe.search.removed, second.recipe.search.removed
    best, second_best = first.winner(), second.winner()
    # Compare what the winners keep, if both sizes are known.
    sizes: list[float] = []
    for trial in (best, second_best):
        size = None if trial is None else trial.figure("params")
        if size is not None:
            sizes.append(size)
    if len(sizes) == 2:
        if abs(sizes[0] - sizes[1]) <= SAME_SIZE * max(sizes):
            return None
        kept = f"keep {int(sizes[0]):,} and {int(sizes[1]):,} parameters"
        return f"their budgets are {one} and {other}: the winners {kept}"
    return None if one == other else f"their budgets are {one} and {other}"
