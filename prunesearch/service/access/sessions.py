"""Sessions of browsers. A session belongs to a token, and ends with it."""

import time
from dataclasses import dataclass

from sqlalchemy import Engine, delete, insert, select

from prunesearch.service.access import secrets
from prunesearch.service.access.roles import User
from prunesearch.service.access.tokens import is_valid
from prunesearch.service.tables import SESSIONS, TOKENS

COOKIE = "prunesearch_session"
"""Name of the cookie that holds a session's secret."""
LIFETIME = 7 * 24 * 3600.0
"""Seconds after which a session ends."""


@dataclass(frozen=True)
class SessionUser:
    """The user of a session, and the CSRF token that changes need."""

    user: User
    csrf: str


class Sessions:
    """The sessions in a database.

    Args:
        engine: database of the service.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # On SQLite a transaction that only reads does not wait for the writer.
        self._reading = engine.execution_options(reading=True)

    def begin(self, token: str) -> str | None:
        """Begin a session.

        Args:
            token: token that the user signs in with.

        Returns:
            The secret for the cookie, or None if the token is not valid.
        """
        secret, now, wanted = secrets.new_session(), time.time(), secrets.digest(token)
        if not secrets.is_token(token):
            return None
        with self._engine.begin() as connection:
            columns = TOKENS.c.hash, TOKENS.c.name
            query = select(*columns).where(TOKENS.c.hash == wanted, is_valid(now))
            row = connection.execute(query).first()
            if row is None or not secrets.equal(row.hash, wanted):
                return None
            connection.execute(delete(SESSIONS).where(SESSIONS.c.expires <= now))
            connection.execute(
                insert(SESSIONS).values(
                    hash=secrets.digest(secret),
                    token_name=row.name,
                    csrf=secrets.new_session(),
                    created=now,
                    expires=now + LIFETIME,
                )
            )
        return secret

    def end(self, secret: str) -> None:
        """End a session. There may be none."""
        with self._engine.begin() as connection:
            connection.execute(delete(SESSIONS).where(SESSIONS.c.hash == secrets.digest(secret)))

    def user_of(self, secret: str) -> SessionUser | None:
        """Return the user of a session. None: it is not known, or its token is not valid."""
        wanted, now = secrets.digest(secret), time.time()
        query = (
            select(SESSIONS.c.hash, SESSIONS.c.csrf, TOKENS.c.name, TOKENS.c.role)
            .join(TOKENS, SESSIONS.c.token_name == TOKENS.c.name)
            .where(SESSIONS.c.hash == wanted, SESSIONS.c.expires > now, is_valid(now))
        )
        with self._reading.connect() as connection:
            row = connection.execute(query).first()
        if row is None or not secrets.equal(row.hash, wanted):
            return None
        return SessionUser(User(row.name, row.role), row.csrf)
