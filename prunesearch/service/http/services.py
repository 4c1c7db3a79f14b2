"""What the routes of an app share."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from prunesearch.service.access.access import Access
from prunesearch.service.export_files import ExportFiles
from prunesearch.service.http.event_hub import EventHub
from prunesearch.service.http.metrics import HttpMetrics
from prunesearch.service.http.rate_limits import RateLimits
from prunesearch.service.http.settings import HttpSettings
from prunesearch.service.jobs import Jobs
from prunesearch.service.settings import ServiceSettings
from prunesearch.service.studies_view import StudiesView


@dataclass(frozen=True)
class Services:
    """What the routes of an app share. The state of an app has it under the name ``services``.

    Attributes:
        settings: settings of the service.
        http: settings of the HTTP process.
        jobs: the jobs.
        access: tokens, sessions and the log of changes.
        studies: the studies.
        exports: the files of exports.
        events: the events of jobs that are being followed.
        limits: limits of the rate of requests.
        metrics: what /metrics shows.
    """

    settings: ServiceSettings
    http: HttpSettings
    jobs: Jobs
    access: Access
    studies: StudiesView
    exports: ExportFiles
    events: EventHub
    limits: RateLimits
    metrics: HttpMetrics


def services_of(connection: HTTPConnection) -> Services:
    """Return what the routes of an app share."""
    found = connection.app.state.services
    assert isinstance(found, Services)
    return found


Shared = Annotated[Services, Depends(services_of)]
"""Parameter of a route that gets the shared objects."""
