"""Who computes what: leases on keys, so that what several want at once is computed once.

A lease is granted by one SQL statement, runs out by the database's clock unless its owner renews it, and carries a
fencing token. The token is raised when a lease passes on without having been given back: a result is accepted in a
transaction that sees the lease still held under its owner's name and token, so an owner that slept past its time is
refused. A lease that is given back leaves nothing: the next one begins at 1, under a name that no other owner ever has.
C. Gray, D. Cheriton, "Leases", SOSP 1989; the fencing is M. Kleppmann's, "How to do distributed locking", 2016.

PostgreSQL has a clock of its own. SQLite has none, and is used by one host only: it is given the host's monotonic
clock, which all processes share and nobody sets.
"""

import contextlib
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import sqlalchemy
from filelock import FileLock, Timeout
from sqlalchemy import ColumnElement, Connection, Engine, Float
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from prunesearch.errors import UnavailableError, one_line
from prunesearch.store.strict import is_damage
from prunesearch.store.tables import CLOCK, LEASES, METADATA, sqlite_engine

TTL = 60.0
"""Seconds that a lease lives unless it is renewed, which happens three times in that span."""
LONGEST = 3600.0
"""No lease is longer; one that seems so was granted before the host started anew."""
_OWNER = re.compile(r"[0-9a-f]{32}")
_MOST = 200  # keys in one statement
_ATTEMPTS = 5  # at a file that is damaged, or that other processes keep replacing
_Result = TypeVar("_Result")


class Leases:
    """The leases in one database.

    Args:
        engine: its tables are there.
        name: where that is, for people.
        ttl: seconds a lease lives.
    """

    def __init__(self, engine: Engine, name: str, ttl: float = TTL) -> None:
        assert 0 < ttl <= LONGEST
        self.ttl = ttl
        self.name = name
        self.engine = engine
        self._insert: Callable[..., postgresql.Insert | sqlite.Insert]
        self._insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert

    @property
    def _now(self) -> ColumnElement[float]:
        if self.engine.dialect.name == "postgresql":
            return sqlalchemy.cast(sqlalchemy.extract("epoch", sqlalchemy.func.clock_timestamp()), Float)
        return sqlalchemy.literal_column(f"{CLOCK}()", Float())

    @property
    def _over(self) -> ColumnElement[bool]:
        return sqlalchemy.or_(LEASES.c.expires <= self._now, LEASES.c.expires > self._now + LONGEST)

    def claim(self, owner: str, digests: Iterable[str]) -> dict[str, int]:
        """Lease those keys that nobody holds, in one transaction.

        Returns:
            The fencing token of each key that was granted.

        Raises:
            UnavailableError: the database does not answer.
        """
        wanted = sorted(digests)  # so that two claims never wait for each other

        def claim(connection: Connection) -> dict[str, int]:
            granted: dict[str, int] = {}
            for start in range(0, len(wanted), _MOST):
                granted |= self._claim(connection, owner, wanted[start : start + _MOST])
            return granted

        return self._transact(claim)

    def _claim(self, connection: Connection, owner: str, wanted: Sequence[str]) -> dict[str, int]:
        until = self._now + self.ttl
        rows = [{"key": digest, "owner": owner, "token": 1, "expires": until} for digest in wanted]
        statement = self._insert(LEASES).values(rows)
        statement = statement.on_conflict_do_update(
            index_elements=[LEASES.c.key],
            set_={"owner": owner, "token": LEASES.c.token + 1, "expires": until},
            where=self._over,
        )
        granted = connection.execute(statement.returning(LEASES.c.key, LEASES.c.token))
        return {row.key: row.token for row in granted}

    def renew(self, owner: str) -> None:
        """Let all leases of an owner live for another span."""
        renewed = LEASES.update().where(LEASES.c.owner == owner).values(expires=self._now + self.ttl)
        self._transact(lambda connection: connection.execute(renewed))

    def release(self, owner: str, digests: Iterable[str] | None = None) -> None:
        """Give leases back; all of the owner's by default."""
        mine = LEASES.c.owner == owner
        given = None if digests is None else sorted(digests)

        def release(connection: Connection) -> None:
            if given is None:
                connection.execute(LEASES.delete().where(mine))
                return
            for start in range(0, len(given), _MOST):
                connection.execute(LEASES.delete().where(mine, LEASES.c.key.in_(given[start : start + _MOST])))

        self._transact(release)

    @contextmanager
    def held(self, owner: str, tokens: Mapping[str, int]) -> Iterator[tuple[Connection, set[str]]]:
        """A transaction in which leases cannot be lost; at its end those that were held are given back.

        Yields:
            The transaction, and the digests that are still held under their tokens: results of others must be refused.
        """
        with self.engine.begin() as connection:
            held = self._held(connection, owner, tokens)
            yield connection, held
            self._give_back(connection, owner, held)

    def _held(self, connection: Connection, owner: str, tokens: Mapping[str, int]) -> set[str]:
        query = sqlalchemy.select(LEASES.c.key, LEASES.c.token)
        query = query.where(LEASES.c.owner == owner, LEASES.c.key.in_(sorted(tokens))).with_for_update()
        return {key for key, token in connection.execute(query) if tokens[key] == token}

    def _give_back(self, connection: Connection, owner: str, held: set[str]) -> None:
        if held:
            connection.execute(LEASES.delete().where(LEASES.c.owner == owner, LEASES.c.key.in_(sorted(held))))

    def owners(self, digests: Iterable[str]) -> set[str]:
        """Who holds these keys."""
        given = sorted(digests)

        def owners(connection: Connection) -> set[str]:
            found: set[str] = set()
            for start in range(0, len(given), _MOST):
                query = sqlalchemy.select(LEASES.c.owner).where(LEASES.c.key.in_(given[start : start + _MOST]))
                found.update(connection.execute(query).scalars())
            return found

        return self._transact(owners)

    def count(self) -> tuple[int, int]:
        """How many leases are alive, and how many have run out without being taken over."""
        query = sqlalchemy.select(sqlalchemy.func.count()).select_from(LEASES)

        def count(connection: Connection) -> tuple[int, int]:
            every = int(connection.execute(query).scalar_one())
            over = int(connection.execute(query.where(self._over)).scalar_one())
            return every - over, over

        return self._transact(count)

    def sweep(self) -> int:
        """Remove leases that have run out; returns how many."""
        return self._transact(lambda connection: int(connection.execute(LEASES.delete().where(self._over)).rowcount))

    def _transact(self, action: Callable[[Connection], _Result]) -> _Result:
        """Do something in one transaction.

        Raises:
            UnavailableError: the database does not answer.
        """
        with self._failures(), self.engine.begin() as connection:
            return action(connection)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            reason = one_line(getattr(error, "orig", None) or error)
            raise UnavailableError(f"the leases in {self.name} do not work: {reason}; mend it and run again") from None


class FolderLeases(Leases):
    """The leases of processes that share a folder, in a file ``leases.db``.

    The file is not synced to disk: after a power cut nobody is left who holds a lease. So its content is worth nothing:
    one that turns out damaged, at whatever page and moment, is made anew. Two processes may then compute the same once.

    Raises:
        UnavailableError: the folder cannot be written.
    """

    def __init__(self, folder: Path, ttl: float = TTL) -> None:
        self._file = folder / "leases.db"
        url = sqlalchemy.URL.create("sqlite", database=str(self._file))
        engine = sqlite_engine(url, ("journal_mode = DELETE", "synchronous = OFF"))
        super().__init__(engine, str(self._file), ttl)
        self._inode: int | None = None
        self._transact(lambda connection: None)

    def _transact(self, action: Callable[[Connection], _Result]) -> _Result:
        with self._failures():
            for _ in range(_ATTEMPTS):
                try:
                    self._ensure()
                    with self.engine.begin() as connection:
                        return action(connection)
                except SQLAlchemyError as error:
                    if not self._recovers(error):
                        raise
            with self.engine.begin() as connection:
                return action(connection)

    @contextmanager
    def held(self, owner: str, tokens: Mapping[str, int]) -> Iterator[tuple[Connection, set[str]]]:
        """See `Leases.held`. Where the file has been made anew the owner gets its leases again, if they are free."""
        with contextlib.ExitStack() as stack:
            connection, held = self._begin_held(stack, owner, tokens)
            yield connection, held
            try:
                self._give_back(connection, owner, held)
                stack.close()
            except SQLAlchemyError as error:  # what was done in the meantime is done: leases run out by themselves
                if not self._recovers(error):
                    raise

    def _begin_held(
        self, stack: contextlib.ExitStack, owner: str, tokens: Mapping[str, int]
    ) -> tuple[Connection, set[str]]:
        renewed = False
        for attempt in range(_ATTEMPTS):
            try:
                renewed = self._ensure() or renewed
                connection = stack.enter_context(self.engine.begin())
                held = self._held(connection, owner, tokens)
                if renewed:
                    held |= set(self._claim(connection, owner, sorted(set(tokens) - held)))
                return connection, held
            except SQLAlchemyError as error:
                with contextlib.suppress(SQLAlchemyError):
                    stack.close()
                if attempt + 1 == _ATTEMPTS or not self._recovers(error):
                    raise
                renewed = True
        raise AssertionError("the last attempt returns or raises")

    def _ensure(self) -> bool:
        """Have the file and its table; whether another file than before is there."""
        before, self._inode = self._inode, self._present()
        if self._inode is not None and self._inode == before:
            return False
        self.engine.dispose()  # connections to a file that another process has replaced
        with self.engine.begin() as connection:
            METADATA.create_all(connection, tables=[LEASES])
            connection.execute(sqlalchemy.select(LEASES).limit(1))
        self._inode = self._present()
        return before is not None

    def _recovers(self, error: SQLAlchemyError) -> bool:
        """Whether another try may succeed: the file has been replaced, or is damaged and replaced now."""
        self.engine.dispose()
        if self._present() != self._inode:
            return True
        if not (is_damage(getattr(error, "orig", None) or error) or "no such column" in str(error)):
            return False
        with FileLock(self._file.with_name("repair.lock")):
            if self._present() == self._inode:
                for suffix in ("-journal", ""):
                    self._file.with_name(self._file.name + suffix).unlink(missing_ok=True)
        return True

    def _present(self) -> int | None:
        try:
            return self._file.stat().st_ino
        except OSError:
            return None

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            reason = one_line(getattr(error, "orig", None) or error)
            raise UnavailableError(
                f"cannot use the leases in {self.name!r}: {reason}; free space and run again"
            ) from None


def folder_leases(folder: Path, ttl: float = TTL) -> Leases:
    """The leases of processes that share a folder.

    Raises:
        UnavailableError: the folder cannot be written.
    """
    return FolderLeases(folder, ttl)


class Presence:
    """Shows the processes of this host that an owner of leases is alive: it holds a lock that dies with it.

    So what a killed process left is taken over at once, not when its leases run out.

    Args:
        folder: shared by the processes.

    Attributes:
        owner: name of this owner.
    """

    def __init__(self, folder: Path | None) -> None:
        self.owner = uuid.uuid4().hex
        self._folder = folder and folder / "owners"
        self._lock: FileLock | None = None
        if self._folder is not None:
            with contextlib.suppress(OSError):  # a full disk: others wait until the leases run out
                self._folder.mkdir(exist_ok=True, mode=0o700)
                lock = FileLock(self._file(self.owner), thread_local=False)
                lock.acquire(blocking=False)
                self._lock = lock

    def is_dead(self, owner: str) -> bool:
        """Whether an owner is known to have died: it left a lock that nobody holds."""
        if self._folder is None or owner == self.owner or not _OWNER.fullmatch(owner):
            return False
        if not self._file(owner).is_file():
            return False  # it lives on another host, for all we know
        lock = FileLock(self._file(owner))
        try:
            lock.acquire(blocking=False)
        except (Timeout, OSError):
            return False
        lock.release()
        return True

    def bury(self, owner: str) -> None:
        """Remove what a dead owner left."""
        if self._folder is not None and _OWNER.fullmatch(owner):
            self._file(owner).unlink(missing_ok=True)

    def dead(self) -> list[str]:
        """The owners that died here and were not buried."""
        files = [] if self._folder is None else sorted(self._folder.glob("*.lock"))
        return [file.stem for file in files if self.is_dead(file.stem)]

    def leave(self) -> None:
        """Give up the lock."""
        if self._lock is not None:
            self.bury(self.owner)
            self._lock.release()

    def _file(self, owner: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{owner}.lock"
