"""How much the studies of a database use the evaluation cache."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import sqlalchemy
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from prunesearch.cache import maintenance
from prunesearch.cache.incidents import DAMAGE, DISAGREEMENT
from prunesearch.cache.location import CacheLocation, check_url, shown, sqlite_file
from prunesearch.cache.tables import connect
from prunesearch.errors import StorageError, one_line
from prunesearch.runtime.json_values import Json, JsonObject
from prunesearch.studies.optuna_internals import tables
from prunesearch.studies.optuna_internals.tables import (
    STUDIES,
    STUDY_ATTRIBUTES,
    TRIAL_ATTRIBUTES,
    TRIALS,
)


@dataclass(frozen=True)
class StudyUse:
    """Use of the cache by a study.

    Attributes:
        study: name of the study.
        hits, computed: number of finished trials that were found in the cache, and that were
            computed.
        saved_seconds: time that the computation of the hits took.
        running: number of trials that are being evaluated, or that a killed search left.
    """

    json_properties: ClassVar[tuple[str, ...]] = ("hit_rate",)

    study: str
    hits: int
    computed: int
    saved_seconds: float
    running: int

    @property
    def hit_rate(self) -> float:
        """Share of the finished trials that were found in the cache, with four digits."""
        return round(self.hits / max(1, self.hits + self.computed), 4)


@dataclass(frozen=True)
class Studies:
    """Use of the cache by all studies of a database.

    Attributes:
        uses: use by each study, in the order of names.
        models: names of models by the fingerprint of their content.
    """

    uses: tuple[StudyUse, ...]
    models: dict[str, str]


@dataclass(frozen=True)
class ModelEntries:
    """Entries of one model and one objective.

    Attributes:
        model: name of the model, or the beginning of its fingerprint.
        fingerprint: fingerprint of the model.
        objective: kind of data that was scored.
        entries: number of entries.
        bytes: size of the entries.
    """

    model: str
    fingerprint: str
    objective: str
    entries: int
    bytes: int


@dataclass(frozen=True)
class IncidentCounts:
    """Number of incidents of each kind."""

    damage: int
    disagreement: int


@dataclass(frozen=True)
class CacheStatistics:
    """Entries of a cache and their use.

    Attributes:
        place: location of the cache, without passwords.
        entries, bytes: number and size of all entries.
        groups: entries by model and objective.
        studies: use of the cache by each study.
        incidents: number of incidents.
        unsent: number of entries that wait for the shared cache.
    """

    place: str
    entries: int
    bytes: int
    groups: tuple[ModelEntries, ...]
    studies: tuple[StudyUse, ...]
    incidents: IncidentCounts
    unsent: int


def statistics(location: CacheLocation, storage: str) -> CacheStatistics:
    """Count the entries of a cache by model and objective, and their use by each study.

    Args:
        location: location of the cache.
        storage: URL of the studies' database.

    Raises:
        StorageError: the cache does not exist, or the database cannot be read.
    """
    # 1. Read the studies and the backends. The shared backend comes first, if there is one.
    studies = studies_of(storage)
    incidents: Counter[str] = Counter()
    with maintenance.reading(location) as backends:
        groups = backends[0].groups()
        for backend in backends:
            incidents.update(incident.kind for incident in backend.read_incidents())
    # 2. Give each model its name.
    rows = []
    for group in groups:
        name = studies.models.get(group.model) or maintenance.named(location.folder, group.model)
        rows.append(ModelEntries(name, group.model, group.kind, group.entries, group.bytes))
    # 3. Collect everything.
    entries, size = maintenance.total(groups)
    return CacheStatistics(
        place=str(location),
        entries=entries,
        bytes=size,
        groups=tuple(rows),
        studies=studies.uses,
        incidents=IncidentCounts(incidents[DAMAGE], incidents[DISAGREEMENT]),
        unsent=maintenance.unsent(location),
    )


def studies_of(url: str) -> Studies:
    """Read the use of the cache from a database of studies.

    The result is empty if there is no database.

    The tables are read as plain rows and grouped by the database, which is faster than reading
    every trial.

    Raises:
        StorageError: the database cannot be read.
    """
    check_url(url)
    if (file := sqlite_file(url)) and not file.is_file():
        return Studies((), {})
    try:
        engine = connect(url)
    except (ImportError, SQLAlchemyError) as error:
        raise StorageError(f"cannot read `storage` {shown(url)!r}: {one_line(error)}") from None
    try:
        with engine.connect().execution_options(reading=True) as connection:
            if not tables.are_there(connection):
                return Studies((), {})
            ours = _ours(connection)
            # Studies that tune a healing are recognised by another attribute.c.
            tuned = connection.execute(
                sqlalchemy.select(STUDIES.c.study_name)
                .join(STUDY_ATTRIBUTES, STUDY_ATTRIBUTES.c.study_id == STUDIES.c.study_id)
                .where(STUDY_ATTRIBUTES.c.key == "healing")
            )
            names = {*ours, *tuned.scalars()}
            return Studies(tuple(_uses(connection, names)), _models(ours))
    except SQLAlchemyError as error:
        reason = one_line(getattr(error, "orig", None) or error)
        raise StorageError(f"cannot read `storage` {shown(url)!r}: {reason}") from None
    finally:
        engine.dispose()


def _ours(connection: Connection) -> dict[str, dict[str, JsonObject]]:
    """Return the identity and the recipe of each study that prunesearch made, by name.

    Other software may store anything under these keys, so studies without both of them are left
    out.
    """
    found: dict[str, dict[str, JsonObject]] = defaultdict(dict)
    attribute = STUDY_ATTRIBUTES
    rows = connection.execute(
        sqlalchemy.select(STUDIES.c.study_name, attribute.c.key, attribute.c.value_json)
        .join(attribute, attribute.c.study_id == STUDIES.c.study_id)
        .where(attribute.c.key.in_(("identity", "recipe")))
    )
    for study, key, text in rows:
        fields = _parsed(_parsed(text))
        if isinstance(fields, dict):
            found[study][key] = fields
    return {
        study: attributes
        for study, attributes in found.items()
        if {"identity", "recipe"} <= attributes.keys()
    }


def _parsed(text: object) -> Json:
    """Parse a JSON text. Return None if the value is not JSON."""
    if not isinstance(text, str):
        return None
    try:
        value: Json = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value


def _uses(connection: Connection, names: set[str]) -> Iterator[StudyUse]:
    # 1. Count running trials.
    running = dict.fromkeys(names, 0)
    count = sqlalchemy.func.count()
    for name, number in connection.execute(
        sqlalchemy.select(STUDIES.c.study_name, count)
        .join(TRIALS, TRIALS.c.study_id == STUDIES.c.study_id)
        # In PostgreSQL the state is an enumeration, which is not compared with a text.
        .where(sqlalchemy.cast(TRIALS.c.state, sqlalchemy.String) == tables.RUNNING)
        .group_by(STUDIES.c.study_name)
    ):
        running[name] = number
    # 2. Count hits and computed trials, and add up the time that the hits saved.
    counts: dict[tuple[str, object], int] = {}
    saved: dict[str, float] = defaultdict(float)
    attribute = TRIAL_ATTRIBUTES
    group = STUDIES.c.study_name, attribute.c.key, attribute.c.value_json
    for name, key, text, number in connection.execute(
        sqlalchemy.select(*group, count)
        .join(TRIALS, TRIALS.c.study_id == STUDIES.c.study_id)
        .join(attribute, attribute.c.trial_id == TRIALS.c.trial_id)
        .where(attribute.c.key.in_(("cache", "saved_seconds")))
        .group_by(*group)
    ):
        value = _parsed(text)
        if key == "cache" and isinstance(value, str):
            counts[name, value] = number
        elif key == "saved_seconds" and isinstance(value, int | float) and math.isfinite(value):
            saved[name] += value * number
    # 3. Collect the figures of each study.
    for name in sorted(names):
        hits, computed = counts.get((name, "hit"), 0), counts.get((name, "computed"), 0)
        yield StudyUse(name, hits, computed, saved[name], running[name])


def _models(ours: dict[str, dict[str, JsonObject]]) -> dict[str, str]:
    found = {}
    for attributes in ours.values():
        digest, name = (
            attributes["identity"].get("model content"),
            attributes["recipe"].get("model"),
        )
        # Recipes have sections; those of earlier versions have none.
        if isinstance(name, dict):
            name = name.get("path")
        if digest:
            found[str(digest)] = Path(str(name)).name
    return found
