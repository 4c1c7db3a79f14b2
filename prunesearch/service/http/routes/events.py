"""The events of a job: as a stream, or as pages."""

from typing import Annotated

from fastapi import FastAPI, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from prunesearch.runtime.json_values import to_json
from prunesearch.service.http.auth import Viewer, credential_of
from prunesearch.service.http.documents import EventPageDocument
from prunesearch.service.http.event_stream import EventStream
from prunesearch.service.http.routes.jobs import JobId
from prunesearch.service.http.routing import problems
from prunesearch.service.http.services import Shared
from prunesearch.service.job import FINAL

_LARGEST = 2**62


def add_to(app: FastAPI) -> None:
    """Add the route of events."""
    example = 'id: 3\nevent: search\ndata: {"at":1790000000.0,"number":0,"value":0.41}\n\n'
    app.get(
        "/v1/jobs/{job_id}/events",
        operation_id="follow_job",
        tags=["jobs"],
        response_class=Response,
        responses={
            200: {
                "description": "The events. A stream ends with the final state.",
                "content": {
                    "text/event-stream": {"schema": {"type": "string"}, "example": example},
                    "application/json": {
                        "schema": {"$ref": f"#/components/schemas/{EventPageDocument.__name__}"}
                    },
                },
            },
            204: {"description": "The job has ended, and there are no further events."},
            **problems(404),
        },
    )(follow_job)


async def follow_job(
    request: Request,
    job_id: JobId,
    user: Viewer,
    services: Shared,
    after: Annotated[int, Query(ge=0, le=_LARGEST, description="Event to begin after.")] = 0,
    kinds: Annotated[
        str | None, Query(max_length=200, description="Kinds of events, separated by commas.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Events of a page.")] = 1000,
    last_event_id: Annotated[
        str | None, Header(max_length=40, description="Event to begin after, as browsers send it.")
    ] = None,
) -> Response:
    """Follow the events of a job from the beginning, or from an event on.

    With `Accept: application/json` the answer is a page of events. Otherwise it is a stream of
    server-sent events, which ends with the final `state` event. Each event has its sequence number
    as id, so that a client that connects again misses none.
    """
    wanted = None if kinds is None else {kind.strip() for kind in kinds.split(",")}
    if last_event_id is not None and last_event_id.isdecimal():
        after = max(after, min(int(last_event_id), _LARGEST))
    job = await run_in_threadpool(services.jobs.get, job_id)
    accepted = request.headers.get("accept", "")
    if "application/json" in accepted and "text/event-stream" not in accepted:
        events = await run_in_threadpool(services.jobs.events, job_id, after, limit, wanted)
        following = events[-1].seq if events else after
        return JSONResponse({"events": to_json(events), "next": following})
    # This status tells a browser not to connect again.
    if job.state in FINAL and after >= job.last_event:
        return Response(status_code=204)
    return EventStream(
        services.jobs,
        services.events,
        services.http,
        job_id,
        credential_of(request),
        after,
        wanted,
    )
