"""Measures requests, and answers when the database keeps one waiting."""

import asyncio
from time import monotonic

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prunesearch.service.http.metrics import HttpMetrics
from prunesearch.service.http.problems import response_of, unavailable

_LONG = ("/export", "/layers", "/best")
"""Ends of the paths that may take longer: they read whole files, or every trial of a study."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Measured:
    """Counts requests by the template of their route, and measures the time to their first byte.

    Args:
        app: the app.
        metrics: counters of the app.
    """

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count its response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = monotonic()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(scope, message["status"], monotonic() - began)
            await send(message)

        await self._app(scope, receive, counted)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        # A path that no route has would make a new label for every request.
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)


class Deadline:
    """Answers with status 503 if a route has not begun its response in time.

    A route waits for the database in a thread, which cannot be stopped. It goes on, and what it
    says later is dropped.

    Args:
        app: the app.
        seconds: time until the response must have begun.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app, self._seconds = app, seconds
        self._late: set[asyncio.Future[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and answer it in time."""
        if scope["type"] != "http" or scope["path"].endswith(_LONG):
            await self._app(scope, receive, send)
            return
        begun, abandoned = asyncio.Event(), False

        async def in_time(message: Message) -> None:
            begun.set()
            if not abandoned:
                await send(message)

        answer = asyncio.ensure_future(self._app(scope, receive, in_time))
        beginning = asyncio.ensure_future(begun.wait())
        try:
            await asyncio.wait(
                {answer, beginning}, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            beginning.cancel()
        if not begun.is_set() and not answer.done():
            abandoned = True
            self._late.add(answer)
            answer.add_done_callback(self._forget)
            await response_of(unavailable(), scope)(scope, receive, send)
            return
        await answer

    def _forget(self, answer: "asyncio.Future[None]") -> None:
        self._late.discard(answer)
        if not answer.cancelled():
            answer.exception()  # it was logged where it was raised
