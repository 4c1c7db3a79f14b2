"""Leases of processes that share a folder, in a SQLite file that is replaced when it is damaged."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import sqlalchemy
from filelock import FileLock
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from prunesearch.cache.hardening import is_damage
from prunesearch.cache.leases import TTL, Leases
from prunesearch.cache.tables import LEASES, METADATA, sqlite_engine
from prunesearch.errors import UnavailableError, one_line

_Result = TypeVar("_Result")

_ATTEMPTS = 5  # attempts at a file that is damaged, or that other processes keep replacing


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
