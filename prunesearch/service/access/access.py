"""Access to the service, as the HTTP interface and the command line use it."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Select, select

from prunesearch.service.access import secrets
from prunesearch.service.access.audit import AuditLog
from prunesearch.service.access.roles import User
from prunesearch.service.access.sessions import Sessions
from prunesearch.service.access.tokens import Tokens, is_valid
from prunesearch.service.tables import SESSIONS, TOKENS

_MOST_DIGESTS = 500  # in one IN clause; every database takes that many


@dataclass(frozen=True)
class Credential:
    """What a request was signed with, without the secret.

    Attributes:
        digest: sha256 of the token, or of the session's secret.
        session: whether it is a session.
    """

    digest: str
    session: bool


@dataclass(frozen=True)
class SignedIn:
    """Who sends a request.

    Attributes:
        user: the user.
        credential: what the request was signed with.
        csrf: CSRF token that changes of a session need; empty without a session.
    """

    user: User
    credential: Credential
    csrf: str = ""


class Access:
    """Tokens, sessions and the log of changes in one database.

    Args:
        engine: database of the service.

    Attributes:
        tokens: the tokens.
        sessions: the sessions.
        audit: the log of changes.
    """

    def __init__(self, engine: Engine) -> None:
        # On SQLite a transaction that only reads does not wait for the writer.
        self._reading = engine.execution_options(reading=True)
        self.tokens = Tokens(engine)
        self.sessions = Sessions(engine)
        self.audit = AuditLog(engine)

    def signed_in(self, secret: str, *, session: bool) -> SignedIn | None:
        """Return who sends a request.

        Args:
            secret: token, or secret of a session.
            session: whether it is a session's.

        Returns:
            None if the secret is not valid.
        """
        credential = Credential(secrets.digest(secret), session)
        if session:
            found = self.sessions.user_of(secret)
            return None if found is None else SignedIn(found.user, credential, found.csrf)
        user = self.tokens.user_of(secret)
        return None if user is None else SignedIn(user, credential)

    def still_valid(self, credentials: Iterable[Credential]) -> set[Credential]:
        """Return those credentials that are valid now, with one query for each kind."""
        asked = set(credentials)
        now = time.time()
        tokens = select(TOKENS.c.hash).where(is_valid(now))
        sessions = (
            select(SESSIONS.c.hash)
            .join(TOKENS, SESSIONS.c.token_name == TOKENS.c.name)
            .where(SESSIONS.c.expires > now, is_valid(now))
        )
        with self._reading.connect() as connection:
            return {
                *_found(connection, tokens, TOKENS.c.hash, asked, session=False),
                *_found(connection, sessions, SESSIONS.c.hash, asked, session=True),
            }


def _found(
    connection: Connection,
    query: Select[Any],
    column: ColumnElement[str],
    asked: Iterable[Credential],
    *,
    session: bool,
) -> Iterator[Credential]:
    """Yield the credentials of one kind that a query finds, some hundred at a time."""
    digests = sorted(one.digest for one in asked if one.session == session)
    for start in range(0, len(digests), _MOST_DIGESTS):
        part = digests[start : start + _MOST_DIGESTS]
        for digest in connection.execute(query.where(column.in_(part))).scalars():
            yield Credential(digest, session)
