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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import sqlalchemy
from sqlalchemy import ColumnElement, Connection, Engine, Float
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from prunesearch.cache.tables import CLOCK, LEASES
from prunesearch.errors import UnavailableError, one_line

TTL = 60.0
"""Seconds that a lease lives unless it is renewed. It is renewed three times in that span."""
LONGEST = 3600.0
"""Longest lease in seconds. One that seems to last longer was granted before the host restarted."""
_MOST = 200  # largest number of keys in one statement
_WAITS_FOR = ">"  # separates two owners in the key of a notice, see `Leases.announce`
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Interest:
    """Which other owners are interested in some keys.

    Attributes:
        owner: owner that has asked.
        holders: owner of each key that is leased, by digest.
        waiting: owners that have announced that they wait for keys of `owner`.
    """

    owner: str
    holders: Mapping[str, str]
    waiting: Set[str] = frozenset()

    @property
    def others(self) -> set[str]:
        """All owners but `owner` itself."""
        return {*self.holders.values(), *self.waiting} - {self.owner}


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

    def interest(self, owner: str, digests: Iterable[str]) -> Interest:
        """Return who holds these keys, and who has announced to wait for keys of an owner.

        An announcement is returned once.
        """
        given = sorted(digests)
        notices = LEASES.c.key.startswith(_notice(owner, ""), autoescape=True)

        def interest(connection: Connection) -> Interest:
            alive = sqlalchemy.not_(self._over)
            # 1. Read the leases that have not run out.
            holders: dict[str, str] = {}
            for start in range(0, len(given), _MOST):
                query = sqlalchemy.select(LEASES.c.key, LEASES.c.owner).where(
                    LEASES.c.key.in_(given[start : start + _MOST]), alive
                )
                for key, holder in connection.execute(query):
                    holders[key] = holder
            # 2. Take the announcements.
            query = sqlalchemy.select(LEASES.c.owner).where(notices, alive)
            waiting = set(connection.execute(query).scalars())
            if waiting:
                connection.execute(LEASES.delete().where(notices))
            return Interest(owner, holders, waiting)

        return self._transact(interest)

    def announce(self, owner: str, holders: Iterable[str]) -> None:
        """Announce to other owners that an owner waits for keys that they hold.

        An announcement is a row like a lease, whose key consists of both owners. So it is renewed
        and runs out like the leases of the one that waits.
        """
        until = self._now + self.ttl
        rows = []
        for holder in sorted(set(holders) - {owner}):
            rows.append(
                {"key": _notice(holder, owner), "owner": owner, "token": 1, "expires": until}
            )
        if not rows:
            return
        statement = self._insert(LEASES).values(rows)
        statement = statement.on_conflict_do_update(
            index_elements=[LEASES.c.key], set_={"expires": until}
        )
        self._transact(lambda connection: connection.execute(statement))

    def count(self) -> tuple[int, int]:
        """Return the number of leases that are alive, and of leases that have run out."""
        query = sqlalchemy.select(sqlalchemy.func.count()).select_from(LEASES)
        query = query.where(sqlalchemy.not_(LEASES.c.key.contains(_WAITS_FOR)))

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


def _notice(holder: str, waiting: str) -> str:
    """Return the key of the announcement that an owner waits for another; at most 64 characters."""
    return f"{holder[:31]}{_WAITS_FOR}{waiting[:32]}"
