"""Reads lists of studies and trials with a few queries, without building Optuna's objects.

A study of 10,000 trials is listed in milliseconds. What needs every parameter of every trial, such
as the importance of layers, is read by `persistence` instead.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import Connection

from prunesearch.config.recipe import Recipe
from prunesearch.runtime.json_values import json_as
from prunesearch.studies.optuna_internals import tables
from prunesearch.studies.optuna_internals.storage import (
    TRIAL_FINISHED,
    TRIAL_STARTED,
    DirectionRow,
    StudyAttributeRow,
    StudyRow,
    TrialRow,
    ValueRow,
)
from prunesearch.studies.recommendation import (
    RECOMMENDATION_ATTR,
    Recommendation,
    read_recommendation,
)
from prunesearch.studies.study_recipe import RECIPE_ATTR
from prunesearch.studies.trial_rows import StudyKey, attributes_of, seconds


@dataclass(frozen=True)
class ListedStudy:
    """A study in a list.

    Attributes:
        name: name of the study.
        model, objective, drop, sampler: settings of its recipe. None if the recipe cannot be read.
        trials, running, failed, partial_subsets: number of trials in each state.
        best_value, best_dropped, best_number: the best trial, which is the recommended one if
            scores are noisy. None without finished trials, and for a Pareto study.
        objectives: number of values of a trial.
        started, finished: start of the first trial and end of the last one, in seconds since 1970.
        recommendation: how the best trial was decided; None if its value is the best.
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
    recommendation: Recommendation | None = field(default=None, metadata=json_as(omit_none=True))


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


def study_names(connection: Connection) -> list[str]:
    """Return the names of all studies of a database, also of those that others made."""
    if not tables.are_there(connection):
        return []
    return sorted(connection.execute(sqlalchemy.select(StudyRow.study_name)).scalars())


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
    """Count the trials of studies and find their best ones, with a few queries for all of them."""
    ids = [key.id for key in keys]
    # 1. Count the trials by state.
    counts, times = _counts(connection, ids)
    # 2. Find the best trials, and what they drop. A recommended one takes the place of the one
    # whose value is the best.
    best = _best(connection, [key for key in keys if len(key.maximize) == 1])
    complete = {key.id: counts[key.id].get(TrialState.COMPLETE, 0) for key in keys}
    decided = _recommendations(connection, complete)
    best |= _trials(connection, {study: made.chosen for study, made in decided.items()})
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
                drop=recipe.search.amount if recipe else None,
                sampler=recipe.search.sampler if recipe else None,
                trials=states.get(TrialState.COMPLETE, 0),
                running=states.get(TrialState.RUNNING, 0),
                failed=states.get(TrialState.FAIL, 0),
                partial_subsets=states.get(TrialState.PRUNED, 0),
                best_value=trial[2] if trial else None,
                best_dropped=dropped.get(trial[0]) if trial else None,
                best_number=trial[1] if trial else None,
                objectives=len(key.maximize),
                started=seconds(min(seen)) if seen else None,
                finished=seconds(max(seen)) if seen else None,
                recommendation=decided.get(key.id),
            )
        )
    return found


def _counts(
    connection: Connection, ids: Sequence[int]
) -> tuple[dict[int, dict[TrialState, int]], dict[int, list[datetime]]]:
    """Return the number of trials in each state, and times of the first and the last trials."""
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
    return counts, times


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


def _recommendations(
    connection: Connection, trials: Mapping[int, int]
) -> dict[int, Recommendation]:
    """Return the recommendations of studies that have one.

    Args:
        connection: database of the studies.
        trials: number of complete trials by id of the study.
    """
    query = sqlalchemy.select(StudyAttributeRow.study_id, StudyAttributeRow.value_json).where(
        StudyAttributeRow.study_id.in_(trials), StudyAttributeRow.key == RECOMMENDATION_ATTR
    )
    found = {}
    for study, text in connection.execute(query):
        made = read_recommendation({RECOMMENDATION_ATTR: json.loads(text)}, trials[study])
        if made is not None:
            found[study] = made
    return found


def _trials(
    connection: Connection, numbers: Mapping[int, int]
) -> dict[int, tuple[int, int, float]]:
    """Return id, number and value of one trial of each study, which is named by its number."""
    if not numbers:
        return {}
    wanted = sqlalchemy.tuple_(TrialRow.study_id, TrialRow.number).in_(list(numbers.items()))
    query = (
        sqlalchemy.select(TrialRow.study_id, TrialRow.trial_id, TrialRow.number, ValueRow.value)
        .join(ValueRow, ValueRow.trial_id == TrialRow.trial_id)
        .where(wanted)
    )
    return {
        row.study_id: (row.trial_id, row.number, row.value) for row in connection.execute(query)
    }


def _dropped(connection: Connection, ids: Sequence[int]) -> dict[int, str]:
    found = {}
    for trial_id, attributes in attributes_of(connection, ids, ("dropped",)).items():
        found[trial_id] = str(attributes["dropped"])
    return found
