"""Reads a cache file without diskcache: safely, and also where the folder is read-only."""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import diskcache

from prunesearch.cache.backend import EntryGroup, words_of
from prunesearch.cache.entry import Entry, parse_entry
from prunesearch.cache.hardening import harden_connection, is_damage
from prunesearch.cache.incidents import Incident, IncidentFile
from prunesearch.cache.repair import FILE
from prunesearch.errors import CorruptEntryError, UnavailableError, one_line

_PAGE = 1000  # number of rows that are read at once; a reader must not block writers for long
_LEAST_ROW = 128  # smallest size of a row in bytes: its key and its checksum alone take more
_PASSING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_FULL)


class DiskFile:
    """Reads the cache file of a folder.

    Args:
        folder: folder of the cache.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = str(folder)
        self.file = folder / FILE
        self._incidents = IncidentFile(folder)

    def scan(self) -> Iterator[tuple[str, Entry | None]]:
        """Yield the key and the entry of every row. A damaged entry is None.

        This works on a read-only folder, too.

        Raises:
            UnavailableError: the rest of the file cannot be read.
        """
        with self.failures("read"):
            for digest, text in _by_key(self.file):
                try:
                    yield digest, parse_entry(digest, text)
                except CorruptEntryError:
                    yield digest, None

    def of_candidates(self, model: str, candidates: Sequence[str]) -> Iterator[Entry]:
        """Yield the sound entries of some candidates of a model; see `Readable`."""
        named = " OR ".join(["instr(value, ?) > 0"] * len(candidates))
        query = f"SELECT rowid FROM Cache WHERE tag GLOB ? AND ({named})"
        # A tag holds the model and the kind, each on a line. A fingerprint has no wildcards.
        words = [f"{model}\n*", *map(words_of, candidates)]
        with self.failures("read"), _reading(self.file) as connection:
            numbers = connection.execute(query, words).fetchall() if candidates else []
            for (number,) in numbers:
                for digest, text in _row(connection, number):
                    with contextlib.suppress(CorruptEntryError):
                        yield parse_entry(digest, text)

    def groups(self) -> list[EntryGroup]:
        """Count entries and bytes by model and kind of data."""
        query = (
            "SELECT tag, COUNT(*), SUM(LENGTH(CAST(value AS BLOB))) "
            "FROM Cache GROUP BY tag ORDER BY tag"
        )
        with self.failures("read"), _reading(self.file) as connection:
            rows = connection.execute(query).fetchall()
        groups = []
        for tag, count, size in rows:
            # A tag holds the model and the kind, each on a line.
            model, _, kind = str(tag or "unknown").partition("\n")
            groups.append(EntryGroup(model, kind or "unknown", count, size or 0))
        return groups

    def check(self) -> list[str]:
        """Return the faults that SQLite finds in the file."""
        with self.failures("read"), _reading(self.file) as connection:
            try:
                lines = [str(line) for (line,) in connection.execute("PRAGMA integrity_check")]
            except sqlite3.DatabaseError as error:
                lines = [one_line(error)]
        if lines == ["ok"]:
            return []
        return lines

    def older_than(self, before: float) -> list[str]:
        """Return the digests of entries that were stored here before a time."""
        with self.failures("read"), _reading(self.file) as connection:
            rows = connection.execute(
                "SELECT key FROM Cache WHERE store_time < ?", (before,)
            ).fetchall()
        return [str(key) for (key,) in rows]

    def read_incidents(self) -> list[Incident]:
        """Return all reports of damage and disagreement, oldest first."""
        return self._incidents.read()

    @contextmanager
    def failures(self, verb: str) -> Iterator[None]:
        """Turn errors of the disk into a message of one line.

        Args:
            verb: "read" or "write", for the message.

        Raises:
            UnavailableError: the disk or the file failed.
        """
        try:
            yield
        except (sqlite3.Error, OSError, diskcache.Timeout) as error:
            remedy = "move the folder away and run again"
            if verb == "write":
                remedy = "free space and run again"
            if is_damage(error):
                remedy = f"repair it with prunesearch cache verify --cache {self.name}"
            raise UnavailableError(
                f"cannot {verb} the cache in {self.name!r}: {reason(error)}; {remedy}"
            ) from None

    def __len__(self) -> int:
        with self.failures("read"), _reading(self.file) as connection:
            return int(connection.execute("SELECT COUNT(*) FROM Cache").fetchone()[0])

    def close(self) -> None:
        """Do nothing: no connection is kept open."""


@contextmanager
def _reading(file: Path) -> Iterator[sqlite3.Connection]:
    # Open the file for writing if possible: a reader rolls back the transaction of a killed writer.
    uri = f"{file.absolute().as_uri()}?mode=rw"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=60)) as connection:
        harden_connection(connection)
        yield connection


def rows(file: Path) -> Iterator[tuple[str, object]]:
    """Yield the key and the value of every row.

    Values that prunesearch did not write are replaced by a placeholder that `parse_entry` refuses.
    """
    for _, key, value in _numbered(file):
        yield key, value


def _numbered(file: Path, *, backwards: bool = False) -> Iterator[tuple[int, str, object]]:
    """Yield the number, the key and the value of every row, in the order of numbers."""
    query, last = "SELECT rowid FROM Cache WHERE rowid > ? ORDER BY rowid", -(2**63)
    if backwards:
        query, last = "SELECT rowid FROM Cache WHERE rowid < ? ORDER BY rowid DESC", 2**63 - 1
    with _reading(file) as connection:
        for (number,) in _paged(connection, query, last):
            for key, value in _row(connection, number):
                yield number, key, value


def sound(file: Path) -> Iterator[Entry]:
    """Yield the sound entries of a damaged file.

    Rows are read from both ends up to an unreadable page, and one by one in between.
    """
    # Rows between these two numbers were not read yet.
    lowest, highest = 0, file.stat().st_size // _LEAST_ROW
    for backwards in (False, True):
        try:
            for number, digest, text in _numbered(file, backwards=backwards):
                if backwards:
                    highest = number
                else:
                    lowest = number
                with contextlib.suppress(CorruptEntryError):
                    yield parse_entry(digest, text)
            # The last row was reached without an error, so nothing is left.
            return
        except sqlite3.Error as error:
            _raise_unless_damage(error)
    yield from _one_by_one(file, range(lowest + 1, highest))


def _one_by_one(file: Path, numbers: Iterable[int]) -> Iterator[Entry]:
    """Yield the sound entries between damaged pages."""
    try:
        with _reading(file) as connection:
            for number in numbers:
                try:
                    for digest, text in _row(connection, number):
                        with contextlib.suppress(CorruptEntryError):
                            yield parse_entry(digest, text)
                except sqlite3.DatabaseError as error:
                    # Skip a row on a damaged page.
                    if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_CORRUPT:
                        raise
    except sqlite3.Error as error:
        _raise_unless_damage(error)


def _raise_unless_damage(error: sqlite3.Error) -> None:
    """Raise an error that may pass: a busy file, too little memory, a full disk.

    Another attempt may then read more. All other errors count as damage of the file.
    """
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING:
        raise error


def _by_key(file: Path) -> Iterator[tuple[str, object]]:
    """Yield the key and the value of every row in the order of keys.

    Rows with foreign keys come last.
    """
    ours = "typeof(key) = 'text' AND length(key) = 64 AND key NOT GLOB '*[^0-9a-f]*'"
    last = ""
    with _reading(file) as connection:
        try:
            query = f"SELECT key, rowid FROM Cache WHERE key > ? AND {ours} ORDER BY key"
            # The error below names `last`.
            for last, number in _paged(connection, query, ""):  # noqa: B007
                yield from _row(connection, number)
            others = connection.execute(f"SELECT rowid FROM Cache WHERE NOT ({ours})").fetchall()
        except sqlite3.DataError:
            # A foreign key is larger than a row may be. Sort the remaining rows here instead.
            left = [pair for pair in rows(file) if pair[0] > last]
            yield from sorted(left, key=itemgetter(0))
            return
        for (number,) in others:
            yield from _row(connection, number)


def _paged(connection: sqlite3.Connection, query: str, last: object) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a query in pages.

    A page is read at once, as far as it is readable. Its rows are yielded before an error is
    raised.

    Args:
        query: statement that selects the rows after its argument.
        last: first argument of the query.
    """
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
    except sqlite3.DataError:  # the row is larger than a row may be
        yield f"row {number}", None
        return
    if row is not None:
        key, raw, mode, filename, value = row
        # Only plain text values are our own. diskcache would unpickle others, or read them from a
        # file.
        ours = raw == 1 and mode == 1 and filename is None
        yield str(key), value if ours else None


def reason(error: BaseException) -> str:
    """Return SQLite's message, also where an error of diskcache or of a rollback hides it."""
    while isinstance(error.__context__, sqlite3.Error) and (
        isinstance(error, diskcache.Timeout) or "rollback" in str(error)
    ):
        error = error.__context__
    return one_line(error)
