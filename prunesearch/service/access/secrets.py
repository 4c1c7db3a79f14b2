"""Secrets of tokens and sessions: they are made, hashed and compared here."""

import hashlib
import hmac
import re
import secrets

PREFIX = "ps_"
"""Start of every token, by which people and scanners know it."""
_TOKEN = re.compile(r"ps_[A-Za-z0-9_-]{43}")


def new_token() -> str:
    """Return a new token of 32 random bytes."""
    return PREFIX + secrets.token_urlsafe(32)


def new_session() -> str:
    """Return a secret for a session, or its CSRF token, of 32 random bytes."""
    return secrets.token_urlsafe(32)


def is_token(text: str) -> bool:
    """Return whether a text has the form of a token."""
    return _TOKEN.fullmatch(text) is not None


def digest(secret: str) -> str:
    """Return what the database keeps of a secret: its sha256.

    A secret of 32 random bytes needs no slow hash: it cannot be guessed.
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def equal(one: str, other: str) -> bool:
    """Compare two texts in a time that does not depend on where they differ."""
    return hmac.compare_digest(one.encode(), other.encode("utf-8", "surrogateescape"))
