"""The workflow that is a job. DBOS stores which of its steps are finished.

Each stage of the command is a step. If the runner is killed, the workflow runs again from its
beginning in another one: a step that was finished returns what was stored, and the next step starts
the process of the job. There a stage finds its earlier result by content.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

from dbos import DBOS

from prunesearch.runtime.json_values import Json, JsonObject
from prunesearch.service.job_state import STAGES
from prunesearch.service.queue import WORKFLOW
from prunesearch.service.running_job import RunningJob

Attend = Callable[[str, JsonObject], AbstractContextManager[RunningJob]]
"""Function that runs a job, by its identifier and its request, inside a ``with`` block."""


class _Place:
    """The runner of this process. DBOS has one registry of workflows in a process."""

    attend: Attend | None = None


def attach(attend: Attend | None) -> None:
    """Set what runs the jobs of this process. None: nothing does."""
    _Place.attend = attend


@DBOS.workflow(name=WORKFLOW, max_recovery_attempts=None)
def run_job(request: JsonObject) -> Json:
    """Run a job, and return the report of its command.

    Args:
        request: the document that was submitted (see `jobs.Jobs.submit`).
    """
    job, attend = DBOS.workflow_id, _Place.attend
    assert job is not None
    assert attend is not None, "a runner executes workflows"
    record: JsonObject = {}
    with attend(job, request) as running:
        for stage in STAGES[str(request["command"])]:
            record = DBOS.run_step({"name": stage}, running.wait_for, stage)
    return record.get("report")
