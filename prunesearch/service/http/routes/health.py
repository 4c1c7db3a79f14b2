"""Whether the service works, and its metrics."""

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from prunesearch.service.http.auth import Require
from prunesearch.service.http.documents import Health, Readiness
from prunesearch.service.http.readiness import readiness, update_metrics
from prunesearch.service.http.routing import problems
from prunesearch.service.http.services import Shared, services_of


def add_to(app: FastAPI) -> None:
    """Add the routes of probes and metrics."""
    app.get(
        "/healthz",
        operation_id="health",
        tags=["operation"],
        response_model=Health,
        responses=problems(public=True),
    )(healthz)
    app.get(
        "/readyz",
        operation_id="readiness",
        tags=["operation"],
        response_model=Readiness,
        responses={
            503: {"model": Readiness, "description": "It cannot take jobs."},
        },
    )(readyz)
    app.get(
        "/metrics",
        operation_id="metrics",
        openapi_extra={"security": [{"token": []}, {"session": []}]},
        tags=["operation"],
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **problems(),
        },
    )(metrics)


async def healthz() -> Health:
    """Tell whether the process works. It asks no database."""
    return Health()


async def readyz(services: Shared) -> Response:
    """Tell whether the database answers and a runner takes jobs; status 503 if not."""
    found = await readiness(services)
    return JSONResponse(found.model_dump(), 200 if found.ready else 503)


_VIEWER = Require("viewer")


async def metrics(request: Request) -> Response:
    """Show metrics in the format of Prometheus.

    This needs a token of a viewer, unless the operator has opened it.
    """
    services = services_of(request)
    if not services.http.open_metrics:
        await _VIEWER(request)
    await run_in_threadpool(update_metrics, services)
    return Response(services.metrics.text(), media_type=CONTENT_TYPE_LATEST)
