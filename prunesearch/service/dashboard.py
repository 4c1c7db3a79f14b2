"""optuna-dashboard on a listener of its own, with the sign-in of the service.

optuna-dashboard has no sign-in, deletes studies without asking, and serves uploaded HTML. So every
request needs a token or a session, only an admin may change anything, and uploaded files cannot
run scripts. It needs the root path, and so a listener of its own. `prunesearch serve` starts this
module as a process, with its settings in the environment.
"""

import os
import socket
import sys
from urllib.parse import urlunsplit

from a2wsgi import WSGIMiddleware
from optuna_dashboard import wsgi
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prunesearch.runtime import stopping
from prunesearch.runtime.masking import CACHE_VARIABLE, STORAGE_VARIABLE
from prunesearch.service.access.access import Access
from prunesearch.service.access.roles import User
from prunesearch.service.database import open_database
from prunesearch.service.http.auth import SAFE_METHODS, authenticated, check_origin
from prunesearch.service.http.connections import http_server, listen
from prunesearch.service.http.middleware.bodies import BodyLimits
from prunesearch.service.http.middleware.headers import RequestChecks, host_name
from prunesearch.service.http.middleware.rates import AddressRates
from prunesearch.service.http.problems import ProblemError, response_of
from prunesearch.service.http.rate_limits import RateLimits
from prunesearch.service.http.routing import address_of
from prunesearch.service.http.settings import LOOPBACK_NAMES, SETTINGS_VARIABLE, HttpSettings
from prunesearch.service.settings import ServiceSettings
from prunesearch.studies import persistence

_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""What the dashboard's page may load. Its charts compute code and write styles."""
_SANDBOX = "sandbox; default-src 'none'; frame-ancestors 'none'"
"""What an uploaded file may do: nothing."""


class GuardedDashboard:
    """Lets only signed-in users through, and only admins change anything.

    Args:
        app: the dashboard.
        access: tokens, sessions and the log of changes.
        http: settings of the HTTP process, whose sign-in page is used.
    """

    def __init__(self, app: ASGIApp, access: Access, http: HttpSettings) -> None:
        self._app, self._access, self._http = app, access, http

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sender = _with_headers(scope, send)
        request = Request(scope, receive)
        try:
            user = await authenticated(request, self._access)
            self._check(request, user)
        except ProblemError as problem:
            await self._refusal(request, problem)(scope, receive, sender)
            return
        if request.method not in SAFE_METHODS:
            detail = f"{request.method} {scope['path']}"
            await run_in_threadpool(
                self._access.audit.record,
                user.name,
                "change_in_dashboard",
                scope["path"],
                detail,
                address_of(request),
            )
        await self._app(scope, receive, sender)

    def _check(self, request: Request, user: User) -> None:
        """Refuse changes that the user may not make, or that another site sends.

        Raises:
            ProblemError: the change is refused.
        """
        if request.method in SAFE_METHODS:
            return
        if not user.may("admin"):
            raise ProblemError(403, "only an admin may change anything in the dashboard")
        # A browser names the page that a change comes from; a program sends a token.
        if request.state.credential.session and "origin" not in request.headers:
            raise ProblemError(403, "a change needs the header Origin")
        check_origin(request)

    def _refusal(self, request: Request, problem: ProblemError) -> Response:
        """Return the response of a refused request. A browser is led to the sign-in page."""
        wants_page = "text/html" in request.headers.get("accept", "")
        if problem.status != 401 or not wants_page or request.method not in SAFE_METHODS:
            return response_of(problem, request.scope)
        name = host_name(request.headers.get("host", ""))
        host = f"[{name}]" if ":" in name else name
        place = f"{host}:{self._http.port}"
        return RedirectResponse(urlunsplit((request.url.scheme, place, "/sign-in", "", "")), 303)


def _with_headers(scope: Scope, send: Send) -> Send:
    """Return a function that sends a response with the headers that keep it harmless."""
    uploaded = scope["path"].startswith("/artifacts")
    static = scope["path"].startswith("/static/")

    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            headers["X-Frame-Options"] = "DENY"
            headers["Referrer-Policy"] = "same-origin"
            headers["Cross-Origin-Resource-Policy"] = "same-origin"
            headers["Content-Security-Policy"] = _SANDBOX if uploaded else _PAGE_POLICY
            if not static:
                headers["Cache-Control"] = "no-store"
            del headers["Access-Control-Allow-Origin"]
            del headers["Server"]
        await send(message)

    return sender


def create_dashboard(settings: ServiceSettings, http: HttpSettings) -> Starlette:
    """Make the app of the dashboard.

    Args:
        settings: settings of the service.
        http: settings of the HTTP process.

    Raises:
        StorageError: a database cannot be opened.
    """
    access = Access(open_database(settings.database))
    storage = persistence.open_storage(settings.storage, create=True)
    app = Starlette()
    app.mount("/", WSGIMiddleware(wsgi(storage)))  # type: ignore[arg-type]
    names = {*LOOPBACK_NAMES, http.host, socket.gethostname(), *http.trusted_hosts}
    # The last one that is added comes first.
    app.add_middleware(GuardedDashboard, access=access, http=http)
    app.add_middleware(BodyLimits, limit=http.body_bytes, seconds=http.body_seconds)
    app.add_middleware(RequestChecks, hosts=names)
    limits = RateLimits(http.requests_per_minute, http.sign_ins_per_minute)
    app.add_middleware(AddressRates, limits=limits)
    return app


def main() -> None:
    """Serve the dashboard until the process is told to end."""
    http = HttpSettings.read(os.environ[SETTINGS_VARIABLE])
    settings = ServiceSettings(
        storage=os.environ[STORAGE_VARIABLE], cache=os.environ[CACHE_VARIABLE]
    )
    assert http.dashboard_port is not None
    listener = listen(http.host, http.dashboard_port)
    http_server(create_dashboard(settings, http), http).run(sockets=[listener])


if __name__ == "__main__":
    stopping.guard_process()
    main()
    sys.exit(0)
