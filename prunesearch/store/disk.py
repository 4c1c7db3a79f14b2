"""The tier on this machine's disk: one SQLite file in a folder that belongs to its user alone.

What is damaged is taken out, kept aside, reported and computed again; it is never served. A row is checked whenever it
is read; a file that SQLite cannot read is set aside whole, and what is sound in it is copied into a new one.
"""

import contextlib
import functools
import itertools
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import diskcache

from prunesearch.errors import CorruptEntryError, StorageError, UnavailableError, one_line
from prunesearch.store.alarms import Alarm, AlarmFile
from prunesearch.store.entry import Entry, unseal
from prunesearch.store.places import private_folder
from prunesearch.store.strict import StrictCache, distrust, inspect, is_damage
from prunesearch.store.tier import Found, Group, settle

FILE = "cache.db"
_PAGE = 1000  # rows read at a time, so that no reader holds writers up
_Result = TypeVar("_Result")


class DiskTier:
    """Entries by key in a folder.

    Args:
        folder: made (mode 0700) if it is not there.

    Raises:
        StorageError: the folder cannot be written, others could write to it, it lies on a network file system, or its
            file is of a newer schema.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = str(folder)
        private_folder(folder)
        self.file = folder / FILE
        self._alarms = AlarmFile(folder / "alarms.jsonl")
        self._cache = self._open()

    def _open(self) -> StrictCache:
        try:
            try:
                return self._opened()
            except sqlite3.Error as error:
                if not is_damage(error):
                    raise
                aside = self._set_aside()
            cache = self._opened()
            self._salvage(cache, aside)
            return cache
        except (sqlite3.Error, OSError, diskcache.Timeout) as error:
            raise StorageError(
                f"cannot open the cache in {self.name!r}: {_reason(error)}; free space or mend the folder's rights, "
                "or give another --cache"
            ) from None

    def _opened(self) -> StrictCache:
        known = self.file.exists()
        if known:
            inspect(self.file)
        cache = StrictCache(self.folder)
        if not known:
            inspect(self.file)  # which writes our schema's version
        self._inode = self.file.stat().st_ino
        return cache

    def get(self, digests: Iterable[str]) -> Found:
        """The entries of those keys that there are. A damaged one is taken out and is not there.

        Raises:
            UnavailableError: the file cannot be read.
        """
        found: Found = {}
        for digest in digests:
            text = self._guarded("read", functools.partial(self._row, digest))
            if text is not None:
                try:
                    found[digest] = unseal(digest, text)
                except CorruptEntryError:
                    self._take_out(digest, text)
        return found

    def _row(self, digest: str) -> object:
        try:
            return self._cache.get(digest, default=None, retry=False)
        except CorruptEntryError as error:
            return error
        except sqlite3.DataError as error:  # larger than a row may be
            return error

    def _take_out(self, digest: str, found: object) -> None:
        self._alarms.add(Alarm.damage(digest, found))
        self.discard([digest])

    def put(self, entries: Iterable[Entry], *, merge: bool = False) -> Found:
        """Keep entries, in one transaction; on return they have been synced to disk.

        Args:
            merge: of two computations of a key keep the one that was made first, as an import does; else the one that
                is there.

        Returns:
            The entries that stand now, by digest.

        Raises:
            UnavailableError: the disk is full or read-only.
        """
        given = list(entries)

        def write() -> tuple[Found, list[Alarm]]:
            standing, alarms = {}, []
            with self._cache.transact():
                for entry in given:
                    there, row = None, self._row(entry.key.digest)
                    if row is not None:
                        try:
                            there = unseal(entry.key.digest, row)
                        except CorruptEntryError:
                            alarms.append(Alarm.damage(entry.key.digest, row))
                    stays, alarm = settle(there, entry, merge=merge)
                    if stays is not there:
                        self._cache.set(entry.key.digest, stays.sealed, tag="\n".join(stays.labels), retry=False)
                    standing[entry.key.digest] = stays
                    alarms += [alarm] if alarm else []
            return standing, alarms

        standing, alarms = self._guarded("write", write)
        while self._moved():  # by a process that found the file damaged: what was written may be lost with it
            self._cache = self._open()
            standing, alarms = self._guarded("write", write)
        for alarm in alarms:
            self._alarms.add(alarm)
        return standing

    def discard(self, digests: Iterable[str]) -> None:
        """Forget entries."""
        given = list(digests)

        def delete() -> None:
            with self._cache.transact():
                for digest in given:
                    self._cache.delete(digest, retry=False)

        self._guarded("write", delete)

    def scan(self) -> Iterator[tuple[str, Entry | None]]:
        """Every row's key and entry; None where it is damaged. Works on a folder that is read-only too.

        Raises:
            UnavailableError: the file cannot be read on.
        """
        with self._failures("read"):
            for digest, text in _rows(self.file):
                try:
                    yield digest, unseal(digest, text)
                except CorruptEntryError:
                    yield digest, None

    def groups(self) -> list[Group]:
        """Entries and bytes by model and kind of data."""
        query = "SELECT tag, COUNT(*), SUM(LENGTH(CAST(value AS BLOB))) FROM Cache GROUP BY tag ORDER BY tag"
        with self._failures("read"), _reading(self.file) as connection:
            rows = connection.execute(query).fetchall()
        split = [(str(tag).partition("\n"), count, size) for tag, count, size in rows]
        return [Group(model, kind or "unknown", count, size or 0) for (model, _, kind), count, size in split]

    def check(self) -> list[str]:
        """What SQLite finds wrong with the file itself."""
        with self._failures("read"), _reading(self.file) as connection:
            lines = [str(line) for (line,) in connection.execute("PRAGMA integrity_check")]
        return [] if lines == ["ok"] else lines

    def older_than(self, before: float) -> list[str]:
        """Digests of entries that were stored here before a time."""
        with self._failures("read"), _reading(self.file) as connection:
            rows = connection.execute("SELECT key FROM Cache WHERE store_time < ?", (before,)).fetchall()
        return [str(key) for (key,) in rows]

    def alarm(self, alarm: Alarm) -> None:
        """Keep an alarm."""
        self._alarms.add(alarm)

    def read_alarms(self) -> list[Alarm]:
        """What was found damaged or in disagreement, oldest first."""
        return self._alarms.read()

    def _guarded(self, verb: str, action: Callable[[], _Result]) -> _Result:
        """Do something with the file; if it is damaged, set it aside and do it with a new one."""
        if self._moved():
            self._cache = self._open()
        with self._failures(verb):
            try:
                return action()
            except sqlite3.Error as error:
                if not is_damage(error):
                    self._cache.close()  # a failed COMMIT leaves its transaction open
                    raise
            self._cache.close()
            aside = self._set_aside()
            self._cache = self._opened()
            self._salvage(self._cache, aside)
            return action()

    def _moved(self) -> bool:
        try:
            return self.file.stat().st_ino != self._inode
        except OSError:
            return True

    def _set_aside(self) -> Path:
        """Move the damaged file, with its journal, out of the way."""
        place = self.folder / "quarantine" / time.strftime("%Y%m%dT%H%M%S")
        number = 0
        while place.exists():
            number += 1
            place = place.with_name(f"{place.name.partition('-')[0]}-{number}")
        place.mkdir(parents=True, mode=0o700)
        for suffix in ("-journal", "-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.file}{suffix}").replace(place / (FILE + suffix))
        self._alarms.add(Alarm.damage(FILE, f"moved to {place}"))
        return place / FILE

    def _salvage(self, cache: StrictCache, aside: Path) -> None:
        """Copy what is sound in a damaged file."""
        rows = _rows(aside)
        while batch := list(itertools.islice(_sound(rows), _PAGE)):
            with cache.transact():
                for entry in batch:
                    cache.add(entry.key.digest, entry.sealed, tag="\n".join(entry.labels), retry=False)

    @contextmanager
    def _failures(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, diskcache.Timeout) as error:
            remedy = "free space and run again" if verb == "write" else "move the folder away and run again"
            raise UnavailableError(f"cannot {verb} the cache in {self.name!r}: {_reason(error)}; {remedy}") from None

    def __len__(self) -> int:
        with self._failures("read"), _reading(self.file) as connection:
            return int(connection.execute("SELECT COUNT(*) FROM Cache").fetchone()[0])

    def close(self) -> None:
        """Close this thread's connection."""
        self._cache.close()


def _sound(rows: Iterator[tuple[str, object]]) -> Iterator[Entry]:
    """The entries of a damaged file that are whole, as far as it can be read."""
    with contextlib.suppress(sqlite3.Error):
        for digest, text in rows:
            with contextlib.suppress(CorruptEntryError):
                yield unseal(digest, text)


@contextmanager
def _reading(file: Path) -> Iterator[sqlite3.Connection]:
    # Read-write where that is possible: a reader rolls back what a killed writer left.
    uri = f"{file.absolute().as_uri()}?mode=rw"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=60)) as connection:
        distrust(connection)
        yield connection


def _rows(file: Path) -> Iterator[tuple[str, object]]:
    """Key and value of every row, whatever it holds; what is no text of ours comes as something `unseal` refuses."""
    last = -(2**63)
    query = "SELECT key, raw, mode, filename, value FROM Cache WHERE rowid = ?"
    with _reading(file) as connection:
        while ids := connection.execute(
            "SELECT rowid FROM Cache WHERE rowid > ? ORDER BY rowid LIMIT ?", (last, _PAGE)
        ).fetchall():
            for (last,) in ids:
                try:
                    row = connection.execute(query, (last,)).fetchone()
                except sqlite3.DataError:
                    yield f"row {last}", None
                    continue
                if row is not None:
                    key, raw, mode, filename, value = row
                    ours = raw == 1 and mode == 1 and filename is None
                    yield str(key), value if ours else None


def _reason(error: BaseException) -> str:
    """What SQLite said, also where diskcache or a failed rollback covers it."""
    while isinstance(error.__context__, sqlite3.Error) and (
        isinstance(error, diskcache.Timeout) or "rollback" in str(error)
    ):
        error = error.__context__
    return one_line(error)
