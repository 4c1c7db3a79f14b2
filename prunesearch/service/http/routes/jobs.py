"""Routes of jobs: submit, list, show, pause, resume, stop, cancel, delete."""

import re
from typing import Annotated

from fastapi import FastAPI, Header, Path, Query, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import JsonValue

from prunesearch.errors import ConflictError, InputError, NotFoundError, StorageError
from prunesearch.runtime.json_values import to_json
from prunesearch.service.access.roles import User
from prunesearch.service.http.auth import Submitter, Viewer
from prunesearch.service.http.documents import (
    CheckedRecipe,
    JobDocument,
    JobPageDocument,
    Submission,
)
from prunesearch.service.http.problems import FieldError, ProblemError
from prunesearch.service.http.routing import changed, problems
from prunesearch.service.http.services import Services, Shared
from prunesearch.service.job import Job, JobRequest, JobState
from prunesearch.service.recipe_text import check_depth, read_recipe

JobId = Annotated[str, Path(pattern=r"^job-[0-9a-f]{16}$", description="Identifier of the job.")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="The same key with the same request gives the same job again.",
    ),
]
Cursor = Annotated[
    str | None, Query(max_length=200, description="Field `next` of the page before.")
]
Limit = Annotated[int, Query(ge=1, le=500, description="Largest number of rows.")]
_LOG_PAGE = 1000
_FIELD = re.compile(r"((?:\w+\.)+\w+)\b")
_QUOTED = re.compile(r"`(\w+)`")
"""How a message names the field that is wrong: by its section, or in backticks."""


def add_to(app: FastAPI) -> None:
    """Add the routes of jobs."""
    app.post(
        "/v1/jobs",
        operation_id="submit_job",
        tags=["jobs"],
        status_code=201,
        response_model=JobDocument,
        responses={
            200: {"model": JobDocument, "description": "The key was used before: the same job."},
            **problems(408, 409, 413, 415),
        },
    )(submit_job)
    app.get(
        "/v1/jobs",
        operation_id="list_jobs",
        tags=["jobs"],
        response_model=JobPageDocument,
        responses=problems(),
    )(list_jobs)
    app.get(
        "/v1/jobs/{job_id}",
        operation_id="show_job",
        tags=["jobs"],
        response_model=JobDocument,
        responses=problems(404),
    )(show_job)
    for verb in (pause_job, resume_job, stop_job, cancel_job):
        app.post(
            f"/v1/jobs/{{job_id}}/{verb.__name__.removesuffix('_job')}",
            operation_id=verb.__name__,
            tags=["jobs"],
            response_model=JobDocument,
            responses=problems(404, 409),
        )(verb)
    app.delete(
        "/v1/jobs/{job_id}",
        operation_id="delete_job",
        tags=["jobs"],
        status_code=204,
        response_class=Response,
        responses=problems(404, 409),
    )(delete_job)
    app.get(
        "/v1/jobs/{job_id}/result",
        operation_id="show_result",
        tags=["jobs"],
        responses=problems(404),
    )(show_result)
    app.get(
        "/v1/jobs/{job_id}/log",
        operation_id="show_log",
        tags=["jobs"],
        response_class=PlainTextResponse,
        responses=problems(404),
    )(show_log)
    app.post(
        "/v1/recipes/check",
        operation_id="check_recipe",
        tags=["jobs"],
        response_model=CheckedRecipe,
        responses=problems(408, 409, 413, 415),
    )(check_recipe)


def request_of(submission: Submission) -> JobRequest:
    """Return the request of a job.

    Raises:
        ProblemError: the recipe cannot be read.
    """
    try:
        if isinstance(submission.recipe, str):
            recipe = read_recipe(submission.recipe)
        else:
            check_depth(submission.recipe)
            recipe = dict(submission.recipe)
    except InputError as error:
        raise refused(error) from None
    return JobRequest(
        recipe, submission.command, submission.trials, submission.study, submission.confirm
    )


def refused(error: InputError) -> InputError | ProblemError:
    """Return the problem of a recipe that is refused, with the field that is wrong."""
    if isinstance(error, NotFoundError | ConflictError | StorageError):
        return error
    text = str(error)
    match = _FIELD.match(text) or _QUOTED.search(text)
    name = match[1] if match is not None else "recipe"
    return ProblemError(422, text, errors=[FieldError(field=name, message=text)])


def submit_job(
    request: Request,
    response: Response,
    submission: Submission,
    user: Submitter,
    services: Shared,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Submit a job.

    The recipe may name only models and data that the operator allows. A repeated `Idempotency-Key`
    gives the same job again, with status 200.
    """
    asked = request_of(submission)
    try:
        job, new = services.jobs.submit(asked, user.name, idempotency_key)
    except InputError as error:
        raise refused(error) from None
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    changed(request, job.id)
    return job


def check_recipe(submission: Submission, user: Viewer, services: Shared) -> CheckedRecipe:
    """Check a job without submitting it, and tell what it would do."""
    asked = request_of(submission)
    try:
        allowed = services.jobs.check(asked)
    except InputError as error:
        raise refused(error) from None
    return CheckedRecipe.model_validate(
        {
            "study": allowed.study,
            "recipe": allowed.recipe.document(),
            "trials": allowed.trials,
            "confirm": asked.confirm,
        }
    )


def list_jobs(
    user: Viewer,
    services: Shared,
    state: JobState | None = None,
    study: Annotated[str | None, Query(max_length=512)] = None,
    submitted_by: Annotated[str | None, Query(max_length=100)] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> object:
    """List jobs, the newest first."""
    return services.jobs.list(state, study, submitted_by, limit, cursor)


def show_job(job_id: JobId, user: Viewer, services: Shared) -> Job:
    """Show a job."""
    return services.jobs.get(job_id)


def pause_job(job_id: JobId, user: Submitter, services: Shared) -> Job:
    """Pause a job. It stops after the step that is under way, and can be resumed."""
    _own(services, job_id, user)
    return services.jobs.pause(job_id)


def resume_job(job_id: JobId, user: Submitter, services: Shared) -> Job:
    """Resume a paused job. It goes on at the same trial."""
    _own(services, job_id, user)
    return services.jobs.resume(job_id)


def stop_job(job_id: JobId, user: Submitter, services: Shared) -> Job:
    """End the search of a job after this generation. What follows uses the best trial so far."""
    _own(services, job_id, user)
    return services.jobs.stop(job_id)


def cancel_job(job_id: JobId, user: Submitter, services: Shared) -> Job:
    """Cancel a job. Its trials and evaluations are kept."""
    _own(services, job_id, user)
    return services.jobs.cancel(job_id)


def delete_job(
    job_id: JobId,
    user: Submitter,
    services: Shared,
    export: Annotated[bool, Query(description="Delete the export of the job too.")] = False,
) -> Response:
    """Delete a job that has ended or is paused, and its events. The study is kept."""
    _own(services, job_id, user)
    services.jobs.delete(job_id, export)
    return Response(status_code=204)


def _own(services: Services, job_id: str, user: User) -> None:
    """Check that a user may change a job.

    Raises:
        NotFoundError: the job does not exist.
        ProblemError: it is somebody else's, and the user is not an admin.
    """
    job = services.jobs.get(job_id)
    if job.submitted_by != user.name and not user.may("admin"):
        raise ProblemError(
            403,
            f"job {job_id} was submitted by {job.submitted_by!r}: only they or an admin may change "
            f"it",
        )


def show_result(job_id: JobId, user: Viewer, services: Shared) -> dict[str, JsonValue]:
    """Show the report of a job that has ended, as `prunesearch run --json` prints it."""
    services.jobs.get(job_id)
    result = services.jobs.result(job_id)
    if result is None:
        raise NotFoundError(f"job {job_id} has no result yet: it has not ended")
    converted = to_json(result)
    assert isinstance(converted, dict)
    return converted


def show_log(
    job_id: JobId,
    user: Viewer,
    services: Shared,
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
) -> Response:
    """Show the log of a job as text: up to 1,000 lines after an event."""
    services.jobs.get(job_id)
    events = services.jobs.events(job_id, after, _LOG_PAGE, ("log",))
    lines = [str(event.data.get("line", "")) for event in events]
    text = "".join(line + "\n" for line in lines)
    headers = {"X-Next": str(events[-1].seq if events else after)}
    return PlainTextResponse(text, headers=headers)
