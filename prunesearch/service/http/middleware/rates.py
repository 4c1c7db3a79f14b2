"""Counts the requests of each address before anything is done for them."""

from starlette.types import ASGIApp, Receive, Scope, Send

from prunesearch.service.http.problems import ProblemError, response_of
from prunesearch.service.http.rate_limits import RateLimits


class AddressRates:
    """Refuses an address that sends too many requests.

    Args:
        app: the app.
        limits: limits of the rate of requests.
    """

    def __init__(self, app: ASGIApp, limits: RateLimits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http":
            client = scope.get("client")
            try:
                self._limits.count_address(client[0] if client else "")
            except ProblemError as problem:
                await response_of(problem, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)
