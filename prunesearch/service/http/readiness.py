"""Asks the database and the runners how they are."""

import asyncio

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from prunesearch.errors import PruneSearchError
from prunesearch.service.http.documents import Readiness
from prunesearch.service.http.event_hub import FAILURES
from prunesearch.service.http.services import Services

_SECONDS = 3.0
"""Time in which the database must answer."""


async def readiness(services: Services) -> Readiness:
    """Return whether the service can take jobs. A database that hangs does not answer."""
    try:
        async with asyncio.timeout(_SECONDS):
            runners = await run_in_threadpool(services.jobs.runners)
    except (TimeoutError, *FAILURES):
        return Readiness(ready=False, database=False, runner=False, runners=0)
    alive = [runner for runner in runners if runner.alive]
    return Readiness(ready=bool(alive), database=True, runner=bool(alive), runners=len(alive))


def update_metrics(services: Services) -> None:
    """Set the gauges that are read from the database. They keep their values while it is away."""
    metrics = services.metrics
    metrics.streams.set(services.events.open_streams)
    metrics.lag.set(services.events.lag)
    try:
        for state, number in services.jobs.counts().items():
            metrics.jobs.labels(state).set(number)
        metrics.runner_age.clear()
        for runner in services.jobs.runners():
            metrics.runner_age.labels(runner.id).set(runner.silent)
    except (SQLAlchemyError, PruneSearchError, OSError):
        metrics.database_up.set(0)
        return
    metrics.database_up.set(1)
