"""Pages: the list of jobs and studies, a job, and what can be done with it."""

from collections.abc import Callable, Mapping
from typing import Annotated, get_args
from urllib.parse import urlencode

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, Response
from starlette.concurrency import run_in_threadpool

from prunesearch.errors import InputError, NotFoundError
from prunesearch.service.access.roles import User
from prunesearch.service.http.auth import page_user
from prunesearch.service.http.problems import ProblemError
from prunesearch.service.http.routing import changed
from prunesearch.service.http.services import Services, Shared
from prunesearch.service.job import FINAL, Job, JobState, stage_rows
from prunesearch.service.web import choices, study_charts, submit_fields, views
from prunesearch.service.web.layout import entered, page, to
from prunesearch.service.web.report_tables import report_view

PageViewer = Annotated[User, Depends(page_user("viewer"))]
PageSubmitter = Annotated[User, Depends(page_user("submitter"))]
_STATES: tuple[JobState, ...] = get_args(JobState)
_JOBS, _STUDIES = 25, 25  # rows of a page
_EVENTS = 3000  # last events that the log of a page is read from


def add_to(app: FastAPI) -> None:
    """Add the routes."""
    app.get("/", include_in_schema=False)(index_page)
    app.get("/jobs/{job_id}", include_in_schema=False)(job_page)
    for verb in ("pause", "resume", "stop", "cancel", "delete"):
        app.post(f"/jobs/{{job_id}}/{verb}", name=f"{verb}_job", include_in_schema=False)(
            _changing(verb)
        )


def index_page(
    request: Request,
    user: PageViewer,
    services: Shared,
    state: str = "",
    study: Annotated[str, Query(max_length=512)] = "",
    by: Annotated[str, Query(max_length=100)] = "",
    cursor: Annotated[str | None, Query(max_length=200)] = None,
    studies: Annotated[str, Query(max_length=512)] = "",
) -> HTMLResponse:
    """Show the jobs and the studies."""
    filters = {"state": state, "study": study, "by": by}
    # A state that does not exist filters nothing.
    asked: JobState | None = None
    for known in _STATES:
        if known == state:
            asked = known
    found = services.jobs.list(asked, study or None, by or None, _JOBS, cursor)
    # What the page shows besides the list: numbers of jobs, and studies.
    counts = services.jobs.counts()
    listed = services.studies.studies(_STUDIES, studies)
    more = listed[-1].name if len(listed) == _STUDIES else None
    values = {
        "section": "jobs",
        "states": _STATES,
        "filters": {**filters, "any": any(filters.values())},
        "counts": views.states_with_counts(counts, _STATES),
        "active": bool(counts.get("queued") or counts.get("running")),
        "jobs": [views.job_row(job, _trials(services, job)) for job in found.jobs],
        "first_page": _link(filters) if cursor else None,
        "next_page": _link({**filters, "cursor": found.next}) if found.next else None,
        "studies": listed,
        "next_studies": _link({"studies": more}) + "#studies" if more else None,
        "first_studies": "/#studies" if studies else None,
        "models": choices.models(services.settings.models) if not found.jobs else [],
    }
    return page(request, "index.html", values)


def _trials(services: Services, job: Job) -> int:
    """Return the number of finished trials in the study of a job that is not over; else 0."""
    if job.state not in ("running", "paused"):
        return 0
    try:
        return services.studies.study(job.study).trials
    except NotFoundError:
        return 0


def _link(values: Mapping[str, str | None]) -> str:
    """Return the path of the list with parameters."""
    given = {name: value for name, value in values.items() if value}
    return "/?" + urlencode(given) if given else "/"


def job_page(
    request: Request, job_id: str, user: PageViewer, services: Shared, live: bool = False
) -> HTMLResponse:
    """Show a job.

    Args:
        request: the request.
        job_id: identifier of the job.
        user: the user.
        services: what the routes share.
        live: whether the script asks for the parts that change. The log is left out then.
    """
    # Without a living runner a queued job would wait for ever, and the page says so.
    job = services.jobs.get(job_id)
    runners = services.jobs.runners() if job.state == "queued" else []
    # The chart leaves room for the trials to come.
    total = 0 if job.state in FINAL else job.trials
    shown = study_charts.of_study(services, job.study, total)
    progress = views.search_progress(job, shown.trials)
    if progress is None and job.state not in FINAL:
        progress = job.progress
    now = None
    if progress is not None and progress != job.progress and job.state == "running":
        now = job.progress
    values = {
        "section": "jobs",
        "job": job,
        "ended": job.state in FINAL,
        "stages": stage_rows(job),
        "progress": progress,
        "now": now,
        "last_event": job.last_event,
        "verbs": views.verbs(job, user),
        "elapsed": views.elapsed(job),
        "no_runner": not any(runner.alive for runner in runners),
        "report": report_view(services.jobs.result(job_id)),
        "files": _files(services, job),
        "log": [] if live else _log(services, job),
        "recipe": submit_fields.recipe_text(job.recipe),
        "has_study": shown.exists,
        "is_pareto": shown.is_pareto,
        "metric": shown.metric,
        "chart": shown.chart,
        "map": shown.map,
    }
    return page(request, "job.html", values)


def _log(services: Services, job: Job) -> list[str]:
    # The log of a long job is read from its end.
    after = max(0, job.last_event - _EVENTS)
    return views.log_lines(services.jobs.events(job.id, after, _EVENTS, views.LOG_KINDS))


def _files(services: Services, job: Job) -> list[views.FileRow]:
    """Return the files of a job's export. Empty without one."""
    if not job.exported:
        return []
    try:
        return views.file_rows(services.jobs.export_folder(job.id))
    except NotFoundError:
        return []


def _changing(verb: str) -> Callable[..., object]:
    """Return the function that does something with a job and leads to its page."""

    async def change(
        request: Request, job_id: str, user: PageSubmitter, services: Shared
    ) -> Response:
        fields = await entered(request)
        export = fields.get("export") == "true"
        await run_in_threadpool(_change, services, verb, job_id, user, export)
        changed(request, job_id)
        return to("/?done=delete" if verb == "delete" else f"/jobs/{job_id}?done={verb}")

    return change


def _change(services: Services, verb: str, job_id: str, user: User, export: bool) -> None:
    """Do something with a job.

    Raises:
        ProblemError: the job is somebody else's, and the user is not an admin.
        InputError: the job does not exist, or its state does not allow it.
    """
    job = services.jobs.get(job_id)
    # The buttons are not shown to others. A request can be sent without them.
    if not views.may_change(job, user):
        raise ProblemError(
            403,
            f"job {job_id} was submitted by {job.submitted_by!r}: only they or an admin may change "
            f"it",
        )
    if verb == "pause":
        services.jobs.pause(job_id)
    elif verb == "resume":
        services.jobs.resume(job_id)
    elif verb == "stop":
        services.jobs.stop(job_id)
    elif verb == "cancel":
        services.jobs.cancel(job_id)
    elif verb == "delete":
        services.jobs.delete(job_id, export)
    else:
        raise InputError(f"unknown verb {verb!r}")
