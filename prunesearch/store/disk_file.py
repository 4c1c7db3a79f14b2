"""Reading a cache file without diskcache: whole, safely, and where the folder is read-only too."""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import diskcache

from prunesearch.errors import CorruptEntryError, UnavailableError, one_line
from prunesearch.store.alarms import Alarm, AlarmFile
from prunesearch.store.entry import Entry, unseal
from prunesearch.store.repair import FILE
from prunesearch.store.strict import distrust, is_damage
from prunesearch.store.tier import Group

_PAGE = 1000  # rows read at a time, so that no reader holds writers up
_LEAST_ROW = 128  # bytes: no row with its key and its checksum takes less
_PASSING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_FULL)


class DiskFile:
    """What a folder's cache file holds.

    Args:
        folder: where it is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = str(folder)
        self.file = folder / FILE
        self._alarms = AlarmFile(folder / "alarms.jsonl")

    def scan(self) -> Iterator[tuple[str, Entry | None]]:
        """Every row's key and entry; None where it is damaged. Works on a folder that is read-only too.

        Raises:
            UnavailableError: the file cannot be read on.
        """
        with self.failures("read"):
            for digest, text in _by_key(self.file):
                try:
                    yield digest, unseal(digest, text)
                except CorruptEntryError:
                    yield digest, None

    def groups(self) -> list[Group]:
        """Entries and bytes by model and kind of data."""
        query = "SELECT tag, COUNT(*), SUM(LENGTH(CAST(value AS BLOB))) FROM Cache GROUP BY tag ORDER BY tag"
        with self.failures("read"), _reading(self.file) as connection:
            rows = connection.execute(query).fetchall()
        split = [(str(tag or "unknown").partition("\n"), count, size) for tag, count, size in rows]
        return [Group(model, kind or "unknown", count, size or 0) for (model, _, kind), count, size in split]

    def check(self) -> list[str]:
        """What SQLite finds wrong with the file itself."""
        with self.failures("read"), _reading(self.file) as connection:
            try:
                lines = [str(line) for (line,) in connection.execute("PRAGMA integrity_check")]
            except sqlite3.DatabaseError as error:
                lines = [one_line(error)]
        return [] if lines == ["ok"] else lines

    def older_than(self, before: float) -> list[str]:
        """Digests of entries that were stored here before a time."""
        with self.failures("read"), _reading(self.file) as connection:
            rows = connection.execute("SELECT key FROM Cache WHERE store_time < ?", (before,)).fetchall()
        return [str(key) for (key,) in rows]

    def read_alarms(self) -> list[Alarm]:
        """What was found damaged or in disagreement, oldest first."""
        return self._alarms.read()

    @contextmanager
    def failures(self, verb: str) -> Iterator[None]:
        """Say in one line that the disk failed.

        Raises:
            UnavailableError: it did.
        """
        try:
            yield
        except (sqlite3.Error, OSError, diskcache.Timeout) as error:
            remedy = "free space and run again" if verb == "write" else "move the folder away and run again"
            if is_damage(error):
                remedy = f"repair it with prunesearch cache verify --cache {self.name}"
            raise UnavailableError(f"cannot {verb} the cache in {self.name!r}: {reason(error)}; {remedy}") from None

    def __len__(self) -> int:
        with self.failures("read"), _reading(self.file) as connection:
            return int(connection.execute("SELECT COUNT(*) FROM Cache").fetchone()[0])

    def close(self) -> None:
        """Nothing is kept open."""


@contextmanager
def _reading(file: Path) -> Iterator[sqlite3.Connection]:
    # Read-write where that is possible: a reader rolls back what a killed writer left.
    uri = f"{file.absolute().as_uri()}?mode=rw"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=60)) as connection:
        distrust(connection)
        yield connection


def rows(file: Path) -> Iterator[tuple[str, object]]:
    """Key and value of every row, whatever it holds; what is no text of ours comes as something `unseal` refuses."""
    for _, key, value in _numbered(file):
        yield key, value


def _numbered(file: Path, *, backwards: bool = False) -> Iterator[tuple[int, str, object]]:
    """The same with the number of the row."""
    query, last = "SELECT rowid FROM Cache WHERE rowid > ? ORDER BY rowid", -(2**63)
    if backwards:
        query, last = "SELECT rowid FROM Cache WHERE rowid < ? ORDER BY rowid DESC", 2**63 - 1
    with _reading(file) as connection:
        for (number,) in _paged(connection, query, last):
            for key, value in _row(connection, number):
                yield number, key, value


def sound(file: Path) -> Iterator[Entry]:
    """The entries of a damaged file that are whole: from both ends up to an unreadable page, then one by one."""
    lowest, highest = 0, file.stat().st_size // _LEAST_ROW  # of the rows that were not read yet
    for backwards in (False, True):
        try:
            for number, digest, text in _numbered(file, backwards=backwards):
                lowest, highest = (lowest, number) if backwards else (number, highest)
                with contextlib.suppress(CorruptEntryError):
                    yield unseal(digest, text)
            return
        except sqlite3.Error as error:
            _raise_unless_damage(error)
    yield from _one_by_one(file, range(lowest + 1, highest))


def _one_by_one(file: Path, numbers: Iterable[int]) -> Iterator[Entry]:
    """Entries between damaged pages."""
    try:
        with _reading(file) as connection:
            for number in numbers:
                try:
                    for digest, text in _row(connection, number):
                        with contextlib.suppress(CorruptEntryError):
                            yield unseal(digest, text)
                except sqlite3.DatabaseError as error:
                    if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_CORRUPT:
                        raise
    except sqlite3.Error as error:
        _raise_unless_damage(error)


def _raise_unless_damage(error: sqlite3.Error) -> None:
    """Go on where the file is to blame. Where it is not (busy, no memory, a full disk), another try may read more."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING:
        raise error


def _by_key(file: Path) -> Iterator[tuple[str, object]]:
    """The same in the order of keys; what has no key of ours comes last."""
    ours = "typeof(key) = 'text' AND length(key) = 64 AND key NOT GLOB '*[^0-9a-f]*'"
    last = ""
    with _reading(file) as connection:
        try:
            query = f"SELECT key, rowid FROM Cache WHERE key > ? AND {ours} ORDER BY key"
            for last, number in _paged(connection, query, ""):  # noqa: B007 (the error below needs it)
                yield from _row(connection, number)
            others = connection.execute(f"SELECT rowid FROM Cache WHERE NOT ({ours})").fetchall()
        except sqlite3.DataError:  # a key that is larger than a row may be: somebody else's
            yield from sorted((pair for pair in rows(file) if pair[0] > last), key=itemgetter(0))
            return
        for (number,) in others:
            yield from _row(connection, number)


def _paged(connection: sqlite3.Connection, query: str, last: object) -> Iterator[tuple[Any, ...]]:
    """Rows of a query that begins after its argument; each page is read at once, as far as it can be."""
    while True:
        page: list[tuple[Any, ...]] = []
        broken: sqlite3.Error | None = None
        try:
            page.extend(connection.execute(f"{query} LIMIT {_PAGE}", (last,)))
        except sqlite3.Error as error:
            broken = error
        yield from page
        if broken is not None:
            raise broken
        if not page:
            return
        last = page[-1][0]


def _row(connection: sqlite3.Connection, number: object) -> Iterator[tuple[str, object]]:
    try:
        row = connection.execute(
            "SELECT key, raw, mode, filename, value FROM Cache WHERE rowid = ?", (number,)
        ).fetchone()
    except sqlite3.DataError:  # larger than a row may be
        yield f"row {number}", None
        return
    if row is not None:
        key, raw, mode, filename, value = row
        ours = raw == 1 and mode == 1 and filename is None
        yield str(key), value if ours else None


def reason(error: BaseException) -> str:
    """What SQLite said, also where diskcache or a failed rollback covers it."""
    while isinstance(error.__context__, sqlite3.Error) and (
        isinstance(error, diskcache.Timeout) or "rollback" in str(error)
    ):
        error = error.__context__
    return one_line(error)
