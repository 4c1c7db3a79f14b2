"""Summaries of studies and of their trials, for tables and JSON documents."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

import optuna
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from prunesearch.config.recipe import Recipe
from prunesearch.errors import StudyError
from prunesearch.runtime.json_values import Json, json_as
from prunesearch.studies import persistence, study_recipe
from prunesearch.studies.importance import LayerImportance, layer_importances
from prunesearch.studies.optuna_internals.access import backend_of
from prunesearch.studies.recommendation import STANDARD_ERROR_ATTR, Recommendation
from prunesearch.studies.selection import (
    SelectionCriteria,
    choose,
    recommendation_of,
    recommended_trials,
)
from prunesearch.studies.sources import SourceShares, source_shares
from prunesearch.studies.warm_start_source import WarmStartSource, source_in
from prunesearch.studies.writer_process import Writer


@dataclass(frozen=True)
class StudySummary:
    """One line of `prunesearch study list`.

    Attributes:
        partial_subsets: number of pruned trials: partial subsets, and candidates that lost a race.
        best_value, best_dropped: value and dropped layers of the best trial. None without finished
            trials, and for a Pareto study.
        front: number of trials on the front of a Pareto study; 0 for other studies.
        started: start of the first trial, with its time zone.
        running: number of trials that `writer` is evaluating. Without a writer, the number of
            trials that a killed search left. The next search finishes them.
        writer: the process that is searching the study, or None.
    """

    name: str
    model: str
    objective: str
    drop: str
    sampler: str
    trials: int
    running: int
    failed: int
    partial_subsets: int
    best_value: float | None
    best_dropped: str | None
    front: int
    started: datetime | None
    writer: Writer | None


@dataclass(frozen=True)
class TrialSummary:
    """A finished trial.

    Attributes:
        number: number of the trial.
        value: first value; None if the trial has none.
        values: all values.
        dropped: dropped layers, as ``3,7a,12m``.
        attributes: user attributes: metrics, costs, and facts about the scoring.
    """

    number: int
    value: float | None
    values: tuple[float, ...]
    dropped: str
    attributes: Mapping[str, Json]

    def figure(self, name: str | None) -> float | None:
        """Return an attribute that is a number. None if there is none of that name."""
        value = None if name is None else self.attributes.get(name)
        return value if isinstance(value, int | float) else None


@dataclass(frozen=True)
class StudyDetails:
    """What `prunesearch study show` prints: the summary, the recipe, the best trials, and the
    sources of the candidates if a language model proposed some, and of a warm start.
    """

    summary: StudySummary = field(metadata=json_as(inline=True))
    recipe: Recipe
    best: tuple[TrialSummary, ...]
    sources: SourceShares | None = field(default=None, metadata=json_as(omit_none=True))
    recommendation: Recommendation | None = field(default=None, metadata=json_as(omit_none=True))
    warm_start: WarmStartSource | None = field(default=None, metadata=json_as(omit_none=True))


@dataclass(frozen=True)
class ChosenTrial:
    """What `prunesearch study best` prints: the trial, and how it was decided if scores are noisy.

    Attributes:
        trial: the trial.
        recommendation: how it was decided; None without noise, and if the user's limits exclude
            the recommended trial.
        undecided: True if scores are noisy and it is not decided yet which trial is the best.
    """

    trial: TrialSummary = field(metadata=json_as(inline=True))
    recommendation: Recommendation | None = field(default=None, metadata=json_as(omit_none=True))
    undecided: bool | None = field(default=None, metadata=json_as(omit_none=True))


@dataclass(frozen=True)
class StudyLayers:
    """Importance of every layer in a study.

    Attributes:
        study: name of the study.
        metric: name of the searched value.
        trials: number of finished trials.
        layers: importances, in the order of the model.
    """

    study: str
    metric: str
    trials: int
    layers: tuple[LayerImportance, ...]


@dataclass(frozen=True)
class DeletedStudy:
    """Name of a deleted study, and the number of its trials."""

    deleted: str
    trials: int


def summarise(study: Study) -> StudySummary:
    """Count a study's trials and find its best trial.

    Raises:
        StudyError: the study holds no recipe.
    """
    recipe = study_recipe.recipe_of(study)
    trials = study.get_trials(deepcopy=False)
    states = Counter(trial.state for trial in trials)
    # A Pareto study has a front instead of a best trial.
    ranked = recommended_trials(study)
    best_value, best_dropped, front = None, None, 0
    if len(study.directions) > 1:
        front = len(ranked)
    elif ranked:
        best_value, best_dropped = ranked[0].values[0], ranked[0].user_attrs.get("dropped")
    database = backend_of(study)
    assert isinstance(database, RDBStorage), "studies with a recipe are kept in a database"
    starts = [trial.datetime_start for trial in trials if trial.datetime_start]
    return StudySummary(
        name=study.study_name,
        model=recipe.model.path,
        objective=recipe.objective.task or recipe.objective.name,
        drop=recipe.search.amount,
        sampler=recipe.search.sampler,
        trials=states[TrialState.COMPLETE],
        running=states[TrialState.RUNNING],
        failed=states[TrialState.FAIL],
        partial_subsets=states[TrialState.PRUNED],
        best_value=best_value,
        best_dropped=best_dropped,
        front=front,
        started=min(starts).astimezone() if starts else None,
        writer=persistence.writer_of(database, study.study_name),
    )


def summaries(storage: RDBStorage) -> list[StudySummary]:
    """Summarise every study that this version of prunesearch can read, in the order of names."""
    found = []
    for name in sorted(optuna.get_all_study_names(storage)):
        with suppress(StudyError):
            found.append(summarise(optuna.load_study(study_name=name, storage=storage)))
    return found


def summarise_trial(trial: FrozenTrial) -> TrialSummary:
    """Summarise a finished trial."""
    attributes = dict(trial.user_attrs)
    dropped = attributes.pop("dropped", "")
    values = tuple(trial.values or ())
    return TrialSummary(trial.number, values[0] if values else None, values, dropped, attributes)


def chosen_trial(study: Study, wanted: SelectionCriteria) -> ChosenTrial:
    """Return the best trial that meets limits; see `selection.choose`."""
    trial = summarise_trial(choose(study, wanted))
    decided = recommendation_of(study)
    undecided = True if decided is None and is_undecided(trial) else None
    if decided is not None and decided.chosen != trial.number:
        decided = None
    return ChosenTrial(trial, decided, undecided)


def is_undecided(best: TrialSummary) -> bool:
    """Return whether the best trial of a study without a recommendation may be best by luck.

    A front has no best trial, so there is nothing to decide.
    """
    return len(best.values) == 1 and bool(best.figure(STANDARD_ERROR_ATTR))


def details(study: Study, best: int) -> StudyDetails:
    """Return a study's summary, its recipe and its best trials.

    Args:
        study: the study.
        best: largest number of trials. All trials of a front are returned.

    Raises:
        StudyError: the study holds no recipe.
    """
    count = best if len(study.directions) == 1 else None
    trials = [summarise_trial(trial) for trial in recommended_trials(study)[:count]]
    return StudyDetails(
        summarise(study),
        study_recipe.recipe_of(study),
        tuple(trials),
        source_shares(study.get_trials(deepcopy=False)),
        recommendation_of(study),
        source_in(study),
    )


def layers_of(study: Study) -> StudyLayers:
    """Return the importance of every layer in a study.

    Raises:
        StudyError: the study holds no recipe.
    """
    metric = study.metric_names[0] if study.metric_names else "value"
    trials = summarise(study).trials
    return StudyLayers(study.study_name, metric, trials, tuple(layer_importances(study)))
