"""Copies a study exactly, within a database or from one database to another.

Optuna's `copy_study` writes trial by trial, so a copy that was killed looks like a study with fewer
trials. It also leaves the notes of trials at the ids of the other database. Here the rows of
Optuna's tables are copied as they are, in one transaction. Only ids change, and the names of
attributes that contain one. The identifier of the study in experiment trackers is left out, because
the copy is another run there.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
import sqlalchemy
from sqlalchemy import Connection, Engine, Table
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from prunesearch import events
from prunesearch.cache.location import shown, sqlite_file
from prunesearch.cache.tables import connect
from prunesearch.config.names import check_study_name
from prunesearch.errors import InputError, StorageError, StudyError, UnknownNameError, one_line
from prunesearch.studies import persistence, writers
from prunesearch.studies.optuna_internals.storage import (
    KEYS_WITH_TRIAL_ID,
    STUDY_PARTS,
    STUDY_SYSTEM_ATTRIBUTES,
    STUDY_TABLE,
    TRIAL_PARTS,
    TRIAL_TABLE,
)
from prunesearch.studies.rdb import StudyStorage
from prunesearch.studies.reconnection import Reconnection
from prunesearch.studies.tracker_run import RUN_ATTR
from prunesearch.studies.writer_lease import Fence
from prunesearch.studies.writer_process import busy

_PAGE = 200  # number of trials that are copied at once
Row = dict[str, Any]  # a row of any table, by the names of its columns


@dataclass(frozen=True)
class CopiedStudy:
    """A study that was copied.

    Attributes:
        copied: name of the study in its own database.
        study: name of the copy.
        storage: location of the copy without secrets.
        trials: number of copied trials, in any state.
    """

    copied: str
    study: str
    storage: str
    trials: int


def copy_studies(
    source_url: str,
    target_url: str,
    names: Sequence[str] | None,
    new_name: str | None = None,
) -> list[CopiedStudy]:
    """Copy studies, each in one transaction. A copy is resumed with the same next trials.

    All studies are checked before the first is copied.

    Args:
        source_url: SQLAlchemy URL of the database with the studies.
        target_url: SQLAlchemy URL of the database for the copies.
        names: names of the studies; None for all studies of the database.
        new_name: name of the copy, if there is one study.

    Raises:
        UnknownNameError: a study does not exist.
        InputError: several studies would get one name.
        StudyError: a study of that name exists in the target database.
        StudyBusyError: another process is searching a study.
        StorageError: a database does not work. Nothing of the study under way was written.
    """
    source = persistence.open_storage(source_url, create=False)
    known = optuna.get_all_study_names(source)
    if names is None:
        names = sorted(known)
    chosen = list(dict.fromkeys(names))
    if new_name is not None and len(chosen) > 1:
        raise InputError(
            f"`new_name` names one copy, and {len(chosen)} studies are copied: leave it out"
        )
    if new_name is not None:
        check_study_name(new_name)
    # 1. Check every study.
    for name in chosen:
        if name not in known:
            raise UnknownNameError("study", name, known)
        writer = persistence.writer_of(source, name)
        if writer is not None:
            raise busy(name, writer)
    target = persistence.open_storage(target_url, create=True)
    taken = set(optuna.get_all_study_names(target))
    for name in chosen:
        if (new_name or name) in taken:
            raise _exists(new_name or name, target_url)
    # 2. Copy one study after the other.
    with _engines(source_url, target_url) as (from_engine, to_engine):
        return [_Copy(from_engine, to_engine, target, n, new_name or n).make() for n in chosen]


def _exists(name: str, url: str) -> StudyError:
    return StudyError(
        f"study {name!r} exists already in {shown(url)!r}: give the copy another `new_name`, "
        f"or delete that study"
    )


@contextmanager
def _engines(source_url: str, target_url: str) -> Iterator[tuple[Engine, Engine]]:
    """Yield an engine for each database. For one SQLite file both are the same object.

    A file that is read by one connection cannot be written by another.
    """
    source, target = connect(source_url), connect(target_url)
    one, other = sqlite_file(source_url), sqlite_file(target_url)
    try:
        if one is not None and other is not None and one.samefile(other):
            yield target, target
        else:
            yield source, target
    finally:
        source.dispose()
        target.dispose()


class _Copy:
    """One study that is copied.

    Args:
        source: engine of the database with the study.
        target: engine of the database for the copy.
        storage: the same database as `target`.
        name: name of the study.
        new_name: name of the copy.
    """

    def __init__(
        self, source: Engine, target: Engine, storage: StudyStorage, name: str, new_name: str
    ) -> None:
        self._source, self._target, self._storage = source, target, storage
        self._name, self._new_name = name, new_name
        self._url = shown(str(target.url))
        self._reconnection: Reconnection = storage.reconnection

    def make(self) -> CopiedStudy:
        """Copy the study. See `copy_studies`."""
        try:
            # No other process may make a study of that name meanwhile.
            with writers.held(self._storage.engine, self._new_name) as fence:
                trials = self._reconnection.repeat(lambda: self._in_one_transaction(fence))
        except IntegrityError:
            raise _exists(self._new_name, self._url) from None
        except SQLAlchemyError as error:
            reason = one_line(getattr(error, "orig", None) or error)
            raise StorageError(
                f"study {self._name!r} was not copied to {self._url!r}: {reason}"
            ) from None
        return CopiedStudy(self._name, self._new_name, self._url, trials)

    def _in_one_transaction(self, fence: Fence | None) -> int:
        """Copy all rows and commit them. Return the number of trials."""
        with contextlib.ExitStack() as stack:
            target = stack.enter_context(self._target.begin())
            source = target
            if self._source is not self._target:
                source = stack.enter_context(_snapshot(self._source))
            study_id = _study_id(source, self._name)
            if study_id is None:
                raise UnknownNameError("study", self._name, ())
            # The answer to the commit of an earlier attempt may have been lost.
            if self._reconnection.repeated:
                copied = _study_id(target, self._new_name)
                if copied is not None:
                    return _count_trials(target, copied)
            count = self._copy_rows(source, target, study_id)
            if fence is not None:
                fence(target)
            return count

    def _copy_rows(self, source: Connection, target: Connection, study_id: int) -> int:
        # 1. The study, its directions and user attributes, but for its run in trackers.
        insert = STUDY_TABLE.insert().values(study_name=self._new_name)
        new_id: int = target.execute(insert.returning(STUDY_TABLE.c.study_id)).scalar_one()
        for table in STUDY_PARTS:
            parts = _part_rows(source, table, "study_id", {study_id: new_id})
            _insert(target, table, [row for row in parts if row.get("key") != RUN_ATTR])
        # 2. The trials, in the order of their ids. New ids rise in that order, too.
        total, ids = _count_trials(source, study_id), dict[int, int]()
        last = -1
        while page := _trial_page(source, study_id, last):
            last = page[-1]["trial_id"]
            new_ids = _copy_page(source, target, page, new_id)
            ids.update(new_ids)
            events.tell(events.StageProgress(f"copying {self._name}", len(ids), total, "trials"))
        # 3. System attributes of the study, some of which are named after a trial.
        rows = _part_rows(source, STUDY_SYSTEM_ATTRIBUTES, "study_id", {study_id: new_id})
        for row in rows:
            row["key"] = _renamed(row["key"], ids)
        _insert(target, STUDY_SYSTEM_ATTRIBUTES, rows)
        return len(ids)


@contextmanager
def _snapshot(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that sees the database as it is now, whatever others write meanwhile."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.execution_options(reading=True).begin():
            yield connection


def _study_id(connection: Connection, name: str) -> int | None:
    query = sqlalchemy.select(STUDY_TABLE.c.study_id).where(STUDY_TABLE.c.study_name == name)
    found: int | None = connection.execute(query).scalar()
    return found


def _count_trials(connection: Connection, study_id: int) -> int:
    count = sqlalchemy.select(sqlalchemy.func.count()).select_from(TRIAL_TABLE)
    return int(connection.execute(count.where(TRIAL_TABLE.c.study_id == study_id)).scalar_one())


def _trial_page(connection: Connection, study_id: int, after: int) -> list[Row]:
    """Return the next trials of a study with larger ids than a given one, in the order of ids."""
    query = (
        sqlalchemy.select(TRIAL_TABLE)
        .where(TRIAL_TABLE.c.study_id == study_id, TRIAL_TABLE.c.trial_id > after)
        .order_by(TRIAL_TABLE.c.trial_id)
        .limit(_PAGE)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def _copy_page(
    source: Connection, target: Connection, page: Sequence[Row], study_id: int
) -> Mapping[int, int]:
    """Copy some trials and what belongs to them. Return the new id of each trial, by the old id."""
    rows = []
    for trial in page:
        row = {**trial, "study_id": study_id}
        del row["trial_id"]
        rows.append(row)
    inserted = TRIAL_TABLE.insert().returning(TRIAL_TABLE.c.trial_id, sort_by_parameter_order=True)
    new_ids = target.execute(inserted, rows).scalars().all()
    ids = {old["trial_id"]: new for old, new in zip(page, new_ids, strict=True)}
    for table in TRIAL_PARTS:
        _insert(target, table, _part_rows(source, table, "trial_id", ids))
    return ids


def _part_rows(
    connection: Connection, table: Table, owner: str, ids: Mapping[int, int]
) -> list[Row]:
    """Return the rows of a table that belong to some studies or trials, with their new ids.

    Args:
        connection: connection to the database that is read.
        table: the table.
        owner: name of the column with the id of the study or trial.
        ids: new ids by the old ones.
    """
    # The order of the parameters is that of their own ids.
    (own_id,) = table.primary_key.columns
    query = sqlalchemy.select(table).where(table.c[owner].in_(list(ids))).order_by(own_id)
    rows = []
    for found in connection.execute(query).mappings():
        row = {**found, owner: ids[found[owner]]}
        del row[own_id.name]
        rows.append(row)
    return rows


def _insert(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    if rows:
        connection.execute(table.insert(), rows)


def _renamed(key: str, ids: Mapping[int, int]) -> str:
    """Return the name of a study's system attribute with the new id of the trial in it."""
    match = KEYS_WITH_TRIAL_ID.match(key)
    if match is None or int(match["trial_id"]) not in ids:
        return key
    return f"{match['before']}{ids[int(match['trial_id'])]}{key[match.end() :]}"
