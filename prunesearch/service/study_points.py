"""Reads of a study what its charts need: numbers, values and dropped layers of its trials.

Optuna reads a trial with all its parameters and attributes. A study of 10,000 trials has a million
of them, and a page that follows a search is made every few seconds. So only three columns are read
here, with one query each.
"""

import json
import math
import re
from dataclasses import dataclass

import sqlalchemy
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import Connection

from prunesearch.studies.optuna_internals.storage import (
    ParameterRow,
    TrialRow,
    UserAttributeRow,
    ValueRow,
)
from prunesearch.studies.recommendation import read_recommendation

_METRICS = "study:metric_names"  # Optuna's own key in a study's system attributes
_DROP = re.compile(r"drop_(\d+)(?:-(\d+))?(?:_attn|_mlp)?")


@dataclass(frozen=True)
class TrialPoint:
    """A finished trial, as charts and tables need it.

    Attributes:
        number: number of the trial.
        values: values of the objectives.
        dropped: dropped layers, as ``3,7a,12m``; empty if they are not known.
    """

    number: int
    values: tuple[float, ...]
    dropped: str

    @property
    def value(self) -> float:
        """First value. Not finite if the trial has none."""
        return self.values[0] if self.values else math.nan


@dataclass(frozen=True)
class StudyPoints:
    """The finished trials of a study.

    Attributes:
        metrics: names of the values.
        maximized: for each value, whether larger is better.
        layers: number of layers of the model, up to the last that may be dropped.
        points: finished trials, in the order of their numbers.
        recommended: number of the recommended trial; None if the best value decides.
    """

    metrics: tuple[str, ...]
    maximized: tuple[bool, ...]
    layers: int
    points: tuple[TrialPoint, ...]
    recommended: int | None = None

    @property
    def is_pareto(self) -> bool:
        """True if the study has several objectives."""
        return len(self.maximized) > 1

    def best(self, count: int) -> list[TrialPoint]:
        """Return the best trials, the best first; of a Pareto study its whole front.

        The recommended trial comes before those of better values.

        Args:
            count: largest number of trials. It does not hold for a front.
        """

        def losses(point: TrialPoint) -> tuple[float, ...]:
            signed = []
            for value, larger in zip(point.values, self.maximized, strict=False):
                signed.append(-value if larger else value)
            return (*signed, point.number)

        finite = [point for point in self.points if all(map(math.isfinite, point.values))]
        ranked = sorted(finite, key=losses)
        if not self.is_pareto:
            ranked.sort(key=lambda point: point.number != self.recommended)
            return ranked[:count]
        # The first value falls along the list, so a trial is on the front if its second value is
        # smaller than those of all trials before it.
        front: list[TrialPoint] = []
        for point in ranked:
            if not front or losses(point)[1] < losses(front[-1])[1]:
                front.append(point)
        return front


def finished_mark(storage: RDBStorage, name: str) -> tuple[int, ...] | None:
    """Return what changes when a trial of a study is finished. It is read with one small query.

    Args:
        storage: database of the studies.
        name: name of the study.

    Returns:
        Number of the study, number of finished trials, and the latest of them. None if there is
        no such study.
    """
    try:
        study = storage.get_study_id_from_name(name)
    except KeyError:
        return None
    query = sqlalchemy.select(
        sqlalchemy.func.count(), sqlalchemy.func.max(TrialRow.trial_id)
    ).where(TrialRow.study_id == study, TrialRow.state == TrialState.COMPLETE)
    with storage.engine.connect() as connection:
        count, latest = connection.execute(query).one()
    return study, int(count), int(latest or 0)


def study_points(storage: RDBStorage, name: str) -> StudyPoints | None:
    """Read the finished trials of a study.

    Args:
        storage: database of the studies.
        name: name of the study.

    Returns:
        The trials. None if the study does not exist.
    """
    try:
        study = storage.get_study_id_from_name(name)
        directions = storage.get_study_directions(study)
        attributes = storage.get_study_system_attrs(study)
        own = storage.get_study_user_attrs(study)
    except KeyError:
        return None
    maximized = tuple(direction == StudyDirection.MAXIMIZE for direction in directions)
    metrics = tuple(str(metric) for metric in attributes.get(_METRICS) or ())
    if len(metrics) != len(maximized):
        metrics = tuple(f"value {i}" for i in range(len(maximized)))
    with storage.engine.connect() as connection:
        points = _points(connection, study)
        layers = _layers(connection, study)
    made = read_recommendation(own, len(points))
    return StudyPoints(metrics, maximized, layers, points, None if made is None else made.chosen)


def _points(connection: Connection, study: int) -> tuple[TrialPoint, ...]:
    finished = sqlalchemy.and_(TrialRow.study_id == study, TrialRow.state == TrialState.COMPLETE)
    # 1. The values, in the order of trials and objectives.
    query = (
        sqlalchemy.select(TrialRow.trial_id, TrialRow.number, ValueRow.value, ValueRow.value_type)
        .join(ValueRow, ValueRow.trial_id == TrialRow.trial_id)
        .where(finished)
        .order_by(TrialRow.number, ValueRow.objective)
    )
    values: dict[int, list[float]] = {}
    numbers: dict[int, int] = {}
    for trial, number, value, kind in connection.execute(query):
        numbers[trial] = number
        values.setdefault(trial, []).append(ValueRow.stored_repr_to_value(value, kind))
    # 2. The dropped layers.
    query = (
        sqlalchemy.select(TrialRow.trial_id, UserAttributeRow.value_json)
        .join(UserAttributeRow, UserAttributeRow.trial_id == TrialRow.trial_id)
        .where(finished, UserAttributeRow.key == "dropped")
    )
    dropped: dict[int, str] = {}
    for trial, text in connection.execute(query):
        dropped[trial] = str(json.loads(text))
    points = []
    for trial, number in numbers.items():
        points.append(TrialPoint(number, tuple(values[trial]), dropped.get(trial, "")))
    return tuple(points)


def _layers(connection: Connection, study: int) -> int:
    """Return the number of layers that the parameters of the first trial name."""
    first = sqlalchemy.select(sqlalchemy.func.min(TrialRow.trial_id)).where(
        TrialRow.study_id == study
    )
    query = sqlalchemy.select(ParameterRow.param_name).where(
        ParameterRow.trial_id == first.scalar_subquery()
    )
    layers = 0
    for name in connection.execute(query).scalars():
        match = _DROP.fullmatch(name)
        if match is not None:
            layers = max(layers, int(match[2] or match[1]) + 1)
    return layers
