"""Reads lists of trials with a few queries, without building Optuna's objects."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy
from optuna.trial import TrialState
from sqlalchemy import Connection, Select

from prunesearch.runtime.json_values import Json, JsonObject
from prunesearch.studies.optuna_internals.storage import (
    TRIAL_FINISHED,
    TRIAL_STARTED,
    TrialRow,
    UserAttributeRow,
    ValueRow,
)

_MOST_IDS = 500  # in one IN clause; every database takes that many


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


def trials_query(study_id: int) -> Select[Any]:
    """Return the query for a study's trials in the order of their numbers."""
    columns = (
        TrialRow.trial_id,
        TrialRow.number,
        TrialRow.state,
        TRIAL_STARTED.label("started"),
        TRIAL_FINISHED.label("finished"),
    )
    query = sqlalchemy.select(*columns).where(TrialRow.study_id == study_id)
    return query.order_by(TrialRow.number)


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
    query = trials_query(key.id).where(TrialRow.number >= first).limit(limit)
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
    values, attributes = _values(connection, ids), attributes_of(connection, ids)
    for row in rows:
        kept = attributes.get(row.trial_id, {})
        yield ListedTrial(
            number=row.number,
            state=row.state.name.lower(),
            values=tuple(values.get(row.trial_id, ())),
            dropped=str(kept.pop("dropped", "")),
            attributes=kept,
            started=seconds(row.started),
            finished=seconds(row.finished),
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


def attributes_of(
    connection: Connection, ids: Sequence[int], names: Sequence[str] = ()
) -> dict[int, JsonObject]:
    """Return the user attributes of trials by their ids.

    Args:
        connection: database of the trials.
        ids: ids of the trials.
        names: names of the attributes; empty for all.
    """
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


def seconds(utc: datetime | None) -> float | None:
    """Return a stored time, which is in UTC without a zone, in seconds since 1970."""
    return None if utc is None else utc.replace(tzinfo=UTC).timestamp()
