"""The log of changes: who did what, and from where. Nothing changes or deletes its rows."""

import time
from dataclasses import dataclass

from sqlalchemy import Engine, select

from prunesearch.runtime.masking import masked_text, printable
from prunesearch.service.tables import AUDIT


@dataclass(frozen=True)
class Change:
    """A change, or an attempt that was refused.

    Attributes:
        id: number of the change. Later ones have larger numbers.
        at: time in seconds since 1970.
        who: name of the token; empty if nobody was signed in.
        action: what was done, such as ``submit_job``.
        target: what it was done to, such as a job.
        detail: more about it, such as the status of the response.
        address: network address of the client.
    """

    id: int
    at: float
    who: str
    action: str
    target: str
    detail: str
    address: str


class AuditLog:
    """The log of changes in a database.

    Args:
        engine: database of the service.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # On SQLite a transaction that only reads does not wait for the writer.
        self._reading = engine.execution_options(reading=True)

    def record(self, who: str, action: str, target: str, detail: str, address: str) -> None:
        """Add a change. The arguments are those of `Change`."""
        row = {
            "at": time.time(),
            "who": who[:100],
            "action": action[:64],
            "target": printable(masked_text(target))[:512],
            "detail": printable(masked_text(detail))[:1000],
            "address": printable(address)[:64],
        }
        with self._engine.begin() as connection:
            connection.execute(AUDIT.insert().values(row))

    def changes(self, limit: int, before: int | None = None) -> list[Change]:
        """Return changes, the newest first.

        Args:
            limit: largest number of changes.
            before: only changes with smaller numbers.
        """
        query = select(AUDIT).order_by(AUDIT.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(AUDIT.c.id < before)
        with self._reading.connect() as connection:
            rows = connection.execute(query).all()
        return [Change(*row) for row in rows]
