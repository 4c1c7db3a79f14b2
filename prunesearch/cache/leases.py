"""Leases on keys, so that a key that several processes need is computed once.

One SQL statement grants a lease. The lease runs out by the database's clock unless its owner renews
it. It carries a fencing token, which is raised when the lease passes on without having been
released. A result is accepted in a transaction that sees the lease still held under its owner's
name and token, so an owner that slept past the end of its lease is refused. Releasing a lease
deletes its row: the next lease begins with token 1, under an owner name that is never used again.
C. Gray, D. Cheriton, "Leases", SOSP 1989. M. Kleppmann, "How to do distributed locking", 2016
(fencing).

PostgreSQL has a clock of its own. SQLite has no clock and serves one host only, so it gets the
host's monotonic clock, which all processes share and which cannot be set.
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

from prunesearch.cache.hardening import is_damage
from prunesearch.cache.tables import (
    CLOCK,
    LEASES,
    METADATA,
    sqlite_engine,
)
from prunesearch.errors import UnavailableError, one_line

TTL = 60.0
"""Seconds that a lease lives unless it is renewed. It is renewed three times in that span."""
LONGEST = 3600.0
"""Longest lease in seconds. One that seems to last longer was granted before the host restarted."""
_OWNER = re.compile(r"[0-9a-f]{32}")
_MOST = 200  # largest number of keys in one statement
_ATTEMPTS = 5  # attempts at a file that is damaged, or that other processes keep replacing
_Result = TypeVar("_Result")


class Leases:
    """The leases in one database.

    Args:
        engine: engine of the database. Its tables must exist.
        name: location of the database, for messages.
        ttl: lifetime of a lease in seconds.
    """

    def __init__(self, engine: Engine, name: str, ttl: float = TTL) -> None:
        assert 0 < ttl <= LONGEST
        self.ttl = ttl
        self.name = name
        self.engine = engine
        self._insert: Callable[..., postgresql.Insert | sqlite.Insert] = sqlite.insert
        if engine.dialect.name == "postgresql":
            self._insert = postgresql.insert

    @property
    def _now(self) -> ColumnElement[float]:
        if self.engine.dialect.name == "postgresql":
            return sqlalchemy.cast(
                sqlalchemy.extract("epoch", sqlalchemy.func.clock_timestamp()), Float
            )
        return sqlalchemy.literal_column(f"{CLOCK}()", Float())

    @property
    def _over(self) -> ColumnElement[bool]:
        return sqlalchemy.or_(LEASES.c.expires <= self._now, LEASES.c.expires > self._now + LONGEST)

    def acquire(self, owner: str, digests: Iterable[str]) -> dict[str, int]:
        """Lease those keys that no owner holds, in one transaction.

        Returns:
            The fencing token of each key that was granted.

        Raises:
            UnavailableError: the database does not answer.
        """
        # Rows are locked in one order, so that two transactions never wait for each other.
        wanted = sorted(digests)

        def acquire(connection: Connection) -> dict[str, int]:
            granted: dict[str, int] = {}
            for start in range(0, len(wanted), _MOST):
                granted |= self._acquire(connection, owner, wanted[start : start + _MOST])
            return granted

        return self._transact(acquire)

    def _acquire(self, connection: Connection, owner: str, wanted: Sequence[str]) -> dict[str, int]:
        until = self._now + self.ttl
        rows = [{"key": digest, "owner": owner, "token": 1, "expires": until} for digest in wanted]
        statement = self._insert(LEASES).values(rows)
        # A row that exists is taken over only if its lease has run out.
        statement = statement.on_conflict_do_update(
            index_elements=[LEASES.c.key],
            set_={"owner": owner, "token": LEASES.c.token + 1, "expires": until},
            where=self._over,
        )
        granted = connection.execute(statement.returning(LEASES.c.key, LEASES.c.token))
        return {row.key: row.token for row in granted}

    def renew(self, owner: str) -> None:
        """Renew all leases of an owner for another `ttl` seconds."""
        renewed = (
            LEASES.update().where(LEASES.c.owner == owner).values(expires=self._now + self.ttl)
        )
        self._transact(lambda connection: connection.execute(renewed))

    def release(self, owner: str, digests: Iterable[str] | None = None) -> None:
        """Release leases of an owner; all of them by default."""
        owned = LEASES.c.owner == owner
        given = None if digests is None else sorted(digests)

        def release(connection: Connection) -> None:
            if given is None:
                connection.execute(LEASES.delete().where(owned))
                return
            for start in range(0, len(given), _MOST):
                connection.execute(
                    LEASES.delete().where(owned, LEASES.c.key.in_(given[start : start + _MOST]))
                )

        self._transact(release)

    @contextmanager
    def held(self, owner: str, tokens: Mapping[str, int]) -> Iterator[tuple[Connection, set[str]]]:
        """Open a transaction in which leases cannot be lost, and release them at its end.

        Yields:
            The transaction, and the digests that are still held under their tokens. Results of all
            other digests must be refused.
        """
        with self.engine.begin() as connection:
            held = self._held(connection, owner, tokens)
            yield connection, held
            self._release(connection, owner, held)

    def _held(self, connection: Connection, owner: str, tokens: Mapping[str, int]) -> set[str]:
        query = sqlalchemy.select(LEASES.c.key, LEASES.c.token)
        query = query.where(
            LEASES.c.owner == owner, LEASES.c.key.in_(sorted(tokens))
        ).with_for_update()
        return {key for key, token in connection.execute(query) if tokens[key] == token}

    def _release(self, connection: Connection, owner: str, held: set[str]) -> None:
        if held:
            connection.execute(
                LEASES.delete().where(LEASES.c.owner == owner, LEASES.c.key.in_(sorted(held)))
            )

    def owners(self, digests: Iterable[str]) -> set[str]:
        """Return the owners of these keys."""
        given = sorted(digests)

        def owners(connection: Connection) -> set[str]:
            found: set[str] = set()
            for start in range(0, len(given), _MOST):
                query = sqlalchemy.select(LEASES.c.owner).where(
                    LEASES.c.key.in_(given[start : start + _MOST])
                )
                found.update(connection.execute(query).scalars())
            return found

        return self._transact(owners)

    def count(self) -> tuple[int, int]:
        """Return the number of leases that are alive, and of leases that have run out."""
        query = sqlalchemy.select(sqlalchemy.func.count()).select_from(LEASES)

        def count(connection: Connection) -> tuple[int, int]:
            every = int(connection.execute(query).scalar_one())
            over = int(connection.execute(query.where(self._over)).scalar_one())
            return every - over, over

        return self._transact(count)

    def sweep(self) -> int:
        """Remove leases that have run out, and return their number."""
        return self._transact(
            lambda connection: int(connection.execute(LEASES.delete().where(self._over)).rowcount)
        )

    def _transact(self, action: Callable[[Connection], _Result]) -> _Result:
        """Run an action in one transaction.

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
            raise UnavailableError(
                f"the leases in {self.name} do not work: {reason}; fix it and run again"
            ) from None


class FolderLeases(Leases):
    """The leases of processes that share a folder, in the file ``leases.db``.

    The file is not synced to disk, because no process holds a lease after a power cut. For the same
    reason a damaged file is simply replaced by a new one. Two processes may then compute the same
    key once.

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
            # Try again as long as the file turns out to be damaged, or was replaced meanwhile.
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
        """Open a transaction in which leases cannot be lost; see `Leases.held`.

        If the file has been replaced by a new one, the owner gets its leases again, as far as they
        are free.
        """
        with contextlib.ExitStack() as stack:
            connection, held = self._begin_held(stack, owner, tokens)
            yield connection, held
            try:
                self._release(connection, owner, held)
                stack.close()
            except SQLAlchemyError as error:
                # The caller's work in the block is done. Leases that are left run out by
                # themselves.
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
                # A new file has no leases yet: acquire again those that are free.
                if renewed:
                    held |= set(self._acquire(connection, owner, sorted(set(tokens) - held)))
                return connection, held
            except SQLAlchemyError as error:
                with contextlib.suppress(SQLAlchemyError):
                    stack.close()
                if attempt + 1 == _ATTEMPTS or not self._recovers(error):
                    raise
                renewed = True
        raise AssertionError("the last attempt returns or raises")

    def _ensure(self) -> bool:
        """Make the file and its table if they are missing.

        Returns:
            True if the file is another one than before.
        """
        before, self._inode = self._inode, self._present()
        if self._inode is not None and self._inode == before:
            return False
        # Close connections to a file that another process has replaced.
        self.engine.dispose()
        with self.engine.begin() as connection:
            METADATA.create_all(connection, tables=[LEASES])
            connection.execute(sqlalchemy.select(LEASES).limit(1))
        self._inode = self._present()
        return before is not None

    def _recovers(self, error: SQLAlchemyError) -> bool:
        """Return whether another attempt may succeed.

        This is so if another process has replaced the file, or if the file is damaged. A damaged
        file is deleted here.
        """
        self.engine.dispose()
        if self._present() != self._inode:
            return True
        # A table of other columns counts as damage.
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
    """Open the leases of processes that share a folder.

    Raises:
        UnavailableError: the folder cannot be written.
    """
    return FolderLeases(folder, ttl)


class ProcessLiveness:
    """Shows other processes of this host that an owner of leases is alive.

    The owner holds a file lock, which ends with its process. So the leases of a killed process are
    taken over at once, before they run out.

    Args:
        folder: folder that the processes share.

    Attributes:
        owner: name of this owner.
    """

    def __init__(self, folder: Path | None) -> None:
        self.owner = uuid.uuid4().hex
        self._folder = folder and folder / "owners"
        self._lock: FileLock | None = None
        if self._folder is not None:
            # If the disk is full, others wait until the leases run out.
            with contextlib.suppress(OSError):
                self._folder.mkdir(exist_ok=True, mode=0o700)
                lock = FileLock(self._file(self.owner), thread_local=False)
                lock.acquire(blocking=False)
                self._lock = lock

    def has_died(self, owner: str) -> bool:
        """Return whether an owner is known to have died: its lock file exists and is not locked."""
        if self._folder is None or owner == self.owner or not _OWNER.fullmatch(owner):
            return False
        if not self._file(owner).is_file():
            return False  # the owner may live on another host
        lock = FileLock(self._file(owner))
        try:
            lock.acquire(blocking=False)
        except (Timeout, OSError):
            return False
        lock.release()
        return True

    def forget(self, owner: str) -> None:
        """Remove the lock file of a dead owner."""
        if self._folder is not None and _OWNER.fullmatch(owner):
            self._file(owner).unlink(missing_ok=True)

    def dead(self) -> list[str]:
        """Return the owners that died on this host and whose lock files are still there."""
        if self._folder is None:
            return []
        files = sorted(self._folder.glob("*.lock"))
        return [file.stem for file in files if self.has_died(file.stem)]

    def close(self) -> None:
        """Release the lock and remove its file."""
        if self._lock is not None:
            self.forget(self.owner)
            self._lock.release()

    def _file(self, owner: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{owner}.lock"
