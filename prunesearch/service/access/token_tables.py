"""Tables of tokens for people."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from prunesearch.report.tables import Parts, table
from prunesearch.service.access.tokens import NewToken, TokenRecord


@dataclass(frozen=True)
class WrittenToken:
    """A new token whose secret was written to a file.

    Attributes:
        name, role, expires: see `TokenRecord`.
        file: the file.
    """

    name: str
    role: str
    expires: float | None
    file: str


def created(token: NewToken) -> Parts:
    """Show the secret of a new token, and nothing else: a command can take it from the output."""
    return [token.secret]


def note(token: TokenRecord, database: str) -> str:
    """Say what a new token is for, beside its secret."""
    until = "does not expire" if token.expires is None else f"expires {_day(token.expires)}"
    return (
        f"token {token.name} ({token.role}, {until}) of {database}; its secret is shown only now:"
    )


def written(token: WrittenToken) -> Parts:
    """Show where the secret of a new token is."""
    return [f"the token {token.name} ({token.role}) is in {token.file}"]


def revoked(token: TokenRecord) -> Parts:
    """Show that a token is not valid any more."""
    return [f"the token {token.name} is revoked; its sessions and streams end"]


def tokens(records: Sequence[TokenRecord]) -> Parts:
    """Show one line per token."""
    rows = []
    for record in records:
        rows.append(
            (record.name, record.role, _state(record), _day(record.created), _day(record.expires))
        )
    if not rows:
        return ["no tokens: prunesearch token create NAME --role submitter makes one"]
    return [table("Tokens", ("token", "role", "state", "created", "expires"), rows)]


def _state(record: TokenRecord) -> str:
    if record.revoked is not None:
        return "revoked"
    if record.expires is not None and record.expires <= time.time():
        return "expired"
    return "valid"


def _day(at: float | None) -> str:
    if at is None:
        return "-"
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
