"""Exports evaluations to a file, and imports and checks such files (see `exchange_file`).

Of several values of a key, the one that was computed first stays. So merging caches in any order,
and any number of times, gives the same result.
"""

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from prunesearch.cache.backend import CacheBackend, Readable, settle
from prunesearch.cache.entry import Entry
from prunesearch.cache.exchange_file import NOTHING_IMPORTED, may_be_replaced, read, write_entries
from prunesearch.cache.files import cannot_write, replaced_file
from prunesearch.errors import InputError, RunError, UnavailableError
from prunesearch.units import plural

_BATCH = 500  # number of entries that are imported in one transaction


@dataclass(frozen=True)
class ExportedFile:
    """Result of an export: the file, and the number of its entries."""

    file: str
    entries: int


@dataclass(frozen=True)
class Imported:
    """Result of an import.

    Attributes:
        read: number of entries in the files.
        new: number of keys that the cache did not have.
        conflicts: number of keys for which the cache had a value that disagrees.
    """

    read: int
    new: int
    conflicts: int


def export(backends: Sequence[Readable], path: Path) -> int:
    """Write all sound entries to a file, and return their number.

    The file is either complete or not written at all. An earlier export of that name is replaced.
    Any other file stays.

    Args:
        backends: backends of the cache.
        path: path of the file. It is compressed if its name ends in ``.gz``.

    Raises:
        InputError: the file exists and holds something else, or its folder does not exist.
        RunError: the file cannot be written.
    """
    if not path.parent.is_dir():
        raise InputError(
            f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}; make it first, "
            f"or give a file in another folder"
        )
    if path.exists() and not path.is_file():
        raise RunError(f"cannot write {str(path)!r}: it is not a regular file; give another file")
    if path.is_file() and not path.is_symlink() and not may_be_replaced(path):
        raise InputError(
            f"{str(path)!r} exists and is not an export of a cache: give another file, or delete "
            f"it first"
        )
    try:
        with replaced_file(path) as scratch, scratch.open("wb") as file:
            return write_entries(file, entries_of(backends), compress=path.suffix == ".gz")
    except OSError as error:
        raise RunError(cannot_write(path, error)) from None


def entries_of(backends: Sequence[Readable]) -> Iterator[Entry]:
    """Yield all sound entries of several backends in the order of keys. Each key comes once."""
    # Every backend yields its entries in the order of keys, so a merge brings equal keys together.
    merged = heapq.merge(*map(_sound, backends), key=itemgetter(0))
    for _, same in itertools.groupby(merged, key=itemgetter(0)):
        kept: Entry | None = None
        for _, entry in same:
            kept, _ = settle(kept, entry, "earliest")
        assert kept is not None
        yield kept


def _sound(backend: Readable) -> Iterator[tuple[str, Entry]]:
    """Yield the key and the entry of every sound row of a backend."""
    for digest, entry in backend.scan():
        if entry is not None:
            yield digest, entry


def check(paths: Sequence[Path]) -> int:
    """Read files to their ends, and return the number of their entries.

    Raises:
        InputError: see `read`.
    """
    count = 0
    for path in paths:
        for _ in read(path):
            count += 1
    return count


def add(paths: Sequence[Path], backends: Sequence[CacheBackend]) -> Imported:
    """Add the entries of files that were checked to all backends.

    Args:
        paths: paths of the files.
        backends: backends of the cache. The first one decides which entry of a key stays.

    Raises:
        RunError: a backend cannot be written, or a file has changed since it was checked. Entries
            that were imported before stay.
    """
    done = Imported(0, 0, 0)
    for path in paths:
        try:
            entries = read(path)
            while batch := list(itertools.islice(entries, _BATCH)):
                done = _add_batch(batch, backends, done)
        except (InputError, UnavailableError) as error:
            # An InputError is a failure here, too: the file was sound when it was checked.
            what = str(error).removesuffix(NOTHING_IMPORTED)
            imported = plural(
                done.read,
                "entry was imported before that and stays",
                "entries were imported before that and stay",
            )
            raise RunError(f"{what}; {imported}: import the same files again") from None
    return done


def _add_batch(
    batch: Sequence[Entry], backends: Sequence[CacheBackend], done: Imported
) -> Imported:
    first, *others = backends
    # 1. The first backend decides which entries stay.
    before = first.get(entry.key.digest for entry in batch)
    stored = first.put(batch, "earliest")
    # 2. Copy its entries to the others. Another import may have stored an earlier entry in the
    # first backend meanwhile, so repeat this until nothing changes.
    for backend in others:
        copied = None
        while copied != stored:
            backend.put(stored.values(), "given")
            copied, stored = stored, stored | first.get(stored)
    # 3. Count new keys, and entries that disagree with the cache.
    new: set[str] = set()
    conflicts = 0
    for entry in batch:
        digest = entry.key.digest
        if digest not in before:
            new.add(digest)
        elif not before[digest].agrees(entry):
            conflicts += 1
    return Imported(done.read + len(batch), done.new + len(new), done.conflicts + conflicts)
