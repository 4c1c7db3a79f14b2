"""Reads the body of a request before the app does, within limits of size and time."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prunesearch.service.http.problems import ProblemError, response_of


class BodyLimits:
    """Refuses bodies that are too large, too slow or compressed.

    A whole body is in memory before a route runs, so no route can be held up by a slow client.

    Args:
        app: the app.
        limit: largest body, in bytes.
        seconds: time in which a whole body must arrive.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app, self._limit, self._seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its whole body, or refuse it."""
        if scope["type"] != "http" or not _has_body(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        try:
            self._check_headers(Headers(scope=scope))
            async with asyncio.timeout(self._seconds):
                body = await self._body(receive)
        except TimeoutError:
            problem = ProblemError(
                408, f"the body did not arrive within {self._seconds:g} seconds", _CLOSE
            )
            await response_of(problem, scope)(scope, receive, send)
            return
        except ProblemError as problem:
            await response_of(problem, scope)(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _replayed(body, receive), send)

    def _check_headers(self, headers: Headers) -> None:
        """Refuse a body by its headers alone.

        Raises:
            ProblemError: the body is compressed, or too large.
        """
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            raise ProblemError(
                415,
                f"a body with Content-Encoding {encoding!r} is not taken: send it uncompressed",
                {**_CLOSE, "Accept-Encoding": "identity"},
            )
        length = headers.get("content-length", "0")
        # The server has refused a length that is not a number.
        if length.isdecimal() and int(length[:20]) > self._limit:
            raise self._too_large()

    async def _body(self, receive: Receive) -> bytes | None:
        """Return the whole body. None: the client has left.

        Raises:
            ProblemError: the body is too large.
        """
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._limit:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> ProblemError:
        detail = f"the body is larger than {self._limit:,} bytes"
        return ProblemError(413, detail, _CLOSE)


_CLOSE = {"Connection": "close"}  # the rest of the body is not read


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a function that gives the body once, and then what the server says."""
    waiting = True

    async def replay() -> Message:
        nonlocal waiting
        if waiting:
            waiting = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay
