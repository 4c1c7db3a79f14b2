"""What the pages of jobs show: job rows, verbs, the log."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from prunesearch.runtime.json_values import Json, JsonObject
from prunesearch.service.access.roles import User
from prunesearch.service.job import FINAL, Job, JobProgress, JobState, StoredEvent

LOG_LINES = 500
"""Lines of a log that a page shows at first."""


@dataclass(frozen=True)
class JobRow:
    """A job in a list.

    Attributes:
        id, study, state, command, submitted_by, created, progress, error, exported: as in `Job`.
        model, drop, sampler: what its recipe says.
        stage: name of the running stage, or an empty text.
        ended: whether the state is final.
    """

    id: str
    study: str
    state: JobState
    command: str
    submitted_by: str
    created: float
    progress: JobProgress | None
    error: str | None
    exported: bool
    model: str
    drop: str
    sampler: str
    stage: str
    ended: bool


def job_row(job: Job, trials: int = 0) -> JobRow:
    """Return a job as lists show it.

    Args:
        job: the job.
        trials: number of finished trials in its study, if its search is under way.
    """
    # A job runs one stage at a time.
    running = [stage.name for stage in job.stages if stage.state == "running"]
    return JobRow(
        id=job.id,
        study=job.study,
        state=job.state,
        command=job.command,
        submitted_by=job.submitted_by,
        created=job.created,
        progress=search_progress(job, trials) or job.progress,
        error=job.error,
        exported=job.exported,
        model=_setting(job.recipe, "model", "path"),
        drop=_setting(job.recipe, "search", "drop") or _setting(job.recipe, "search", "target"),
        sampler=_setting(job.recipe, "search", "sampler"),
        stage=running[0] if running else "",
        ended=job.state in FINAL,
    )


def _setting(recipe: JsonObject, section: str, name: str) -> str:
    """Return a setting of a recipe as text. Empty if the recipe does not have it."""
    value: Json = recipe.get(section)
    # A section may be one text, its path.
    if isinstance(value, dict):
        value = value.get(name)
    return value if isinstance(value, str) else ""


@dataclass(frozen=True)
class Verb:
    """Something that a user can do with a job.

    Attributes:
        name: last part of the path that does it.
        label: text of the button.
        explanation: what happens, in a sentence.
        question: question before it is done. Empty: it is done at once.
        answer: text of the button that says yes.
        style: class of the button.
    """

    name: str
    label: str
    explanation: str
    question: str = ""
    answer: str = ""
    style: str = ""

    @property
    def confirm(self) -> bool:
        """Whether the user is asked first."""
        return bool(self.question)


PAUSE = Verb("pause", "Pause", "The job stops as soon as it can, and can be resumed later.")
RESUME = Verb("resume", "Resume", "The job goes on at the same trial.")
STOP = Verb(
    "stop",
    "Stop the search",
    "The search ends after the generation that is under way. The stages that follow use the best "
    "candidate so far.",
)
CANCEL = Verb(
    "cancel",
    "Cancel",
    "It ends now and cannot be resumed. Its finished trials and evaluations are kept, so the same "
    "recipe would continue from them.",
    "Cancel this job?",
    "Yes, cancel it",
    "danger",
)
DELETE = Verb(
    "delete",
    "Delete",
    "The job, its log and its report are deleted. Its study and its evaluations are kept.",
    "Delete this job?",
    "Yes, delete it",
    "danger",
)
_VERBS: dict[JobState, tuple[Verb, ...]] = {
    "queued": (PAUSE, CANCEL),
    "running": (PAUSE, STOP, CANCEL),
    "paused": (RESUME, CANCEL, DELETE),
    "finished": (DELETE,),
    "failed": (DELETE,),
    "cancelled": (DELETE,),
}


def may_change(job: Job, user: User) -> bool:
    """Return whether a user may change a job: their own, or every one as an admin."""
    if user.may("admin"):
        return True
    return user.may("submitter") and job.submitted_by == user.name


def verbs(job: Job, user: User) -> tuple[Verb, ...]:
    """Return what a user can do with a job in its present state."""
    if not may_change(job, user):
        return ()
    if job.state != "running" or _searches(job):
        return _VERBS[job.state]
    # Only a search can be stopped.
    return tuple(verb for verb in _VERBS["running"] if verb is not STOP)


def _searches(job: Job) -> bool:
    """Return whether the search of a job may still be under way."""
    for stage in job.stages:
        if stage.name == "search":
            return stage.state in ("waiting", "running")
    return True


def search_progress(job: Job, trials: int) -> JobProgress | None:
    """Return how far the search of a job is, in trials.

    The latest progress of a job may be that of a step within a generation.

    Args:
        job: the job.
        trials: number of finished trials in its study.

    Returns:
        None if its search is not under way.
    """
    running = [stage.name for stage in job.stages if stage.state == "running"]
    if job.state not in ("running", "paused") or running != ["search"] or not trials:
        return None
    # The best value and the use of the cache are those of the latest progress.
    best = job.progress or JobProgress()
    return replace(
        best, step="search", done=min(trials, job.trials), total=job.trials, unit="trials"
    )


def elapsed(job: Job) -> float | None:
    """Return how long a job has run, in seconds. None: it has not started."""
    if job.started is None:
        return None
    ended = job.ended if job.ended is not None else time.time()
    return max(0.0, ended - job.started)


LOG_KINDS = ("log", "message", "stage", "state")
"""Kinds of the events that a page shows as lines of a log."""


def log_lines(events: Iterable[StoredEvent]) -> list[str]:
    """Return the last lines of a log. The script makes the same lines of later events."""
    lines = []
    for event in events:
        line = _line(event)
        if line:
            lines.append(line)
    return lines[-LOG_LINES:]


def _line(event: StoredEvent) -> str:
    """Return the line of an event. Empty for events without one."""
    data = event.data
    if event.kind == "log":
        return str(data.get("line", ""))
    if event.kind == "message":
        return str(data.get("text", ""))
    if event.kind == "state":
        return f"[the job is {data.get('state')}]"
    if event.kind == "stage" and data.get("state") in ("running", "finished"):
        return f"[{data.get('name')}: {data.get('state')}]"
    return ""


@dataclass(frozen=True)
class FileRow:
    """A file of an export.

    Attributes:
        path: path in the export.
        url: the path as part of a URL.
        bytes: size.
    """

    path: str
    url: str
    bytes: int


def states_with_counts(
    counts: Mapping[JobState, int], order: Sequence[JobState]
) -> list[tuple[JobState, int]]:
    """Return the number of jobs in each state, without states that no job has."""
    return [(state, counts[state]) for state in order if counts.get(state)]


def file_rows(folder: Path) -> list[FileRow]:
    """Return the files of an export, in the order of their paths."""
    rows = []
    for path in sorted(folder.rglob("*")):
        # A link could lead out of the export.
        if path.is_symlink() or not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        rows.append(FileRow(name, quote(name), path.stat().st_size))
    return rows
