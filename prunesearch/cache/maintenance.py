"""Statistics of a cache, its verification, import, and the removal of old entries."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from prunesearch.cache import repair, transfer
from prunesearch.cache.backend import CacheBackend, EntryGroup, Readable
from prunesearch.cache.cache_file import DiskFile
from prunesearch.cache.entry import is_digest
from prunesearch.cache.files import replaced_file
from prunesearch.cache.folder_leases import folder_leases
from prunesearch.cache.incidents import Incident
from prunesearch.cache.leases import Leases
from prunesearch.cache.liveness import ProcessLiveness
from prunesearch.cache.local_backend import LocalBackend
from prunesearch.cache.location import CacheLocation
from prunesearch.cache.repair import FILE
from prunesearch.cache.shared_backend import SharedBackend
from prunesearch.cache.two_level import UNSENT
from prunesearch.errors import StorageError
from prunesearch.runtime.json_values import json_as

NAMES = "names"
"""Folder of a cache with the names of models: one file for each model, named by its fingerprint."""


@dataclass(frozen=True)
class BackendCheck:
    """Result of the check of one backend.

    Attributes:
        place: location of the backend.
        sound, damaged: number of sound entries, and of damaged ones, which were removed.
        problems: faults that the database found in its file.
    """

    place: str
    sound: int
    damaged: int
    problems: tuple[str, ...] = field(metadata=json_as("file"))


@dataclass(frozen=True)
class DatedIncident:
    """An incident with its time as text. The other attributes are those of `Incident`."""

    kind: str
    key: str
    detail: str
    at: str


@dataclass(frozen=True)
class CacheCheck:
    """Result of the check of a cache: of each backend, and all incidents so far."""

    backends: tuple[BackendCheck, ...]
    incidents: tuple[DatedIncident, ...]

    @property
    def sound(self) -> bool:
        """True if nothing was damaged."""
        return not any(backend.damaged or backend.problems for backend in self.backends)


@dataclass(frozen=True)
class Swept:
    """Number of entries, leases, owners and quarantined files that were removed.

    Attributes:
        entries: number of entries, of the shared cache if there is one.
        before: entries that were stored before this time were removed.
    """

    entries: int
    leases: int
    owners: int
    quarantined: int
    before: str


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
            f"no cache in {str(location.folder)!r}: run prunesearch search first, or give `cache`"
        )
    try:
        yield backends
    finally:
        for backend in backends:
            backend.close()


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


def total(groups: list[EntryGroup]) -> tuple[int, int]:
    """Return the total number of entries and their total size in bytes."""
    return sum(group.entries for group in groups), sum(group.bytes for group in groups)


def unsent(location: CacheLocation) -> int:
    """Return the number of entries on this machine that wait for the shared cache."""
    folder = location.folder / UNSENT
    if not (folder / FILE).is_file():
        return 0
    return len(DiskFile(folder))


def when(at: float) -> str:
    """Return a time in seconds since 1970 as text."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):  # the time is from a file that was edited by hand
        return f"{at:g}"


def verified(location: CacheLocation) -> CacheCheck:
    """Check every entry of every backend, and remove damaged entries."""
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
            problems = backend.check()
            if problems and isinstance(backend, LocalBackend):
                backend.rebuild()
            damaged = _damaged(backend)
            backend.take_out(damaged)
            # Rows with foreign keys cannot be removed one by one.
            if damaged and isinstance(backend, LocalBackend) and _damaged(backend):
                backend.rebuild()
            backends.append(BackendCheck(backend.name, len(backend), len(damaged), tuple(problems)))
            incidents += backend.read_incidents()
    dated = []
    for incident in incidents:
        dated.append(DatedIncident(incident.kind, incident.key, incident.detail, when(incident.at)))
    return CacheCheck(tuple(backends), tuple(dated))


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


def sweep(location: CacheLocation, before: float) -> Swept:
    """Remove old entries, leases that have run out, and files of dead processes.

    Args:
        location: location of the cache.
        before: time in seconds since 1970. Entries that were stored earlier are removed.
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
    liveness.close()
    local.engine.dispose()
    # 4. Remove damaged files.
    files = _sweep_quarantine(location.folder, before)
    files += _sweep_quarantine(location.folder / UNSENT, before)
    return Swept(counts[0], leases, len(dead), files, when(before))


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
