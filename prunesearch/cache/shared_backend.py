"""The backend that machines share: tables in a SQL database, which may also hold Optuna's tables.

The database is PostgreSQL for teams, or SQLite for several processes of one host. Alembic migrates
the schema. Its version is kept in a table of its own, `prunesearch_alembic_version`, because Optuna
and MLflow use ``alembic_version``.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import sqlalchemy
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

from prunesearch.cache.backend import (
    EntryGroup,
    FoundEntries,
    SettleRule,
    settle,
    words_of,
)
from prunesearch.cache.entry import Entry, parse_entry
from prunesearch.cache.incidents import DISAGREEMENT, Incident
from prunesearch.cache.location import check_url, shown, sqlite_file
from prunesearch.cache.tables import EVALUATIONS, INCIDENTS, connect
from prunesearch.errors import (
    CorruptEntryError,
    StorageError,
    UnavailableError,
    one_line,
)

_MOST = 500  # largest number of keys in one statement; every database takes that many parameters
_PAGE = 1000  # number of rows that are read at once


class SharedBackend:
    """Stores entries by key in a SQL database.

    Args:
        url: SQLAlchemy URL of the database.

    Attributes:
        damaged: number of entries that were found damaged and removed.

    Raises:
        StorageError: a driver is missing, the database refuses access or does not answer, or its
            schema is newer.
    """

    def __init__(self, url: str) -> None:
        check_url(url, "`cache`")
        self.name = shown(url)
        self.damaged = 0
        try:
            if file := sqlite_file(url):
                file.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            self.engine = connect(url)
        except (ImportError, NoSuchModuleError):
            raise StorageError(
                f"`cache` {self.name!r} needs a driver: pip install 'prunesearch[postgres]' and "
                f"write "
                "postgresql+psycopg://"
            ) from None
        except OSError as error:
            raise StorageError(f"cannot open `cache` {self.name!r}: {error.strerror}") from None
        from prunesearch.cache.schema import ensure  # Alembic takes a while to import

        try:
            with self.failures():
                ensure(self.engine, self.name)
        except UnavailableError as error:
            raise StorageError(str(error)) from None

    def get(self, digests: Iterable[str]) -> FoundEntries:
        """Return the entries of those keys that are stored. Damaged entries are removed.

        Raises:
            UnavailableError: the database does not answer.
        """
        found: FoundEntries = {}
        damaged: list[str] = []
        with self._reading() as connection:
            for digest, text in self._texts(connection, list(digests)):
                try:
                    found[digest] = parse_entry(digest, text)
                except CorruptEntryError:
                    damaged.append(digest)
        if damaged:
            # Another process may have replaced a damaged entry by a sound one meanwhile.
            found |= self.take_out(damaged)
        return found

    def take_out(self, digests: Iterable[str]) -> FoundEntries:
        """Remove those of these entries that are damaged; see `LocalBackend.take_out`."""
        sound: FoundEntries = {}
        with self.failures(), self.engine.begin() as connection:
            for digest, text in list(self._texts(connection, sorted(digests))):
                try:
                    sound[digest] = parse_entry(digest, text)
                    continue
                except CorruptEntryError:
                    # Delete the row only while it still holds this text.
                    this = sqlalchemy.and_(
                        EVALUATIONS.c.key == digest, EVALUATIONS.c.serialized == text
                    )
                if connection.execute(EVALUATIONS.delete().where(this)).rowcount:
                    self._report_incident(connection, Incident.damage(digest, text))
                    self.damaged += 1
        return sound

    def _texts(self, connection: Connection, digests: Sequence[str]) -> Iterator[tuple[str, str]]:
        columns = sqlalchemy.select(EVALUATIONS.c.key, EVALUATIONS.c.serialized)
        for start in range(0, len(digests), _MOST):
            some = digests[start : start + _MOST]
            rows = connection.execute(columns.where(EVALUATIONS.c.key.in_(some)))
            yield from ((digest, text) for digest, text in rows.all())

    def _report_incident(self, connection: Connection, incident: Incident) -> None:
        if (
            incident.kind == DISAGREEMENT
            and connection.execute(
                sqlalchemy.select(INCIDENTS.c.id).where(
                    INCIDENTS.c.key == incident.key, INCIDENTS.c.detail == incident.detail
                )
            ).first()
        ):
            return  # the same two values were reported before
        incident.log(self.name)
        connection.execute(INCIDENTS.insert().values(**asdict(incident)))

    def put(self, entries: Iterable[Entry], rule: SettleRule = "first") -> FoundEntries:
        """Store entries in one transaction; see `LocalBackend.put`.

        Raises:
            UnavailableError: the database does not answer.
        """
        with self.failures(), self.engine.begin() as connection:
            return self.put_in(connection, entries, rule)

    def put_in(
        self, connection: Connection, entries: Iterable[Entry], rule: SettleRule = "first"
    ) -> FoundEntries:
        """Store entries in a transaction that has begun."""
        given = {entry.key.digest: entry for entry in entries}
        # Rows are locked in one order, so that two transactions never wait for each other.
        order = sorted(given)
        stored: FoundEntries = {}
        for start in range(0, len(order), _MOST):
            rows = [_row(given[digest]) for digest in order[start : start + _MOST]]
            for digest, text in connection.execute(self._keep(rows)).all():
                stored[digest] = self._settle(connection, given[digest], text, rule)
        return stored

    def _keep(self, rows: Sequence[dict[str, str | float]]) -> sqlalchemy.Executable:
        """Make a statement that inserts rows, or locks existing ones, and returns the stored rows.

        An update that changes nothing takes the lock. Until the transaction ends, no other
        transaction deletes or changes the row.
        """
        if self.engine.dialect.name == "postgresql":
            insert: postgresql.Insert | sqlite.Insert = postgresql.insert(EVALUATIONS).values(rows)
        else:
            insert = sqlite.insert(EVALUATIONS).values(rows)
        kept = insert.on_conflict_do_update(
            index_elements=[EVALUATIONS.c.key], set_={"key": insert.excluded.key}
        )
        return kept.returning(EVALUATIONS.c.key, EVALUATIONS.c.serialized)

    def _settle(self, connection: Connection, entry: Entry, text: str, rule: SettleRule) -> Entry:
        digest = entry.key.digest
        # Most often the row was just inserted, or holds the same entry.
        if text == entry.serialized:
            return entry
        # Otherwise read the entry that is stored. A damaged one is replaced.
        try:
            there: Entry | None = parse_entry(digest, text)
        except CorruptEntryError:
            self._report_incident(connection, Incident.damage(digest, text))
            there = None
        kept, incident = settle(there, entry, rule)
        if kept is not there:
            connection.execute(
                EVALUATIONS.update()
                .where(EVALUATIONS.c.key == digest)
                .values(serialized=kept.serialized)
            )
        if incident is not None:
            self._report_incident(connection, incident)
        return kept

    def report_incident(self, incident: Incident) -> None:
        """Store and log an incident."""
        with self.failures(), self.engine.begin() as connection:
            self._report_incident(connection, incident)

    def discard(self, digests: Iterable[str]) -> None:
        """Delete entries."""
        given = sorted(digests)
        with self.failures(), self.engine.begin() as connection:
            for start in range(0, len(given), _MOST):
                connection.execute(
                    EVALUATIONS.delete().where(EVALUATIONS.c.key.in_(given[start : start + _MOST]))
                )

    def scan(self) -> Iterator[tuple[str, Entry | None]]:
        """Yield the key and the entry of every row, in the order of keys.

        A damaged entry is None.
        """
        last = ""
        columns = (
            sqlalchemy.select(EVALUATIONS.c.key, EVALUATIONS.c.serialized)
            .order_by(EVALUATIONS.c.key)
            .limit(_PAGE)
        )
        while True:
            # Each page is read in a transaction of its own, so that no transaction stays open for
            # long.
            with self._reading() as connection:
                rows = connection.execute(columns.where(EVALUATIONS.c.key > last)).all()
            for digest, text in rows:
                try:
                    yield digest, parse_entry(digest, text)
                except CorruptEntryError:
                    yield digest, None
            if not rows:
                return
            last = rows[-1][0]

    def of_candidates(self, model: str, candidates: Sequence[str]) -> Iterator[Entry]:
        """Yield the sound entries of some candidates of a model; see `Readable`."""
        columns = sqlalchemy.select(EVALUATIONS.c.key, EVALUATIONS.c.serialized)
        for candidate in candidates:
            named = EVALUATIONS.c.serialized.contains(words_of(candidate), autoescape=True)
            with self._reading() as connection:
                rows = connection.execute(columns.where(EVALUATIONS.c.model == model, named)).all()
            for digest, text in rows:
                with contextlib.suppress(CorruptEntryError):
                    yield parse_entry(digest, text)

    def groups(self) -> list[EntryGroup]:
        """Count entries and bytes by model and kind of data."""
        columns = (EVALUATIONS.c.model, EVALUATIONS.c.kind)
        query = sqlalchemy.select(
            *columns,
            sqlalchemy.func.count(),
            sqlalchemy.func.sum(sqlalchemy.func.length(EVALUATIONS.c.serialized)),
        )
        with self._reading() as connection:
            rows = connection.execute(query.group_by(*columns).order_by(*columns)).all()
        return [EntryGroup(model, kind, count, int(size)) for model, kind, count, size in rows]

    def check(self) -> list[str]:
        """Return the faults that SQLite finds in its file. PostgreSQL checks its own files."""
        if self.engine.dialect.name != "sqlite":
            return []
        with self._reading() as connection:
            lines = list(connection.exec_driver_sql("PRAGMA integrity_check").scalars())
        if lines == ["ok"]:
            return []
        return lines

    def older_than(self, before: float) -> list[str]:
        """Return the digests of entries that were stored before a time."""
        query = sqlalchemy.select(EVALUATIONS.c.key).where(EVALUATIONS.c.stored < before)
        with self._reading() as connection:
            return list(connection.execute(query).scalars())

    def read_incidents(self) -> list[Incident]:
        """Return all reports of damage and disagreement, oldest first."""
        columns = (INCIDENTS.c.kind, INCIDENTS.c.key, INCIDENTS.c.detail, INCIDENTS.c.at)
        with self._reading() as connection:
            return [
                Incident(*row)
                for row in connection.execute(sqlalchemy.select(*columns).order_by(INCIDENTS.c.id))
            ]

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """Open a transaction that writes nothing. On SQLite it does not block writers."""
        with (
            self.failures(),
            self.engine.connect() as connection,
            connection.execution_options(reading=True).begin(),
        ):
            yield connection

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Turn errors of the database into a message of one line.

        Raises:
            UnavailableError: the database failed.
        """
        with unavailable(self.name):
            yield

    def __len__(self) -> int:
        query = sqlalchemy.select(sqlalchemy.func.count()).select_from(EVALUATIONS)
        with self._reading() as connection:
            return int(connection.execute(query).scalar_one())

    def close(self) -> None:
        """Close all connections."""
        with contextlib.suppress(SQLAlchemyError):
            self.engine.dispose()


@contextmanager
def unavailable(name: str) -> Iterator[None]:
    """Turn errors of a database into a message of one line.

    Args:
        name: location of the database, for the message.

    Raises:
        UnavailableError: the database failed.
    """
    try:
        yield
    except SQLAlchemyError as error:
        reason = one_line(getattr(error, "orig", None) or error)
        raise UnavailableError(
            f"the shared cache {name} does not work: {reason}; fix it and run again"
        ) from None


def _row(entry: Entry) -> dict[str, str | float]:
    model, kind = entry.labels
    return {
        "key": entry.key.digest,
        "model": model[:64],
        "kind": kind[:64],
        "stored": time.time(),
        "serialized": entry.serialized,
    }
