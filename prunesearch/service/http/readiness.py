"""Asks the database and the runners how they are."""

import asyncio
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from prunesearch.cache import maintenance
from prunesearch.cache.location import CacheLocation
from prunesearch.errors import PruneSearchError, StorageError
from prunesearch.service.http.documents import Readiness
from prunesearch.service.http.event_hub import FAILURES
from prunesearch.service.http.services import Services
from prunesearch.studies import cache_use

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
    metrics.event_failures.set(services.events.failures)
    try:
        for state, number in services.jobs.counts().items():
            metrics.jobs.labels(state).set(number)
        metrics.runner_age.clear()
        for runner in services.jobs.runners():
            metrics.runner_age.labels(runner.id).set(runner.silent)
        if metrics.is_due():
            _update_evaluations(services)
    except (SQLAlchemyError, PruneSearchError, OSError):
        metrics.database_up.set(0)
        return
    metrics.database_up.set(1)


def _update_evaluations(services: Services) -> None:
    """Count the evaluations of all studies, and the entries of the cache."""
    settings, metrics = services.settings, services.metrics
    uses = cache_use.studies_of(settings.storage).uses
    metrics.evaluations.labels("hit").set(sum(use.hits for use in uses))
    metrics.evaluations.labels("computed").set(sum(use.computed for use in uses))
    # There is no cache before the first job.
    with (
        suppress(StorageError),
        maintenance.reading(CacheLocation.parse(settings.cache)) as backends,
    ):
        entries, size = maintenance.total(backends[0].groups())
        metrics.cache_entries.set(entries)
        metrics.cache_bytes.set(size)
