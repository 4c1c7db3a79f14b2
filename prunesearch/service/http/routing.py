"""Routes that write changes to the audit log, and the problems that they can answer with."""

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from prunesearch.service.http.auth import SAFE_METHODS
from prunesearch.service.http.event_hub import FAILURES
from prunesearch.service.http.problems import MEDIA_TYPE, Problem
from prunesearch.service.http.services import services_of

logger = logging.getLogger("prunesearch.service")
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class AuditedRoute(APIRoute):
    """A route whose changes are written to the audit log: who, what, and from where.

    A refused request changes nothing, and is not written. A route can name what it changed with
    `changed`.
    """

    def get_route_handler(self) -> Handler:
        """Return the function that answers a request."""
        handle = super().get_route_handler()

        async def audited(request: Request) -> Response:
            response = await handle(request)
            if request.method not in SAFE_METHODS and response.status_code < 400:
                await self._record(request, response)
            return response

        return audited

    async def _record(self, request: Request, response: Response) -> None:
        user = getattr(request.state, "user", None)
        if user is None:
            return
        target = getattr(request.state, "changed", "") or "/".join(request.path_params.values())
        audit = services_of(request).access.audit
        detail = f"{request.method} {request.url.path} {response.status_code}"
        try:
            await run_in_threadpool(
                audit.record, user.name, self.name, target, detail, address_of(request)
            )
        except FAILURES:
            # The change was made, and cannot be taken back.
            logger.error("audit: not written: %s %s %s", user.name, self.name, target)


def changed(request: Request, target: str) -> None:
    """Name what a request has changed, for the audit log."""
    request.state.changed = target


def address_of(request: Request) -> str:
    """Return the network address of the client."""
    return request.client.host if request.client is not None else ""


_TEXTS = {
    400: "The request is malformed.",
    401: "The token is missing, malformed, expired or revoked.",
    403: "The role of the token is too low, or the CSRF token is missing.",
    404: "The object does not exist.",
    408: "The body did not arrive in time.",
    409: "The state of the object does not allow it.",
    413: "The body is too large.",
    415: "The body has a type or an encoding that is not taken.",
    416: "The range is outside of the file.",
    422: "The request is refused. The field `errors` says why.",
    429: "There were too many requests.",
    500: "The server failed. Its log says why.",
    503: "The database does not answer.",
}
_ALWAYS = (400, 401, 403, 422, 429, 500, 503)


def problems(*statuses: int, public: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the problems that a route can answer with, for the OpenAPI document.

    Args:
        statuses: statuses in addition to those of every route.
        public: whether the route needs no token.
    """
    described: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*_ALWAYS, *statuses}):
        if public and status in (401, 403):
            continue
        content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
        described[status] = {"description": _TEXTS[status], "content": content}
    return described
