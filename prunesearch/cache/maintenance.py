"""Statistics of a cache, its verification, import, and the removal of old entries."""

import contextlib
import json
import math
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from prunesearch.cache import repair, transfer
from prunesearch.cache.backend import CacheBackend, Group, Readable
from prunesearch.cache.cache_file import DiskFile
from prunesearch.cache.entry import is_digest
from prunesearch.cache.files import replaced_file
from prunesearch.cache.incidents import Incident
from prunesearch.cache.leases import Leases, ProcessLiveness, folder_leases
from prunesearch.cache.local_backend import LocalBackend
from prunesearch.cache.location import (
    CacheLocation,
    check_url,
    shown,
    sqlite_file,
)
from prunesearch.cache.repair import FILE
from prunesearch.cache.shared_backend import SharedBackend
from prunesearch.cache.tables import connect
from prunesearch.cache.two_level import UNSENT
from prunesearch.errors import StorageError, one_line

NAMES = "names"
"""Folder of a cache with the names of models: one file for each model, named by its fingerprint."""
_OPTUNA_TABLES = ("studies", "trials", "study_user_attributes", "trial_user_attributes")


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

    study: str
    hits: int
    computed: int
    saved_seconds: float
    running: int

    @property
    def hit_rate(self) -> float:
        """Share of the finished trials that were found in the cache."""
        return self.hits / max(1, self.hits + self.computed)


@contextmanager
def reading(location: CacheLocation) -> Iterator[list[Readable]]:
    """Open the backends of an existing cache for reading, the shared one first.

    Raises:
        StorageError: the cache does not exist.
    """
    backends: list[Readable] = []
    if location.url is not None:
        backends.append(SharedBackend(location.url))
    # Opening the backend copies the sound entries of a damaged file back.
    if repair.unsalvaged(location.folder):
        LocalBackend(location.folder).close()
    if (location.folder / FILE).is_file():
        backends.append(DiskFile(location.folder))
    if not backends:
        raise StorageError(
            f"no cache in {str(location.folder)!r}: run prunesearch search first, or give --cache"
        )
    try:
        yield backends
    finally:
        for backend in backends:
            backend.close()


@dataclass(frozen=True)
class Studies:
    """Use of the cache by all studies of a database.

    Attributes:
        uses: use by each study, in the order of names.
        models: names of models by the fingerprint of their content.
    """

    uses: tuple[StudyUse, ...]
    models: dict[str, str]


def studies_of(url: str) -> Studies:
    """Read the use of the cache from a database of studies.

    The result is empty if there is no database.

    Plain SQL on Optuna's tables is used, because it is fast.

    Raises:
        StorageError: the database cannot be read.
    """
    check_url(url)
    if (file := sqlite_file(url)) and not file.is_file():
        return Studies((), {})
    try:
        engine = connect(url)
    except (ImportError, SQLAlchemyError) as error:
        raise StorageError(f"cannot read --storage {shown(url)!r}: {one_line(error)}") from None
    try:
        with engine.connect().execution_options(reading=True) as connection:
            if not set(_OPTUNA_TABLES) <= set(sqlalchemy.inspect(connection).get_table_names()):
                return Studies((), {})
            ours = _ours(connection)
            # Studies that tune a healing are recognised by another attribute.
            tuned = connection.exec_driver_sql(
                "SELECT s.study_name FROM studies s JOIN study_user_attributes a ON a.study_id = "
                "s.study_id "
                "WHERE a.key = 'healing'"
            )
            names = {*ours, *tuned.scalars()}
            return Studies(tuple(_uses(connection, names)), _models(ours))
    except SQLAlchemyError as error:
        reason = one_line(getattr(error, "orig", None) or error)
        raise StorageError(f"cannot read --storage {shown(url)!r}: {reason}") from None
    finally:
        engine.dispose()


def _ours(connection: Connection) -> dict[str, dict[str, Any]]:
    """Return the identity and the recipe of each study that prunesearch made, by name.

    Other software may store anything under these keys, so studies without both of them are left
    out.
    """
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for study, key, text in connection.exec_driver_sql(
        "SELECT s.study_name, a.key, a.value_json FROM studies s JOIN study_user_attributes a "
        "ON a.study_id = s.study_id WHERE a.key IN ('identity', 'recipe')"
    ):
        fields = _parsed(_parsed(text))
        if isinstance(fields, dict):
            found[study][key] = fields
    return {
        study: attributes
        for study, attributes in found.items()
        if {"identity", "recipe"} <= attributes.keys()
    }


def _parsed(text: object) -> object:
    """Parse a JSON text. Return None if the value is not JSON."""
    if not isinstance(text, str):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _uses(connection: Connection, names: set[str]) -> Iterator[StudyUse]:
    joined = "FROM studies s JOIN trials t ON t.study_id = s.study_id"
    # 1. Count running trials.
    running = dict.fromkeys(names, 0)
    for name, count in connection.exec_driver_sql(
        f"SELECT s.study_name, COUNT(*) {joined} WHERE t.state = 'RUNNING' GROUP BY s.study_name"
    ):
        running[name] = count
    # 2. Count hits and computed trials, and add up the time that the hits saved.
    attributes = f"{joined} JOIN trial_user_attributes a ON a.trial_id = t.trial_id"
    counts: dict[tuple[str, object], int] = {}
    saved: dict[str, float] = defaultdict(float)
    for name, key, text, count in connection.exec_driver_sql(
        f"SELECT s.study_name, a.key, a.value_json, COUNT(*) {attributes} WHERE a.key IN ('cache', "
        f"'saved_seconds') "
        "GROUP BY s.study_name, a.key, a.value_json"
    ):
        value = _parsed(text)
        if key == "cache" and isinstance(value, str):
            counts[name, value] = count
        elif key == "saved_seconds" and isinstance(value, int | float) and math.isfinite(value):
            saved[name] += value * count
    # 3. Collect the figures of each study.
    for name in sorted(names):
        hits, computed = counts.get((name, "hit"), 0), counts.get((name, "computed"), 0)
        yield StudyUse(name, hits, computed, saved[name], running[name])


def _models(ours: dict[str, dict[str, Any]]) -> dict[str, str]:
    found = {}
    for attributes in ours.values():
        digest, name = (
            attributes["identity"].get("model content"),
            attributes["recipe"].get("model"),
        )
        if digest:
            found[str(digest)] = Path(str(name)).name
    return found


def remember_name(folder: Path, fingerprint: str, name: str) -> None:
    """Store the name of a model that has no study, for `named`.

    The name is shown to users only, so an error of the disk is ignored.

    Args:
        folder: folder of the cache.
        fingerprint: fingerprint of the model.
        name: name or path of the model.
    """
    path = folder / NAMES / fingerprint
    if path.exists():
        return
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        with replaced_file(path) as new:
            new.write_text(Path(name).name, encoding="utf-8", errors="surrogateescape")


def named(folder: Path, fingerprint: str) -> str:
    """Return a model's name, or the beginning of its fingerprint if the name is unknown."""
    name = ""
    if is_digest(fingerprint):
        with suppress(OSError):
            name = (
                (folder / NAMES / fingerprint)
                .read_text(encoding="utf-8", errors="replace")[:100]
                .strip()
            )
    if name and name.isprintable():
        return name
    return fingerprint[:12]


def total(groups: list[Group]) -> tuple[int, int]:
    """Return the total number of entries and their total size in bytes."""
    return sum(group.entries for group in groups), sum(group.bytes for group in groups)


def unsent(location: CacheLocation) -> int:
    """Return the number of entries on this machine that wait for the shared cache."""
    folder = location.folder / UNSENT
    if not (folder / FILE).is_file():
        return 0
    return len(DiskFile(folder))


def verified(location: CacheLocation) -> dict[str, Any]:
    """Check every entry of every backend, and remove damaged entries.

    Returns:
        For each backend the number of sound and of damaged entries, and the faults of its file. All
        incidents.
    """
    # 1. Refuse to make a cache that does not exist.
    with reading(location):
        pass
    # 2. Open all backends, including the entries that wait for the shared cache.
    backends = []
    incidents: list[Incident] = []
    with writing(location) as opened, contextlib.ExitStack() as closing:
        if (location.folder / UNSENT / FILE).is_file():
            opened.append(
                closing.enter_context(contextlib.closing(LocalBackend(location.folder / UNSENT)))
            )
        # 3. Check the file and the entries of each backend.
        for backend in opened:
            faults = backend.check()
            if faults and isinstance(backend, LocalBackend):
                backend.rebuild()
            damaged = _damaged(backend)
            backend.take_out(damaged)
            # Rows with foreign keys cannot be removed one by one.
            if damaged and isinstance(backend, LocalBackend) and _damaged(backend):
                backend.rebuild()
            backends.append(
                {
                    "place": backend.name,
                    "sound": len(backend),
                    "damaged": len(damaged),
                    "file": faults,
                }
            )
            incidents += backend.read_incidents()
    return {"tiers": backends, "alarms": [asdict(incident) for incident in incidents]}


def _damaged(backend: CacheBackend) -> list[str]:
    return [digest for digest, entry in backend.scan() if entry is None]


@contextmanager
def writing(location: CacheLocation) -> Iterator[list[CacheBackend]]:
    """Open all backends of a cache for writing, the shared one first."""
    backends: list[CacheBackend] = []
    try:
        if location.url is not None:
            backends.append(SharedBackend(location.url))
        backends.append(LocalBackend(location.folder))
        yield backends
    finally:
        for backend in backends:
            backend.close()


def merge(location: CacheLocation, paths: Sequence[Path]) -> transfer.Imported:
    """Add exported files to a cache. The cache is made if it does not exist.

    Every file is checked to its end before anything is written.

    Raises:
        InputError: a file is not sound. Nothing was written.
    """
    transfer.check(paths)
    with writing(location) as backends:
        return transfer.add(paths, backends)


def sweep(location: CacheLocation, before: float) -> dict[str, Any]:
    """Remove old entries, leases that have run out, and files of dead processes.

    Args:
        location: location of the cache.
        before: time in seconds since 1970. Entries that were stored earlier are removed.

    Returns:
        The numbers of entries (of the shared cache, if there is one), leases, owners and
        quarantined files that were removed.
    """
    # 1. Refuse to make a cache that does not exist.
    with reading(location):
        pass
    # 2. Remove entries, and leases in the database.
    counts, leases = [], 0
    with writing(location) as backends:
        for backend in backends:
            old = backend.older_than(before)
            backend.discard(old)
            counts.append(len(old))
            if isinstance(backend, SharedBackend):
                leases += Leases(backend.engine, backend.name).sweep()
    # 3. Remove leases in the folder, and the lock files of dead owners.
    local = folder_leases(location.folder)
    leases += local.sweep()
    liveness = ProcessLiveness(location.folder)
    dead = liveness.dead()
    for owner in dead:
        local.release(owner)
        liveness.forget(owner)
    liveness.leave()
    local.engine.dispose()
    # 4. Remove damaged files.
    files = _sweep_quarantine(location.folder, before)
    files += _sweep_quarantine(location.folder / UNSENT, before)
    return {"entries": counts[0], "leases": leases, "owners": len(dead), "quarantined": files}


def _sweep_quarantine(folder: Path, before: float) -> int:
    """Delete the damaged files that were moved to quarantine before a time.

    A file is kept while the cache may lack some of its sound entries.
    """
    waiting = set(repair.unsalvaged(folder))
    count = 0
    for place in repair.quarantined(folder):
        # Another process may delete the same files.
        with contextlib.suppress(FileNotFoundError):
            if place not in waiting and place.stat().st_mtime < before:
                shutil.rmtree(place)
                count += 1
    return count
