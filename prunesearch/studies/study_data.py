"""Reads a study whole, for reports and comparisons: its recipe, its trials and its dense model.

A study of 10,000 trials is read with a few queries. No model is loaded, and no torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self, cast

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from prunesearch.config.recipe import Recipe
from prunesearch.errors import StudyError, UnknownNameError
from prunesearch.objectives.registry import metric_labels
from prunesearch.runtime.json_values import JsonObject
from prunesearch.studies import persistence, study_columns, study_rows
from prunesearch.studies.dropped_units import block_count, dropped_shares, order_of_unit
from prunesearch.studies.pareto_knee import knee
from prunesearch.studies.recommendation import Recommendation, read_recommendation
from prunesearch.studies.selection import DENSE_ATTR, STDERR
from prunesearch.studies.stored_facts import (
    BlockLatencies,
    block_latencies,
    dense_costs,
    dense_metrics,
    stored_object,
    stored_text,
)
from prunesearch.studies.study_recipe import IDENTITY_ATTR
from prunesearch.studies.trial_rows import ListedTrial, StudyKey
from prunesearch.studies.warm_start_source import WARM_START_ATTR, WarmStartSource, source_of

LATENCY_ATTR = "latency_model"
"""User attribute of a study: the latencies of the model's blocks."""
State = Literal["complete", "pruned", "fail", "running", "waiting"]


@dataclass(frozen=True)
class TrialData:
    """A trial of a study.

    Attributes:
        number: number of the trial.
        state: state of the trial.
        values: its values; empty without.
        dropped: what it drops, as ``3,7a`` or ``3:1024/2``. Empty if it is not known.
        attributes: its other user attributes: metrics and their standard errors, `params`, `bytes`,
            `latency_ms`, `seconds`, `saved_seconds`, `cache` and others.
        started, finished: times in seconds since 1970.
        parents: numbers of the trials that it was derived from; empty if they are not known.
    """

    number: int
    state: State
    values: tuple[float, ...]
    dropped: str
    attributes: JsonObject
    started: float | None = None
    finished: float | None = None
    parents: tuple[int, ...] = ()

    @property
    def is_finite(self) -> bool:
        """True if the trial has values and all of them are finite."""
        return bool(self.values) and all(map(math.isfinite, self.values))

    def figure(self, name: str) -> float | None:
        """Return an attribute that is a number; None if there is none of that name."""
        value = self.attributes.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return value


@dataclass(frozen=True)
class StudyData:
    """A study, read whole.

    Attributes:
        name: name of the study.
        recipe: recipe that it was made with.
        model_name: name of the model, without the folders of any machine.
        model_content: fingerprint of the model; empty if the study holds none.
        data_content: digest of the data that candidates are scored on; empty if it holds none.
        sampler: name of the sampler.
        metric: name of the metric of quality, which trials have as an attribute.
        metric_label: displayed name of the first value.
        more_is_better: whether a larger first value is better.
        n_layers: number of blocks of the model.
        units: what a candidate may drop, in the order of the model: ``3``, ``3a``, ``4-5``.
        dense: metrics of the dense model; empty if they are not known.
        latency: the stored latency model; None without.
        trials: trials in the order of their numbers.
        value_names: names of the values, such as ``kl``, ``weighted kl`` or ``bytes``.
        maximize: for each value, whether more is better.
        identity: everything that decides the trials.
        unit_sizes: for each unit 1, or the number of channels or KV groups that it has.
        asked: number of trials that was asked for last; None if it is not known.
        recommendation: how the best trial was decided; None if its value is the best.
        warm_start: where prior knowledge comes from; None if the study began without.
        dense_costs: ``params``, ``bytes`` and ``latency_ms`` of the dense model; empty if they are
            not known, as in studies of earlier versions.
    """

    name: str
    recipe: Recipe
    model_name: str
    model_content: str
    data_content: str
    sampler: str
    metric: str
    metric_label: str
    more_is_better: bool
    n_layers: int
    units: tuple[str, ...]
    dense: Mapping[str, float]
    latency: BlockLatencies | None
    trials: tuple[TrialData, ...]
    value_names: tuple[str, ...]
    maximize: tuple[bool, ...]
    identity: JsonObject
    unit_sizes: tuple[int, ...]
    asked: int | None = None
    recommendation: Recommendation | None = None
    warm_start: WarmStartSource | None = None
    dense_costs: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_pareto(self) -> bool:
        """True if the study has several values."""
        return len(self.maximize) > 1

    def complete(self) -> tuple[TrialData, ...]:
        """Return the finished trials whose values are all finite, in the order of their numbers."""
        found = []
        for trial in self.trials:
            if trial.state == "complete" and trial.is_finite:
                found.append(trial)
        return tuple(found)

    def evaluated(self) -> tuple[TrialData, ...]:
        """Return the trials that count as evaluations: finished ones, and those that ended early.

        Those that ended early are partial subsets and candidates that lost a race.
        """
        return tuple(trial for trial in self.trials if trial.state in ("complete", "pruned"))

    def search_losses(self) -> list[float]:
        """Return the first value of each evaluation with the sign that makes less better.

        It is NaN for a trial that ended early and for one whose values are not finite: neither can
        be the best.
        """
        losses = []
        for trial in self.evaluated():
            is_result = trial.state == "complete" and trial.is_finite
            losses.append(self.losses(trial)[0] if is_result else math.nan)
        return losses

    def require_finished(self) -> Self:
        """Return the study itself.

        Raises:
            StudyError: it has no finished trial.
        """
        if not self.complete():
            raise StudyError(f"study {self.name!r} has no finished trial yet: run its search first")
        return self

    def losses(self, trial: TrialData) -> tuple[float, ...]:
        """Return the values of a trial with the sign that makes less better."""
        signed = []
        for value, more in zip(trial.values, self.maximize, strict=True):
            signed.append(-value if more else value)
        return tuple(signed)

    def error_of(self, trial: TrialData) -> float | None:
        """Return the standard error of a trial's first value; None if it is not known.

        That of a weighted value is the error of its metric, multiplied by the weight of quality.
        """
        error = trial.figure(self.metric + STDERR)
        if error is None or self.value_names[0] == self.metric:
            return error
        return error * self.recipe.objective.score_weights.quality

    def ranked(self) -> tuple[TrialData, ...]:
        """Return the finished trials by their first value, the best first.

        Of equal trials the earlier comes first.
        """
        return tuple(sorted(self.complete(), key=lambda t: (*self.losses(t), t.number)))

    def best(self) -> TrialData | None:
        """Return the recommended trial where scores are noisy, else the trial of the best first
        value; None without finished trials.
        """
        if self.recommendation is not None:
            return self.trials[self.recommendation.chosen]
        return self.naive_best()

    def naive_best(self) -> TrialData | None:
        """Return the trial of the best first value; None without finished trials."""
        ranked = self.ranked()
        return ranked[0] if ranked else None

    def front(self) -> tuple[TrialData, ...]:
        """Return the trials that no other trial dominates, the best first value first.

        For a study with one value this is its best trial.
        """
        ranked = self.ranked()
        if not self.is_pareto:
            return ranked[:1]
        # Quality falls along the list, so a trial is on the front if its second value is smaller
        # than those of all trials before it.
        front: list[TrialData] = []
        for trial in ranked:
            if not front or self.losses(trial)[1] < self.losses(front[-1])[1]:
                front.append(trial)
        return tuple(front)

    def winner(self) -> TrialData | None:
        """Return the best trial, or the knee of a front; None without finished trials."""
        front = self.front()
        if not self.is_pareto or not front:
            return self.best()
        # The knee is seen from the dense model, or from the front's first member if the dense
        # model's costs are not known.
        losses = [self.losses(trial) for trial in front]
        dense = {**self.dense, **self.dense_costs}
        start = losses[0]
        if all(name in dense for name in self.value_names):
            first, second = (dense[name] for name in self.value_names)
            start = (-first if self.maximize[0] else first, second)
        return front[knee(losses, start)]

    def dropped_shares(self, trials: Sequence[TrialData]) -> NDArray[np.float64]:
        """Return how much of each unit trials drop, from 0 to 1.

        Args:
            trials: trials of the study.

        Returns:
            Array with a row for each trial and a column for each unit.
        """
        return dropped_shares([trial.dropped for trial in trials], self.units, self.unit_sizes)


def read_study(storage: str | Connection, name: str) -> StudyData:
    """Read a study.

    Args:
        storage: URL of the database of studies, or a connection to it.
        name: name of the study.

    Raises:
        UnknownNameError: there is no study of this name.
        StudyError: prunesearch did not make the study, or another version did.
        StorageError: see `persistence.open_storage`.
    """
    return read_studies(storage, [name])[0]


def read_studies(storage: str | Connection, names: Sequence[str]) -> tuple[StudyData, ...]:
    """Read several studies of one database; see `read_study`."""
    if isinstance(storage, Connection):
        return tuple(_read(storage, name) for name in names)
    with (
        persistence.opened_briefly(storage) as opened,
        opened.engine.connect() as connection,
        connection.begin(),
    ):
        return tuple(_read(connection, name) for name in names)


def find_study(connection: Connection, name: str) -> StudyKey:
    """Find a study that prunesearch made; see `read_study` for the errors."""
    found = study_rows.find_studies(connection, 1, name=name) if "\0" not in name else []
    if found:
        return found[0]
    others = study_rows.study_names(connection)
    if name in others:
        raise StudyError(f"study {name!r} holds no recipe: it was not made by prunesearch")
    raise UnknownNameError("study", name, others)


def _read(connection: Connection, name: str) -> StudyData:
    key = find_study(connection, name)
    recipe = study_rows.recipe_of(key)
    if recipe is None:
        raise StudyError(
            f"study {name!r} was made by another version of prunesearch: use that one to read it"
        )
    # 1. What the study itself holds.
    attributes = study_columns.study_attributes(connection, key.id)
    identity = stored_object(attributes.get(IDENTITY_ATTR))
    latency = block_latencies(stored_object(attributes.get(LATENCY_ATTR)))
    of_dense = stored_object(attributes.get(DENSE_ATTR))
    metric, dense = dense_metrics(of_dense)
    names = study_columns.metric_names(connection, key.id)
    if len(names) != len(key.maximize):
        names = tuple(f"value {index}" for index in range(len(key.maximize)))
    metric = metric or names[0]
    asked = attributes.get(persistence.TRIALS_ATTR)
    # 2. Its trials and units.
    parents = study_columns.parents_of(connection, key.id)
    trials = []
    for listed in study_columns.read_trials(connection, key.id):
        trials.append(_trial(listed, parents.get(listed.number, ())))
    sizes = study_columns.units_of(connection, key.id)
    units = sorted(sizes, key=order_of_unit)
    label = metric_labels().get(metric, metric)
    if names[0] != metric and names[0].startswith("weighted"):
        label = f"weighted {label}"
    complete = sum(trial.state == "complete" and bool(trial.values) for trial in trials)
    return StudyData(
        name=key.name,
        recipe=recipe,
        model_name=recipe.portable().model.path,
        model_content=stored_text(identity, "model content"),
        data_content=stored_text(identity, "data content"),
        sampler=recipe.search.sampler,
        metric=metric,
        metric_label=label,
        more_is_better=key.maximize[0],
        n_layers=len(latency.block_ms) if latency else block_count(units),
        units=tuple(units),
        dense=dense,
        latency=latency,
        trials=tuple(trials),
        value_names=names,
        maximize=key.maximize,
        identity=identity,
        unit_sizes=tuple(sizes[unit] for unit in units),
        asked=asked if isinstance(asked, int) else None,
        recommendation=read_recommendation(attributes, complete),
        warm_start=source_of(stored_object(attributes.get(WARM_START_ATTR))),
        dense_costs=dense_costs(of_dense),
    )


def _trial(listed: ListedTrial, parents: tuple[int, ...]) -> TrialData:
    values = tuple(math.nan if value is None else value for value in listed.values)
    return TrialData(
        number=listed.number,
        state=cast(State, listed.state),
        values=values,
        dropped=listed.dropped,
        attributes=listed.attributes,
        started=listed.started,
        finished=listed.finished,
        parents=parents,
    )
