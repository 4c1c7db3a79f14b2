"""`Client`: what the commands ask of a server. It needs httpx2 only.

Text of a server is not trusted. Answers are limited in size, a redirect is never followed, and
errors become one line. Who prints a text escapes what controls a terminal.
"""

import contextlib
import json
import math
import random
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import httpx2

from prunesearch.errors import ConflictError, InputError, NotFoundError, ServerError, one_line
from prunesearch.runtime.closing import Closing
from prunesearch.runtime.json_values import Json, JsonObject, to_json
from prunesearch.runtime.masking import masked_url
from prunesearch.service.credentials import ServerAddress
from prunesearch.service.job import Job, JobPage, JobRequest
from prunesearch.service.job_documents import check_job_id, job_of, page_of

Verb = Literal["pause", "resume", "stop", "cancel"]
_LARGEST = 64 * 1024 * 1024  # bytes of an answer that is read into memory
_WAITS = (0.3, 1.0)  # seconds before a request is sent again
_LONGEST_WAIT = 10.0  # seconds that a server may ask to wait before a request is sent again
_AGAIN = (429, 502, 503, 504)  # status of an answer that may be another one in a moment
# Seconds without a sign of life. A stream has a keep-alive comment every 15 seconds.
_TIMEOUT = httpx2.Timeout(60.0, connect=10.0)
_SHOWN = 5  # errors of a recipe that an error names


class Client(Closing):
    """Connection to a server, as a context manager.

    Args:
        server: address of the server.
        token: token of the user.
        transport: what carries the requests; None for the network.
    """

    def __init__(
        self, server: ServerAddress, token: str, transport: httpx2.BaseTransport | None = None
    ) -> None:
        self.server = server
        self._http = httpx2.Client(
            base_url=server.url,
            headers={
                "Authorization": f"Bearer {token}",
                # A compressed answer could be much larger than it looks.
                "Accept-Encoding": "identity",
                "User-Agent": "prunesearch",
            },
            timeout=_TIMEOUT,
            follow_redirects=False,
            # A proxy for plain http would read the token.
            trust_env=server.encrypted,
            transport=transport,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(self, request: JobRequest, idempotency_key: str) -> tuple[Job, bool]:
        """Submit a job.

        Args:
            request: what shall be done.
            idempotency_key: key of the submission. The same key makes no second job.

        Returns:
            The job, and whether it is new.

        Raises:
            InputError: the server refuses the recipe or the token. This holds for all methods.
            ServerError: the server does not answer, or fails. This holds for all methods.
        """
        body: JsonObject = {"recipe": request.recipe, "command": request.command}
        if request.trials is not None:
            body["trials"] = request.trials
        if request.confirm is not None:
            body["confirm"] = request.confirm
        if request.study is not None:
            body["study"] = request.study
        status, document = self._ask(
            "POST", "/v1/jobs", body=body, headers={"Idempotency-Key": idempotency_key}
        )
        return job_of(document), status == httpx2.codes.CREATED

    def jobs(
        self,
        *,
        state: str | None = None,
        study: str | None = None,
        submitted_by: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> JobPage:
        """Return a page of jobs, the newest first.

        Args:
            state, study, submitted_by: list only jobs with this value.
            limit: largest number of jobs on the page.
            cursor: `JobPage.next` of the page before; None for the first page.
        """
        wanted = {
            "state": state,
            "study": study,
            "submitted_by": submitted_by,
            "limit": str(limit),
            "cursor": cursor,
        }
        query = {name: value for name, value in wanted.items() if value is not None}
        return page_of(self._ask("GET", "/v1/jobs", query=query)[1])

    def job(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            NotFoundError: the job does not exist.
        """
        return job_of(self._ask("GET", f"/v1/jobs/{check_job_id(job_id)}")[1])

    def change(self, job_id: str, verb: Verb) -> Job:
        """Pause, resume, stop or cancel a job. A verb may be repeated.

        Raises:
            ConflictError: the state of the job does not allow it.
        """
        return job_of(self._ask("POST", f"/v1/jobs/{check_job_id(job_id)}/{verb}")[1])

    def document(self, path: str) -> Json:
        """Return the JSON document at a path of the server."""
        return self._ask("GET", path)[1]

    @contextmanager
    def streamed(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[httpx2.Response]:
        """Open a long answer, which the ``with`` block reads. The request is sent once."""
        with (
            self._failures_named(),
            self._http.stream("GET", path, params=query, headers=headers) as response,
        ):
            self._check(response)
            yield response

    def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Json]:
        """Send a request, and again if the connection fails. Return status and document.

        Every request of this class may be sent twice: a submission has its key, and a repeated verb
        changes nothing.
        """
        content = None if body is None else json.dumps(to_json(body)).encode()
        sent = {"Accept": "application/json", **(headers or {})}
        if content is not None:
            sent["Content-Type"] = "application/json"
        for number in range(len(_WAITS) + 1):
            last = number == len(_WAITS)
            try:
                with (
                    self._failures_named(),
                    self._http.stream(
                        method, path, params=query, content=content, headers=sent
                    ) as response,
                ):
                    if last or response.status_code not in _AGAIN:
                        self._check(response)
                        return response.status_code, _json_of(response)
                    wait = _asked_wait(response) or _WAITS[number]
            except ServerAwayError:
                if last:
                    raise
                wait = _WAITS[number]
            time.sleep(wait * random.uniform(0.8, 1.2))
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        """Turn failures of the connection into a `ServerAwayError` of one line."""
        try:
            yield
        except (httpx2.RequestError, httpx2.InvalidURL, ssl.SSLError) as error:
            raise ServerAwayError(_away(self.server, error)) from None

    def _check(self, response: httpx2.Response) -> None:
        """Raise the error of an answer that is not a success."""
        if response.is_success:
            return
        if response.is_redirect:
            target = masked_url(response.headers.get("location", "")[:300])
            raise InputError(
                f"the server {self.server.url} sends its clients to {target}: if that is right, "
                f"give it as `server`; the token was not sent there"
            )
        problem: Json = None
        # The answer of a proxy or of another program may be none. The status says enough then.
        with contextlib.suppress(ServerError):
            problem = _json_of(response)
        raise problem_error(
            response.status_code, problem if isinstance(problem, dict) else {}, self.server
        )


class ServerAwayError(ServerError):
    """A server that does not answer."""


class BusyServerError(ServerError):
    """A server that asks to be left alone for a moment."""


def _away(server: ServerAddress, error: Exception) -> str:
    """Describe a failed connection in one line."""
    reason = one_line(error)
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return (
            f"the certificate of {server.url} is not trusted "
            f"({reason.rpartition('] ')[2].partition(' (_ssl')[0]}): set SSL_CERT_FILE to the file "
            f"of the authority that signed it, or of the certificate itself"
        )
    if isinstance(error, httpx2.TimeoutException):
        reason = "it did not answer in time"
    elif isinstance(error, httpx2.ConnectError):
        reason = reason.rpartition("] ")[2].lower() or "no connection"
    elif isinstance(error, httpx2.RemoteProtocolError) and not server.encrypted:
        # A server with a certificate closes a connection without TLS.
        reason = "it closed the connection; if it has a certificate, its URL begins with https"
    return (
        f"no answer from {server.url} ({reason}): is it running? `prunesearch serve` starts a "
        f"server, and `server` or PRUNESEARCH_SERVER says where it is"
    )


def _asked_wait(response: httpx2.Response) -> float | None:
    """Return the seconds that a server asks to wait, or None. Longer waits are cut."""
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return min(max(seconds, 0.0), _LONGEST_WAIT) if math.isfinite(seconds) else None


def _json_of(response: httpx2.Response) -> Json:
    """Read the JSON document of an answer.

    Raises:
        ServerError: it is too large, compressed, or not JSON.
    """
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ServerError("the server sent a compressed answer, which was not asked for")
    content = bytearray()
    for part in response.iter_raw():
        content += part
        if len(content) > _LARGEST:
            raise ServerError(f"the server's answer is larger than {_LARGEST} bytes")
    try:
        document: Json = json.loads(content)
    except (ValueError, RecursionError):
        raise ServerError(
            f"the answer of {response.url.host} is not JSON: is it a prunesearch server?"
        ) from None
    return document


def problem_error(status: int, problem: JsonObject, server: ServerAddress) -> Exception:
    """Return the exception for an answer with an error.

    Args:
        status: status of the answer.
        problem: problem document of RFC 9457; empty if there is none.
        server: address of the server.
    """
    said = _said(problem)
    if status == httpx2.codes.UNAUTHORIZED:
        return InputError(
            f"{server.url} does not accept the token{_after(said)}: ask for another, and give it "
            f"in PRUNESEARCH_TOKEN or `token_file`"
        )
    if status == httpx2.codes.FORBIDDEN:
        return InputError(said or "the role of the token does not allow this")
    if status == httpx2.codes.NOT_FOUND:
        return NotFoundError(said or f"{server.url} does not have this")
    if status == httpx2.codes.CONFLICT:
        return ConflictError(said or "the state of the job does not allow this")
    if status in _AGAIN:
        return BusyServerError(f"{server.url} is busy{_after(said)}: try again in a moment")
    if status < 500:
        return InputError(said or f"{server.url} refused the request with status {status}")
    return ServerError(f"{server.url} failed with status {status}{_after(said)}: see its log")


def _after(said: str) -> str:
    return f" ({said})" if said else ""


def _said(problem: JsonObject) -> str:
    """Return what a problem document says, in one line of limited length."""
    parts: list[str] = []
    for name in ("detail", "title"):
        text = problem.get(name)
        if isinstance(text, str) and text and not parts:
            parts.append(text)
    refused = problem.get("errors")
    for entry in refused[:_SHOWN] if isinstance(refused, list) else ():
        if isinstance(entry, dict):
            words = [str(entry[name]) for name in ("field", "message") if entry.get(name)]
            line = ": ".join(words)
            if line and not any(str(entry.get("message")) in part for part in parts):
                parts.append(line)
    text = " ".join("; ".join(parts).split())
    return text if len(text) <= 600 else text[:597] + "..."
