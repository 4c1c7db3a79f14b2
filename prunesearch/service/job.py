"""A job, as the HTTP interface, the pages and the command line see it."""

from dataclasses import dataclass
from typing import Literal

from prunesearch.runtime.json_values import JsonObject

JobState = Literal["queued", "running", "paused", "finished", "failed", "cancelled"]
"""State of a job. The last three are final."""
FINAL: frozenset[JobState] = frozenset({"finished", "failed", "cancelled"})
"""States that a job does not leave."""
JobCommand = Literal["search", "run"]
"""Command of a job: only the search, or the search and everything that follows it."""


@dataclass(frozen=True)
class JobRequest:
    """What a user submits.

    Attributes:
        recipe: document of the recipe, in sections, as `config.recipe.Recipe.document` writes it.
        command: command of the job.
        trials: total number of trials. None: the default of the command line.
        study: name of the study. None: it is made from the recipe.
        confirm: share of the scored documents that confirms the best candidates. None: the default
            of the command line.
    """

    recipe: JsonObject
    command: JobCommand = "run"
    trials: int | None = None
    study: str | None = None
    confirm: float | None = None

    def document(self) -> JsonObject:
        """Return what identifies the request besides its recipe."""
        found: JsonObject = {"command": self.command, "trials": self.trials, "study": self.study}
        # Requests of earlier versions have no `confirm`.
        if self.confirm is not None:
            found["confirm"] = self.confirm
        return found


@dataclass(frozen=True)
class StageRecord:
    """A stage of a job.

    Attributes:
        name: name of the stage, as in `pipeline.stages`.
        state: ``waiting``, ``running``, ``finished`` or ``skipped``.
        seconds: duration, if it is finished.
    """

    name: str
    state: Literal["waiting", "running", "finished", "skipped"]
    seconds: float | None = None


@dataclass(frozen=True)
class JobProgress:
    """The latest progress of a job.

    Attributes:
        step: name of the step that is under way, such as ``loading the model``.
        done, total: number of finished units of the step, and of all units.
        unit: name of the units, in the plural.
        hits, computed: evaluations that were found in the cache, or were computed.
        best_value, best_dropped: value and dropped layers of the best trial so far.
    """

    step: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    hits: int = 0
    computed: int = 0
    best_value: float | None = None
    best_dropped: str | None = None


@dataclass(frozen=True)
class Job:
    """A job.

    Attributes:
        id: identifier: ``job-`` and 16 hexadecimal digits.
        study: name of the study that the job searches.
        state: state of the job.
        command: command of the job.
        recipe: document of the recipe. Model and data have the names that the user gave, never
            paths of the server.
        trials: total number of trials.
        submitted_by: name of the token that submitted the job.
        created, started, ended: times in seconds since 1970.
        stages: stages of the command, in order.
        progress: latest progress. None: nothing was reported yet.
        error: why the job failed, in one line.
        exported: whether there is a verified export to download.
        last_event: sequence number of the last event; 0 if there is none.
        confirm: share of the scored documents that confirms; None: the default.
    """

    id: str
    study: str
    state: JobState
    command: JobCommand
    recipe: JsonObject
    trials: int
    submitted_by: str
    created: float
    started: float | None = None
    ended: float | None = None
    stages: tuple[StageRecord, ...] = ()
    progress: JobProgress | None = None
    error: str | None = None
    exported: bool = False
    last_event: int = 0
    confirm: float | None = None


@dataclass(frozen=True)
class StageRow:
    """A stage of a job, as people see it.

    Attributes:
        name, seconds: as in `StageRecord`.
        state: as in `StageRecord`, ``paused`` in a job that is paused, or ``interrupted`` or
            ``not reached`` in a job that has ended.
    """

    name: str
    state: str
    seconds: float | None


def stage_rows(job: Job) -> list[StageRow]:
    """Return the stages of a job. In a job that has ended no stage runs or waits."""
    rows = []
    for stage in job.stages:
        state: str = stage.state
        if state == "running" and job.state == "paused":
            state = "paused"
        elif state == "running" and job.state in FINAL:
            state = "interrupted"
        elif state == "waiting" and job.state in FINAL:
            state = "not reached"
        rows.append(StageRow(stage.name, state, stage.seconds))
    return rows


@dataclass(frozen=True)
class JobPage:
    """A page of jobs, the newest first.

    Attributes:
        jobs: jobs of the page.
        next: cursor of the next page. None: this is the last one.
    """

    jobs: tuple[Job, ...]
    next: str | None = None


@dataclass(frozen=True)
class StoredEvent:
    """An event of a job, as it is kept.

    Attributes:
        seq: sequence number in the job. It starts at 1 and has no gaps.
        at: time in seconds since 1970.
        kind: ``state``, ``stage``, ``progress``, ``search``, ``heal``, ``message`` or ``log``.
        data: what happened. Its keys are the fields of the event's dataclass in `events`.
    """

    seq: int
    at: float
    kind: str
    data: JsonObject
