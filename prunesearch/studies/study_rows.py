"""Reads lists of studies and trials with a few queries, without building Optuna's objects.

A study of 10,000 trials is listed in milliseconds. What needs every parameter of every trial, such
as the importance of layers, is read by `persistence` instead.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import Connection

from prunesearch.config.recipe import Recipe
from prunesearch.runtime.json_values import Json, JsonObject
from prunesearch.studies.optuna_internals import tables
from prunesearch.studies.optuna_internals.storage import (
    TRIAL_FINISHED,
    TRIAL_STARTED,
    DirectionRow,
    StudyAttributeRow,
    StudyRow,
    TrialRow,
    UserAttributeRow,
    ValueRow,
)
from prunesearch.studies.study_recipe import RECIPE_ATTR

_MOST_IDS = 500  # in one IN clause; every database takes that many


@dataclass(frozen=True)
class ListedStudy:
    """A study in a list.

    Attributes:
        name: name of the study.
        model, objective, drop, sampler: settings of its recipe. None if the recipe cannot be read.
        trials, running, failed, partial_subsets: number of trials in each state.
        best_value, best_dropped, best_number: the best trial. None without finished trials, and
            for a Pareto study.
        objectives: number of values of a trial.
        started, finished: start of the first trial and end of the last one, in seconds since 1970.
    """

    name: str
    model: str | None
    objective: str | None
    drop: str | None
    sampler: str | None
    trials: int
    running: int
    failed: int
    partial_subsets: int
    best_value: float | None
    best_dropped: str | None
    best_number: int | None
    objectives: int
    started: float | None
    finished: float | None


@dataclass(frozen=True)
class ListedTrial:
    """A trial in a list.

    Attributes:
        number: number of the trial.
        state: state of the trial, in lower case.
        values: its values; empty without.
        dropped: dropped layers, as ``3,7a,12m``.
        attributes: the other user attributes.
        started, finished: times in seconds since 1970.
    """

    number: int
    state: str
    values: tuple[float | None, ...]
    dropped: str
    attributes: JsonObject
    started: float | None
    finished: float | None


@dataclass(frozen=True)
class StudyKey:
    """A study, as queries name it.

    Attributes:
        id: number by which the storage knows it.
        name: name of the study.
        recipe: text of its recipe, as it is stored.
        maximize: for each value, whether more is better.
    """

    id: int
    name: str
    recipe: str
    maximize: tuple[bool, ...]


def find_studies(
    connection: Connection, limit: int, after: str = "", name: str | None = None
) -> list[StudyKey]:
    """Return studies that prunesearch made, in the order of their names.

    Args:
        connection: database of the studies.
        limit: largest number of studies.
        after: only studies with later names.
        name: only the study of this name.
    """
    if not tables.are_there(connection):
        return []
    query = (
        sqlalchemy.select(StudyRow.study_id, StudyRow.study_name, StudyAttributeRow.value_json)
        .join(StudyAttributeRow, StudyAttributeRow.study_id == StudyRow.study_id)
        .where(StudyAttributeRow.key == RECIPE_ATTR, StudyRow.study_name > after)
        .order_by(StudyRow.study_name)
        .limit(limit)
    )
    if name is not None:
        query = query.where(StudyRow.study_name == name)
    rows = connection.execute(query).all()
    directions = _directions(connection, [row.study_id for row in rows])
    found = []
    for row in rows:
        maximize = tuple(directions.get(row.study_id, ()))
        found.append(StudyKey(row.study_id, row.study_name, row.value_json, maximize))
    return found


def _directions(connection: Connection, ids: Sequence[int]) -> dict[int, list[bool]]:
    query = (
        sqlalchemy.select(DirectionRow.study_id, DirectionRow.direction)
        .where(DirectionRow.study_id.in_(ids))
        .order_by(DirectionRow.study_id, DirectionRow.objective)
    )
    found: defaultdict[int, list[bool]] = defaultdict(list)
    for study_id, direction in connection.execute(query):
        found[study_id].append(direction == StudyDirection.MAXIMIZE)
    return found


def list_studies(connection: Connection, keys: Sequence[StudyKey]) -> list[ListedStudy]:
    """Count the trials of studies and find their best ones, with three queries for all of them."""
    ids = [key.id for key in keys]
    # 1. Count the trials by state.
    number = sqlalchemy.func.count()
    counts: defaultdict[int, dict[TrialState, int]] = defaultdict(dict)
    times: dict[int, list[datetime]] = defaultdict(list)
    query = (
        sqlalchemy.select(
            TrialRow.study_id,
            TrialRow.state,
            number,
            sqlalchemy.func.min(TRIAL_STARTED),
            sqlalchemy.func.max(TRIAL_FINISHED),
        )
        .where(TrialRow.study_id.in_(ids))
        .group_by(TrialRow.study_id, TrialRow.state)
    )
    for study_id, state, count, first, last in connection.execute(query):
        counts[study_id][state] = count
        times[study_id] += [time for time in (first, last) if time is not None]
    # 2. Find the best trials, and what they drop.
    best = _best(connection, [key for key in keys if len(key.maximize) == 1])
    dropped = _dropped(connection, [trial_id for trial_id, _, _ in best.values()])
    # 3. Put the parts together.
    found = []
    for key in keys:
        recipe = recipe_of(key)
        states, trial = counts[key.id], best.get(key.id)
        seen = times[key.id]
        found.append(
            ListedStudy(
                name=key.name,
                model=recipe.portable().model.path if recipe else None,
                objective=(recipe.objective.task or recipe.objective.name) if recipe else None,
                drop=recipe.search.drop if recipe else None,
                sampler=recipe.search.sampler if recipe else None,
                trials=states.get(TrialState.COMPLETE, 0),
                running=states.get(TrialState.RUNNING, 0),
                failed=states.get(TrialState.FAIL, 0),
                partial_subsets=states.get(TrialState.PRUNED, 0),
                best_value=trial[2] if trial else None,
                best_dropped=dropped.get(trial[0]) if trial else None,
                best_number=trial[1] if trial else None,
                objectives=len(key.maximize),
                started=_seconds(min(seen)) if seen else None,
                finished=_seconds(max(seen)) if seen else None,
            )
        )
    return found


def recipe_of(key: StudyKey) -> Recipe | None:
    """Return the recipe of a study. None: it cannot be read, as another version wrote it."""
    try:
        # The attribute is a JSON text, which holds a JSON document as a text.
        return Recipe.of_stored(json.loads(json.loads(key.recipe)))
    except (ValueError, TypeError, RecursionError):
        return None


def _best(connection: Connection, keys: Sequence[StudyKey]) -> dict[int, tuple[int, int, float]]:
    """Return id, number and value of the best trial of each study with one value."""
    found: dict[int, tuple[int, int, float]] = {}
    for maximize in (False, True):
        ids = [key.id for key in keys if key.maximize == (maximize,)]
        if not ids:
            continue
        order = ValueRow.value.desc() if maximize else ValueRow.value.asc()
        rank = sqlalchemy.func.row_number().over(
            partition_by=TrialRow.study_id, order_by=(order, TrialRow.number)
        )
        ranked = (
            sqlalchemy.select(
                TrialRow.study_id,
                TrialRow.trial_id,
                TrialRow.number,
                ValueRow.value,
                rank.label("rank"),
            )
            .join(ValueRow, ValueRow.trial_id == TrialRow.trial_id)
            .where(
                TrialRow.study_id.in_(ids),
                TrialRow.state == TrialState.COMPLETE,
                ValueRow.value.is_not(None),
            )
            .subquery()
        )
        query = sqlalchemy.select(ranked).where(ranked.c.rank == 1)
        for row in connection.execute(query):
            found[row.study_id] = (row.trial_id, row.number, row.value)
    return found


def _dropped(connection: Connection, ids: Sequence[int]) -> dict[int, str]:
    found = {}
    for trial_id, attributes in _attributes(connection, ids, ("dropped",)).items():
        found[trial_id] = str(attributes["dropped"])
    return found


def list_trials(
    connection: Connection,
    key: StudyKey,
    limit: int,
    first: int = 0,
    states: Collection[TrialState] = (),
) -> list[ListedTrial]:
    """Return trials of a study in the order of their numbers.

    Args:
        connection: database of the study.
        key: the study.
        limit: largest number of trials.
        first: smallest number of a trial.
        states: states of the trials; empty for all.
    """
    query = (
        sqlalchemy.select(
            TrialRow.trial_id,
            TrialRow.number,
            TrialRow.state,
            TRIAL_STARTED.label("started"),
            TRIAL_FINISHED.label("finished"),
        )
        .where(TrialRow.study_id == key.id, TrialRow.number >= first)
        .order_by(TrialRow.number)
        .limit(limit)
    )
    if states:
        query = query.where(TrialRow.state.in_(list(states)))
    rows = connection.execute(query).all()
    ids = [row.trial_id for row in rows]
    return list(_trials(connection, rows, ids))


def front_of(connection: Connection, key: StudyKey) -> list[ListedTrial]:
    """Return the finished trials that no other trial dominates, the best quality first.

    For a study with one value these are its best trials of equal value: the first of them.
    """
    # 1. Read all values. A sign turns each into a loss.
    signs = [-1.0 if more else 1.0 for more in key.maximize]
    losses: defaultdict[int, dict[int, float]] = defaultdict(dict)
    numbers: dict[int, int] = {}
    query = (
        sqlalchemy.select(TrialRow.trial_id, TrialRow.number, ValueRow.objective, ValueRow.value)
        .join(ValueRow, ValueRow.trial_id == TrialRow.trial_id)
        .where(
            TrialRow.study_id == key.id,
            TrialRow.state == TrialState.COMPLETE,
            ValueRow.value.is_not(None),
        )
    )
    for trial_id, number, objective, value in connection.execute(query):
        losses[trial_id][objective] = signs[objective] * value
        numbers[trial_id] = number
    complete = []
    for trial_id, found in losses.items():
        if len(found) == len(signs):
            values = tuple(found[index] for index in range(len(signs)))
            complete.append((values, numbers[trial_id], trial_id))
    # 2. In the order of quality, a trial is on the front if no trial before it dominates it.
    front: list[tuple[tuple[float, ...], int, int]] = []
    for entry in sorted(complete):
        if not any(_dominates(other[0], entry[0]) for other in front):
            front.append(entry)
    # 3. Read these trials.
    ids = [entry[2] for entry in front]
    rows: list[Any] = []
    for start in range(0, len(ids), _MOST_IDS):
        heads = sqlalchemy.select(
            TrialRow.trial_id,
            TrialRow.number,
            TrialRow.state,
            TRIAL_STARTED.label("started"),
            TRIAL_FINISHED.label("finished"),
        ).where(TrialRow.trial_id.in_(ids[start : start + _MOST_IDS]))
        rows += connection.execute(heads).all()
    place = {trial_id: index for index, trial_id in enumerate(ids)}
    rows.sort(key=lambda row: place[row.trial_id])
    return list(_trials(connection, rows, ids))


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether a trial is at least as good in every value. Of equal ones the first stays."""
    return all(a <= b for a, b in zip(one, other, strict=True))


def attribute_names(connection: Connection, key: StudyKey) -> list[str]:
    """Return the names of the user attributes that trials of a study have, without `dropped`."""
    query = (
        sqlalchemy.select(UserAttributeRow.key)
        .join(TrialRow, TrialRow.trial_id == UserAttributeRow.trial_id)
        .where(TrialRow.study_id == key.id, UserAttributeRow.key != "dropped")
        .distinct()
    )
    return sorted(connection.execute(query).scalars())


def _trials(
    connection: Connection, rows: Sequence[Any], ids: Sequence[int]
) -> Iterator[ListedTrial]:
    """Yield trials with their values and attributes."""
    values, attributes = _values(connection, ids), _attributes(connection, ids)
    for row in rows:
        kept = attributes.get(row.trial_id, {})
        yield ListedTrial(
            number=row.number,
            state=row.state.name.lower(),
            values=tuple(values.get(row.trial_id, ())),
            dropped=str(kept.pop("dropped", "")),
            attributes=kept,
            started=_seconds(row.started),
            finished=_seconds(row.finished),
        )


def _values(connection: Connection, ids: Sequence[int]) -> dict[int, list[float | None]]:
    found: defaultdict[int, list[float | None]] = defaultdict(list)
    for start in range(0, len(ids), _MOST_IDS):
        query = (
            sqlalchemy.select(ValueRow.trial_id, ValueRow.value)
            .where(ValueRow.trial_id.in_(ids[start : start + _MOST_IDS]))
            .order_by(ValueRow.trial_id, ValueRow.objective)
        )
        for trial_id, value in connection.execute(query):
            found[trial_id].append(value)
    return found


def _attributes(
    connection: Connection, ids: Sequence[int], names: Sequence[str] = ()
) -> dict[int, JsonObject]:
    found: defaultdict[int, JsonObject] = defaultdict(dict)
    for start in range(0, len(ids), _MOST_IDS):
        query = sqlalchemy.select(
            UserAttributeRow.trial_id, UserAttributeRow.key, UserAttributeRow.value_json
        ).where(UserAttributeRow.trial_id.in_(ids[start : start + _MOST_IDS]))
        if names:
            query = query.where(UserAttributeRow.key.in_(names))
        for trial_id, name, text in connection.execute(query):
            value: Json = json.loads(text)
            found[trial_id][name] = value
    return found


def _seconds(utc: datetime | None) -> float | None:
    """Return a stored time, which is in UTC without a zone, in seconds since 1970."""
    return None if utc is None else utc.replace(tzinfo=UTC).timestamp()
