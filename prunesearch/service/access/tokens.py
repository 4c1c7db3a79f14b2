"""Tokens: who may use the service. The database holds only their digests."""

import re
import time
from dataclasses import dataclass, field, fields
from typing import Any

from sqlalchemy import ColumnElement, Engine, Select, and_, delete, insert, or_, select, update

from prunesearch.errors import ConflictError, InputError, NotFoundError
from prunesearch.runtime.json_values import json_as
from prunesearch.service.access import secrets
from prunesearch.service.access.roles import ROLES, Role, User
from prunesearch.service.tables import SESSIONS, TOKENS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_LONGEST = 100 * 366 * 24 * 3600.0


@dataclass(frozen=True)
class TokenRecord:
    """A token, without its secret.

    Attributes:
        name: name of the token.
        role: role of the token.
        created, expires, revoked, last_used: times in seconds since 1970. None: it does not
            expire, it is not revoked, or it was not used yet.
    """

    name: str
    role: Role
    created: float
    expires: float | None = None
    revoked: float | None = None
    last_used: float | None = None


@dataclass(frozen=True)
class NewToken:
    """A token that was made, and its secret, which is shown this once."""

    record: TokenRecord = field(metadata=json_as(inline=True))
    secret: str


class Tokens:
    """The tokens in a database.

    Args:
        engine: database of the service.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # On SQLite a transaction that only reads does not wait for the writer.
        self._reading = engine.execution_options(reading=True)

    def create(
        self, name: str, role: Role, lifetime: float | None = None, secret: str | None = None
    ) -> NewToken:
        """Make a token.

        Args:
            name: name of the token. A name whose token is revoked or expired can be used again.
            role: role of the token.
            lifetime: seconds after which it expires. None: never.
            secret: secret that was made with `secrets.new_token`. None: a new one.

        Raises:
            InputError: the name, the role or the lifetime is not accepted.
            ConflictError: there is a valid token of that name.
        """
        check_name(name)
        if role not in ROLES:
            raise InputError(f"unknown role {role!r}: known are {', '.join(ROLES)}")
        if lifetime is not None and not 0 < lifetime < _LONGEST:
            raise InputError(f"a token cannot expire after {lifetime:g} seconds: give 1s to 100y")
        secret, now = secret or secrets.new_token(), time.time()
        expires = None if lifetime is None else now + lifetime
        with self._engine.begin() as connection:
            if connection.execute(_named(name, now)).first() is not None:
                raise ConflictError(
                    f"there is a token {name!r}: revoke it first, or choose another name"
                )
            # 1. A token that is not valid any more gives its name free; so do its sessions.
            connection.execute(delete(TOKENS).where(TOKENS.c.name == name))
            connection.execute(delete(SESSIONS).where(SESSIONS.c.token_name == name))
            # 2. Add the new one.
            row = {"name": name, "role": role, "created": now, "expires": expires}
            connection.execute(insert(TOKENS).values(hash=secrets.digest(secret), **row))
        return NewToken(TokenRecord(name, role, now, expires), secret)

    def revoke(self, name: str) -> TokenRecord:
        """Revoke a token. Its sessions end, and its streams end within seconds.

        Raises:
            NotFoundError: there is no valid token of that name.
        """
        now = time.time()
        with self._engine.begin() as connection:
            row = connection.execute(_named(name, now)).first()
            if row is None:
                raise NotFoundError(f"there is no valid token {name!r}: see the list of tokens")
            connection.execute(update(TOKENS).where(TOKENS.c.name == name).values(revoked=now))
            connection.execute(delete(SESSIONS).where(SESSIONS.c.token_name == name))
        return TokenRecord(row.name, row.role, row.created, row.expires, now, row.last_used)

    def records(self) -> list[TokenRecord]:
        """Return all tokens, also revoked and expired ones, in the order of names."""
        columns = [TOKENS.c[part.name] for part in fields(TokenRecord)]
        query = select(*columns).order_by(TOKENS.c.name)
        with self._reading.connect() as connection:
            rows = connection.execute(query).all()
        return [TokenRecord(*row) for row in rows]

    def any(self) -> bool:
        """Return whether there is a token, even a revoked one."""
        with self._reading.connect() as connection:
            return connection.execute(select(TOKENS.c.name).limit(1)).first() is not None

    def user_of(self, secret: str) -> User | None:
        """Return the user of a token. None: it is not known, revoked or expired."""
        if not secrets.is_token(secret):
            return None
        wanted = secrets.digest(secret)
        query = select(TOKENS.c.hash, TOKENS.c.name, TOKENS.c.role).where(
            TOKENS.c.hash == wanted, is_valid(time.time())
        )
        with self._reading.connect() as connection:
            row = connection.execute(query).first()
        if row is None or not secrets.equal(row.hash, wanted):
            return None
        return User(row.name, row.role)


def _named(name: str, now: float) -> Select[Any]:
    """Return the query for the valid token of a name."""
    return select(TOKENS).where(TOKENS.c.name == name, is_valid(now))


def is_valid(now: float) -> ColumnElement[bool]:
    """Return the condition that a token is neither revoked nor expired."""
    lasting = or_(TOKENS.c.expires.is_(None), TOKENS.c.expires > now)
    return and_(TOKENS.c.revoked.is_(None), lasting)


def check_name(name: str) -> None:
    """Refuse a name that no token can have.

    Raises:
        InputError: the name is empty or too long, or has other characters.
    """
    if _NAME.fullmatch(name) is None:
        raise InputError(
            f"no token can have the name {name!r}: use up to 64 letters, digits and . _ @ -"
        )
