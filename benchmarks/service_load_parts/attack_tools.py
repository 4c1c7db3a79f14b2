"""What attacks need: a target with its users, requests that a client library would not send, and
the rows of the database before and after.
"""

import contextlib
import hashlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
import sqlalchemy

from benchmarks.support.job_load import JobLoad
from benchmarks.support.running_service import RunningService
from prunesearch.service.access.access import Access
from prunesearch.service.access.roles import Role
from prunesearch.service.access.sessions import COOKIE
from prunesearch.service.database import open_database
from prunesearch.service.job import JobRequest
from prunesearch.service.jobs import Jobs

_TIMEOUT = 30.0
# Tables that a refused request may write: who was refused, and when a token was last seen.
_BESIDE = ("audit", "tokens", "sessions", "runners")
DENIED = (401, 403)
"""Answers to a request whose sender may not send it."""


@dataclass(frozen=True)
class Attempt:
    """One attempt of an attack.

    Attributes:
        attack: name of the attack.
        what: what was sent.
        answer: what the service answered.
        through: whether the attack had its effect.
    """

    attack: str
    what: str
    answer: str
    through: bool


class Target:
    """A running service with a job, and users of every role.

    Args:
        service: the service.

    Attributes:
        admin, viewer, submitter, revoked: tokens.
        job: identifier of a job of the admin.
        browser: client that is signed in by a cookie.
        anonymous: client that is not signed in.
        session, csrf: session of the browser, and its CSRF token.
    """

    def __init__(self, service: RunningService) -> None:
        self.service = service
        self.admin = service.token
        self._access = Access(open_database(service.settings.database))
        self.anonymous = self._http()
        self.viewer = self.make_token("viewer", "viewer")
        self.submitter = self.make_token("submitter", "submitter")
        self.revoked = self.make_token("revoked", "submitter")
        self.revoke("revoked")
        jobs = Jobs(service.settings)
        recipe = JobLoad(service, 10, 256).recipe(0)
        self.job = jobs.submit(JobRequest(recipe.document(), "search", 10), "admin")[0].id
        jobs.close()
        self.browser = self._http()
        session = self._access.sessions.begin(self.admin)
        assert session is not None
        user = self._access.sessions.user_of(session)
        assert user is not None
        self.session, self.csrf = session, user.csrf
        self.browser.cookies.set(COOKIE, session)

    def _http(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.service.url, timeout=_TIMEOUT, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self.anonymous.close()
        self.browser.close()

    def sign_in(self, next_page: str) -> httpx2.Response:
        """Sign in as the form of the sign-in page does."""
        fields = {"token": self.admin, "next": next_page}
        headers = {"Origin": self.service.url, "Accept": "text/html"}
        # A client of its own: the others shall not get its cookie.
        with self._http() as client:
            return client.post("/sign-in", data=fields, headers=headers)

    def make_token(self, name: str, role: Role) -> str:
        """Make a token."""
        return self._access.tokens.create(name, role).secret

    def revoke(self, name: str) -> None:
        """Revoke a token."""
        self._access.tokens.revoke(name)

    def get(
        self,
        path: str,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx2.Response:
        """Send a request of the admin. Of a stream, only what comes at once is read."""
        sent = {"Authorization": f"Bearer {self.admin}", **(headers or {})}
        return self.anonymous.get(path, params=query, headers=sent)

    def post(self, path: str, **settings: Any) -> httpx2.Response:  # noqa: ANN401 (of httpx2)
        """Send a request of the admin."""
        headers = {"Authorization": f"Bearer {self.admin}", **settings.pop("headers", {})}
        return self.anonymous.post(path, headers=headers, **settings)

    def refused(
        self,
        attack: str,
        method: str,
        path: str,
        body: object,
        token: str | None = None,
    ) -> Attempt:
        """Send a request that must be refused, and leave the rows of jobs and studies alone."""
        before = self.rows()
        sent = self.admin if token is None else token
        headers = {"Authorization": f"Bearer {sent}"} if sent else {}
        content = None if body is None else body
        answer = self.anonymous.request(method, path, json=content, headers=headers)
        through = answer.status_code < 400 or self.changed(before) > 0
        if token is not None:
            through = through or answer.status_code not in DENIED
        shown = path if body is None else str(body)
        return Attempt(attack, f"{method} {shown}", str(answer.status_code), through)

    def head(self, method: str, path: str, *headers: str, host: str | None = None) -> bytes:
        """Return the head of a request of the admin, as bytes that no library has corrected."""
        place = urlsplit(self.service.url).netloc if host is None else host
        lines = [f"{method} {path} HTTP/1.1", f"Host: {place}", "Connection: close"]
        lines += [f"Authorization: Bearer {self.admin}", *headers]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def raw(self, attack: str, method: str, path: str, secrets: tuple[str, ...]) -> Attempt:
        """Send a path as it is. The attack is through if the answer has one of the secrets."""
        answer = raw_answer(self.service.url, self.head(method, path))
        through = any(secret in answer for secret in secrets) or "SQLite format 3" in answer
        return Attempt(attack, path, answer.partition("\r\n")[0][9:], through)

    def rows(self) -> dict[str, str]:
        """Return a digest of the rows of each table."""
        found: dict[str, str] = {}
        for url in {self.service.settings.storage, self.service.settings.database}:
            engine = open_database(url) if "service" in url else sqlalchemy.create_engine(url)
            for name, digest in _digests(engine):
                if not name.endswith(_BESIDE):
                    found[name] = digest
            engine.dispose()
        return found

    def changed(self, before: dict[str, str]) -> int:
        """Return the number of tables that have other rows than before."""
        after = self.rows()
        return sum(after.get(name) != digest for name, digest in before.items())


def _digests(engine: sqlalchemy.Engine) -> Iterator[tuple[str, str]]:
    """Yield the name of each table and a digest of its rows."""
    tables = sqlalchemy.MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        for table in tables.sorted_tables:
            rows = connection.execute(sqlalchemy.select(table)).all()
            text = "\n".join(sorted(map(str, rows)))
            yield table.name, hashlib.sha256(text.encode()).hexdigest()


def raw_answer(url: str, request: bytes, slow: bytes = b"", patience: float = 10.0) -> str:
    """Send bytes to a server, and return its answer.

    Args:
        url: URL of the server.
        request: what is sent at once.
        slow: what is sent after it, one byte a second.
        patience: seconds in which the answer must come.
    """
    parts = urlsplit(url)
    answer = b""
    end = time.monotonic() + patience
    with socket.create_connection((parts.hostname, parts.port), 5) as connection:
        connection.sendall(request)
        with contextlib.suppress(OSError):
            for number in range(len(slow)):
                connection.settimeout(1.0)
                with contextlib.suppress(TimeoutError):
                    answer += connection.recv(65536)
                    break
                connection.sendall(slow[number : number + 1])
                if time.monotonic() > end:
                    break
            while time.monotonic() < end:
                connection.settimeout(max(0.1, end - time.monotonic()))
                part = connection.recv(65536)
                if not part:
                    break
                answer += part
    return answer.decode("latin-1")
