"""Reads what belongs to a study and all its trials, with one query for each kind of rows."""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import sqlalchemy
from optuna.distributions import IntDistribution, json_to_distribution
from optuna.trial import TrialState
from sqlalchemy import Connection

from prunesearch.runtime.json_values import Json, JsonObject
from prunesearch.studies.importance import unit_of_parameter
from prunesearch.studies.optuna_internals.storage import (
    STUDY_SYSTEM_ATTRIBUTES,
    ParameterRow,
    StudyAttributeRow,
    SystemAttributeRow,
    TrialRow,
    UserAttributeRow,
    ValueRow,
)
from prunesearch.studies.trial_rows import ListedTrial, seconds, trials_query

STATE_ATTR = "ps:s"
"""System attribute of a trial in which its sampler keeps its state, as a JSON text."""
METRIC_NAMES = "study:metric_names"
"""Optuna's own key in a study's system attributes: the names of the values."""


def study_attributes(connection: Connection, study_id: int) -> JsonObject:
    """Return the user attributes of a study.

    Args:
        connection: database of the study.
        study_id: number of the study in the database.
    """
    query = sqlalchemy.select(StudyAttributeRow.key, StudyAttributeRow.value_json).where(
        StudyAttributeRow.study_id == study_id
    )
    found: JsonObject = {}
    for name, text in connection.execute(query):
        found[name] = json.loads(text)
    return found


def study_system_attributes(connection: Connection, study_id: int, start: str) -> JsonObject:
    """Return the system attributes of a study whose names start alike.

    Args:
        connection: database of the study.
        study_id: number of the study in the database.
        start: start of the names.
    """
    table = STUDY_SYSTEM_ATTRIBUTES
    query = sqlalchemy.select(table.c.key, table.c.value_json).where(
        table.c.study_id == study_id, table.c.key.startswith(start, autoescape=True)
    )
    found: JsonObject = {}
    for name, text in connection.execute(query):
        # SQLite compares without regard to case.
        if name.startswith(start):
            found[name] = json.loads(text)
    return found


def metric_names(connection: Connection, study_id: int) -> tuple[str, ...]:
    """Return the names of a study's values; empty if it has none."""
    table = STUDY_SYSTEM_ATTRIBUTES
    query = sqlalchemy.select(table.c.value_json).where(
        table.c.study_id == study_id, table.c.key == METRIC_NAMES
    )
    text = connection.execute(query).scalar()
    names = json.loads(text) if text else []
    return tuple(str(name) for name in names)


def read_trials(connection: Connection, study_id: int) -> list[ListedTrial]:
    """Return all trials of a study, in the order of their numbers."""
    # 1. Read the trials themselves.
    rows = connection.execute(trials_query(study_id)).all()
    # 2. Read their values and attributes.
    values = _values(connection, study_id)
    attributes = _attributes(connection, study_id)
    # 3. Put the parts together.
    found = []
    for row in rows:
        kept = attributes.get(row.trial_id, {})
        found.append(
            ListedTrial(
                number=row.number,
                state=row.state.name.lower(),
                values=tuple(values.get(row.trial_id, ())),
                dropped=str(kept.pop("dropped", "")),
                attributes=kept,
                started=seconds(row.started),
                finished=seconds(row.finished),
            )
        )
    return found


def _rows_of(
    connection: Connection,
    study_id: int,
    table: Any,  # noqa: ANN401 (Optuna's models are untyped)
    *columns: Any,  # noqa: ANN401
) -> Iterator[Any]:
    query = (
        sqlalchemy.select(table.trial_id, *columns)
        .join(TrialRow, table.trial_id == TrialRow.trial_id)
        .where(TrialRow.study_id == study_id)
    )
    # Take all rows at once: a writer of a SQLite file waits until the last row is read.
    return iter(connection.execute(query).all())


def _values(connection: Connection, study_id: int) -> dict[int, list[float]]:
    """Return the values of each trial, in the order of objectives."""
    found: defaultdict[int, dict[int, float]] = defaultdict(dict)
    columns = ValueRow.objective, ValueRow.value, ValueRow.value_type
    for trial_id, objective, value, kind in _rows_of(connection, study_id, ValueRow, *columns):
        found[trial_id][objective] = ValueRow.stored_repr_to_value(value, kind)
    return {trial_id: [by[index] for index in sorted(by)] for trial_id, by in found.items()}


def _attributes(connection: Connection, study_id: int) -> dict[int, JsonObject]:
    """Return the user attributes of each trial."""
    found: defaultdict[int, JsonObject] = defaultdict(dict)
    columns = UserAttributeRow.key, UserAttributeRow.value_json
    for trial_id, name, text in _rows_of(connection, study_id, UserAttributeRow, *columns):
        found[trial_id][name] = json.loads(text)
    return found


def parents_of(connection: Connection, study_id: int) -> dict[int, tuple[int, ...]]:
    """Return the numbers of the trials that each trial was derived from, by its own number.

    Trials whose sampler names no parents are left out.
    """
    query = (
        sqlalchemy.select(TrialRow.number, SystemAttributeRow.value_json)
        .join(TrialRow, SystemAttributeRow.trial_id == TrialRow.trial_id)
        .where(
            TrialRow.study_id == study_id,
            SystemAttributeRow.key == STATE_ATTR,
            SystemAttributeRow.value_json.contains("parents"),
        )
    )
    found: dict[int, tuple[int, ...]] = {}
    for number, text in connection.execute(query):
        # The state is a JSON text in a JSON document.
        state: Json = json.loads(text)
        state = json.loads(state) if isinstance(state, str) else state
        parents = state.get("parents") if isinstance(state, dict) else None
        if isinstance(parents, list):
            found[number] = tuple(parent for parent in parents if isinstance(parent, int))
    return found


def units_of(connection: Connection, study_id: int) -> dict[str, int]:
    """Return the units of a study's candidates, and how much each unit has of what is removed.

    A unit that is dropped as a whole has 1. A sublayer whose width is searched has as many channels
    or KV groups as its block. The units are those of the first finished trial: one that was killed
    may have a part of its parameters.
    """
    first = (
        sqlalchemy.select(sqlalchemy.func.min(ParameterRow.trial_id))
        .join(TrialRow, ParameterRow.trial_id == TrialRow.trial_id)
        .where(TrialRow.study_id == study_id)
        .where(TrialRow.state.in_((TrialState.COMPLETE, TrialState.PRUNED)))
    )
    query = (
        sqlalchemy.select(ParameterRow.param_name, ParameterRow.distribution_json)
        .where(ParameterRow.trial_id == first.scalar_subquery())
        .order_by(ParameterRow.param_name)
    )
    found: dict[str, int] = {}
    for name, text in connection.execute(query):
        unit = unit_of_parameter(name)
        if unit is None:
            continue
        found[unit] = 1
        # A width is what is kept; the largest one is the whole sublayer.
        if not name.startswith("drop_"):
            distribution = json_to_distribution(text)
            assert isinstance(distribution, IntDistribution)
            found[unit] = distribution.high
    return found
