"""`create_app`: the HTTP interface as an ASGI app."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from starlette.responses import RedirectResponse, Response

import prunesearch
from prunesearch.service.access.access import Access
from prunesearch.service.database import open_database
from prunesearch.service.export_files import ExportFiles
from prunesearch.service.http import openapi, problems
from prunesearch.service.http.auth import SignInNeededError
from prunesearch.service.http.event_hub import EventHub
from prunesearch.service.http.metrics import HttpMetrics
from prunesearch.service.http.middleware.bodies import BodyLimits
from prunesearch.service.http.middleware.headers import RequestChecks, SecurityHeaders
from prunesearch.service.http.middleware.measured import Deadline, Measured
from prunesearch.service.http.middleware.methods import Methods
from prunesearch.service.http.middleware.rates import AddressRates
from prunesearch.service.http.rate_limits import RateLimits
from prunesearch.service.http.routes import access as access_routes
from prunesearch.service.http.routes import events, exports, health, jobs, studies
from prunesearch.service.http.routing import AuditedRoute
from prunesearch.service.http.services import Services
from prunesearch.service.http.settings import LOOPBACK_NAMES, HttpSettings
from prunesearch.service.jobs import Jobs
from prunesearch.service.settings import ServiceSettings
from prunesearch.service.studies_view import StudiesView
from prunesearch.service.web import pages

_GROUPS = (jobs, events, exports, studies, access_routes, health, pages)
"""Modules of routes. The order is that of the OpenAPI document."""


def create_app(
    settings: ServiceSettings,
    *,
    jobs: Jobs | None = None,
    http: HttpSettings | None = None,
) -> FastAPI:
    """Make the app of the HTTP interface.

    Args:
        settings: settings of the service.
        jobs: the jobs. None: those of the service's database.
        http: settings of the HTTP process. None: the defaults.

    Returns:
        The app. Its state has what the routes share, as ``services``.

    Raises:
        StorageError: the database cannot be opened.
    """
    services = _services(settings, jobs, http or HttpSettings())
    app = FastAPI(
        title="prunesearch",
        version=prunesearch.__version__,
        summary="Jobs that find the layers a large language model does not need.",
        docs_url=None,  # the pages load their scripts from another site
        redoc_url=None,
        lifespan=_lifespan,
        redirect_slashes=False,
    )
    app.state.services = services
    problems.add_handlers(app)
    openapi.use_document(app)
    app.add_exception_handler(SignInNeededError, _to_sign_in)
    app.router.route_class = AuditedRoute
    for group in _GROUPS:
        group.add_to(app)
    _add_middleware(app, services)
    return app


def _services(settings: ServiceSettings, jobs: Jobs | None, http: HttpSettings) -> Services:
    engine = open_database(settings.database)
    access = Access(engine)
    jobs = jobs or Jobs(settings)
    return Services(
        settings=settings,
        http=http,
        jobs=jobs,
        access=access,
        studies=StudiesView(settings.storage),
        exports=ExportFiles(),
        events=EventHub(jobs, access, http.poll_seconds, http.check_seconds),
        limits=RateLimits(http.requests_per_minute, http.sign_ins_per_minute),
        metrics=HttpMetrics(),
    )


def _add_middleware(app: FastAPI, services: Services) -> None:
    """Add what every request passes. The last one that is added comes first."""
    http = services.http
    names = {*LOOPBACK_NAMES, http.host, socket.gethostname(), *http.trusted_hosts}
    app.add_middleware(Deadline, seconds=http.answer_seconds)
    app.add_middleware(BodyLimits, limit=http.body_bytes, seconds=http.body_seconds)
    app.add_middleware(Methods, routes=app.routes)
    app.add_middleware(RequestChecks, hosts=names)
    app.add_middleware(AddressRates, limits=services.limits)
    app.add_middleware(SecurityHeaders, https=http.secure)
    app.add_middleware(Measured, metrics=services.metrics)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Follow events as long as the app runs."""
    hub: EventHub = app.state.services.events
    following = asyncio.create_task(hub.run())
    yield
    hub.close()
    await following


async def _to_sign_in(request: Request, error: Exception) -> Response:
    """Lead a browser to the sign-in page."""
    assert isinstance(error, SignInNeededError)
    return RedirectResponse(error.path, 303)
