"""Answers HEAD and OPTIONS for every route."""

from collections.abc import Sequence

import anyio
from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Methods:
    """Answers HEAD as GET without a body, and OPTIONS with the methods of a path.

    Args:
        app: the app.
        routes: routes of the app.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app, self._routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        method = scope.get("method")
        if method == "HEAD":
            await self._head(scope, receive, send)
        elif method == "OPTIONS":
            await self._options(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the headers that GET would send.

        The route is stopped then: a stream would never end.
        """
        async with anyio.create_task_group() as group:

            async def only_headers(message: Message) -> None:
                if message["type"] != "http.response.start":
                    return
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                group.cancel_scope.cancel()

            await self._app({**scope, "method": "GET"}, receive, only_headers)

    async def _options(self, scope: Scope, receive: Receive, send: Send) -> None:
        allowed = allowed_methods(self._routes, scope["path"])
        if not allowed:
            await self._app(scope, receive, send)
            return
        headers = [(b"allow", ", ".join(sorted(allowed)).encode())]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def allowed_methods(routes: Sequence[BaseRoute], path: str) -> set[str]:
    """Return the methods that a path takes; none if no route has the path."""
    allowed: set[str] = set()
    for route in iter_route_contexts(routes):
        if route.methods and route.path_regex.match(path):
            allowed |= route.methods
    if "GET" in allowed:
        allowed.add("HEAD")
    if allowed:
        allowed.add("OPTIONS")
    return allowed
