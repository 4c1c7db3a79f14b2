"""Tables of jobs for people. Text of the server is escaped."""

import math
import time
from typing import TYPE_CHECKING

from prunesearch.report.recommendation import decided_in
from prunesearch.report.removals import Removal
from prunesearch.report.tables import (
    LayerList,
    Parts,
    Prose,
    dense_against_pruned,
    duration,
    next_commands,
    size,
    table,
    without_constant,
)
from prunesearch.runtime.json_values import Json
from prunesearch.runtime.masking import printable
from prunesearch.service.download import FetchedExport
from prunesearch.service.job import FINAL, Job, JobPage, stage_rows
from prunesearch.service.watching import WatchedJob
from prunesearch.units import noun_for

if TYPE_CHECKING:
    from prunesearch.service.client import Verb

_DAYS = 2 * 86_400  # seconds after which a time is shown by its day


def jobs(page: JobPage) -> Parts:
    """Show one line per job."""
    columns = ("job", "state", "study", "done", "best", "layers dropped", "by", "submitted")
    rows = []
    for job in page.jobs:
        rows.append(
            (
                job.id,
                job.state,
                job.study,
                _done(job),
                _best(job),
                LayerList(_dropped(job)),
                job.submitted_by,
                _ago(job.created),
            )
        )
    if not rows:
        return ["no jobs: prunesearch submit RECIPE.yaml submits one"]
    parts: Parts = [table("Jobs", *without_constant(columns, rows, {"-"}))]
    if page.next is not None:
        parts.append("there are more jobs: see --last, --state and --study")
    return parts


def job_details(job: Job) -> Parts:
    """Show a job: its state, its stages and what can be done with it."""
    rows: list[tuple[object, ...]] = [
        ("state", job.state),
        ("study", job.study),
        ("command", job.command),
        ("trials", job.trials),
        ("submitted", f"{_ago(job.created)} by {printable(job.submitted_by)}"),
    ]
    if job.started is not None:
        end = time.time() if job.ended is None else job.ended
        rows.append(("time since its start", duration(round(max(0.0, end - job.started)))))
    if job.progress is not None and job.state in ("queued", "running"):
        rows.append(("step", Prose(f"{printable(job.progress.step)} {_done(job)}")))
    if (best := _best(job)) != "-":
        rows.append(("best", best))
        rows.append(("layers dropped", LayerList(_dropped(job))))
    if job.error:
        rows.append(("error", Prose(printable(job.error))))
    parts: Parts = [table("Job", (job.id, ""), rows)]
    stages = []
    for stage in stage_rows(job):
        spent = "-" if stage.seconds is None else duration(stage.seconds)
        stages.append((stage.name, stage.state, spent))
    if stages:
        parts.append(table("Stages", ("stage", "state", "time"), stages))
    if commands := _next(job):
        parts.append(next_commands(*commands))
    return parts


def watched(found: WatchedJob) -> Parts:
    """Show a job that was watched to its end, and how good its best candidate is."""
    parts = job_details(found.job)
    result = found.result
    if isinstance(result, dict):
        dense, best = _figures(result.get("dense")), _figures(result.get("best"))
        if dense and best:
            parts.insert(1, dense_against_pruned("Best candidate", dense, best))
            parts[2:2] = [printable(line) for line in decided_in(result)]
    return parts


def _figures(value: Json) -> dict[str, float]:
    """Return the numbers of a candidate in a report: its metrics and its costs."""
    figures: dict[str, float] = {}
    for name in ("metrics", "cost"):
        part = value.get(name) if isinstance(value, dict) else None
        for key, number in (part if isinstance(part, dict) else {}).items():
            if isinstance(number, int | float) and math.isfinite(number):
                figures[key] = float(number)
    return figures


def submitted(job: Job) -> Parts:
    """Show a job that was submitted."""
    return [
        f"{job.id} is {job.state}: study {printable(job.study)}, {job.trials} "
        f"{noun_for(job.trials, 'trial')}",
        next_commands(f"prunesearch watch {job.id}"),
    ]


def changed(job: Job, verb: "Verb") -> Parts:
    """Show a job after its state was changed."""
    line = f"{job.id} is {job.state}"
    if verb == "stop" and job.state == "running":
        line = f"the search of {job.id} ends, and the job goes on with the best trial so far"
    parts: Parts = [line]
    if commands := _next(job):
        parts.append(next_commands(*commands))
    return parts


def fetched(found: FetchedExport) -> Parts:
    """Show an export that was downloaded."""
    count = len(found.files)
    files, each = f"{count} {noun_for(count, 'file')}", noun_for(count, "it has", "each has")
    return [
        f"{found.folder}: {files}, {size(found.bytes)}; {each} the sha256 that the server "
        f"announced",
        next_commands(f"prunesearch verify {found.folder}"),
    ]


def _next(job: Job) -> list[str]:
    """Return the commands that go on with a job."""
    if job.state == "paused":
        return [f"prunesearch resume {job.id}"]
    if job.exported:
        return [f"prunesearch fetch {job.id} --out pruned"]
    if job.state not in FINAL:
        return [f"prunesearch watch {job.id}"]
    return []


def _done(job: Job) -> str:
    """Return how much of the present step is done."""
    # The latest progress of a job that does not run says how far a generation was.
    if job.progress is None or not job.progress.total or job.state in ("paused", *FINAL):
        return "-"
    return f"{job.progress.done}/{job.progress.total} {printable(job.progress.unit)}".strip()


def _best(job: Job) -> str:
    """Return the best value so far."""
    if job.progress is None or job.progress.best_value is None:
        return "-"
    return f"{job.progress.best_value:.4f}"


def _dropped(job: Job) -> str:
    """Return the layers that the best trial drops."""
    if job.progress is None or not job.progress.best_dropped:
        return "-"
    return Removal.of(job.progress.best_dropped).brief


def _ago(at: float) -> str:
    """Format a time of the past: how long ago it was, or its day."""
    seconds = max(0.0, time.time() - at)
    if seconds > _DAYS:
        return time.strftime("%Y-%m-%d", time.localtime(at))
    return f"{duration(round(seconds))} ago"
