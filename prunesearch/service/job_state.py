"""The state of a job, as it follows from its workflow in the queue."""

import sqlalchemy
from sqlalchemy import ColumnElement, TableClause

from prunesearch.service.job import JobState
from prunesearch.service.tables import JOB_RECORDS

STAGES = {
    "search": ("search", "report"),
    "run": (
        *("search", "select", "compensate", "tune", "heal"),
        *("export", "verify", "evaluate", "report"),
    ),
}
"""Names of the stages of each command.

`pipeline.run.stages_of` has the stages themselves, which need torch. A test compares both.
"""
_STATES: dict[str, JobState] = {
    "DELAYED": "queued",
    "ENQUEUED": "queued",
    "PENDING": "running",
    "SUCCESS": "finished",
    "ERROR": "failed",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
    "CANCELLED": "cancelled",
}


def state_of(status: str, paused: bool) -> JobState:
    """Return the state of a job.

    Args:
        status: status of the workflow.
        paused: whether the job is paused if its workflow is cancelled.
    """
    state = _STATES[status]
    if state == "cancelled" and paused:
        return "paused"
    return state


def in_state(state: JobState, workflows: TableClause) -> ColumnElement[bool]:
    """Return the condition that a job has a state."""
    wanted: JobState = "cancelled" if state == "paused" else state
    statuses = [status for status, of_status in _STATES.items() if of_status == wanted]
    condition: ColumnElement[bool] = workflows.c.status.in_(statuses)
    if wanted == "cancelled":
        condition = sqlalchemy.and_(condition, JOB_RECORDS.c.paused == (state == "paused"))
    return condition
