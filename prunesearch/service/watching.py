"""Watching a job until it ends: its events are shown as those of a local run."""

from collections.abc import Callable
from dataclasses import dataclass, field

from prunesearch import events
from prunesearch.errors import NotFoundError, ServerError
from prunesearch.events import Message
from prunesearch.runtime.json_values import Json, json_as
from prunesearch.service.client import Client
from prunesearch.service.following import follow
from prunesearch.service.job import Job
from prunesearch.service.replay import event_from

SHOWN = frozenset({"state", "stage", "progress", "search", "heal", "message"})
"""Kinds of events that are shown unless the log is asked for."""
STATUS = {"finished": 0, "failed": 1, "cancelled": 3}
"""Exit status of the command that watched a job, by the state in which the job ended."""


@dataclass(frozen=True)
class WatchedJob:
    """A job that has ended.

    Attributes:
        job: the job.
        result: report of its command, as ``--json`` of a local run prints it; None if there is
            none.
    """

    job: Job = field(metadata=json_as(inline=True))
    result: Json = None

    @property
    def status(self) -> int:
        """Exit status of a command that watched the job."""
        return STATUS.get(self.job.state, 1)


def watch(
    client: Client, job_id: str, set_clock: Callable[[float], None], *, log: bool = False
) -> WatchedJob:
    """Tell the events of a job until it ends, and return it.

    Args:
        client: connection to the server.
        job_id: identifier of the job.
        set_clock: is called with the time of each event before it is told.
        log: tell the lines of the job's log too.

    Raises:
        InputError: the job does not exist, or the token is not accepted.
        ServerError: the server does not answer.
    """

    def lost(error: ServerError) -> None:
        events.tell(
            Message(f"the connection to {client.server.url} is lost; the job runs on: trying again")
        )

    client.job(job_id)  # the first answer comes at once, or the command fails
    kinds = SHOWN | {"log"} if log else SHOWN
    for stored in follow(client, job_id, kinds=kinds, on_lost=lost):
        set_clock(stored.at)
        event = event_from(stored)
        if event is not None:
            events.tell(event)
    return WatchedJob(client.job(job_id), result_of(client, job_id))


def result_of(client: Client, job_id: str) -> Json:
    """Return the report of a job's command; None if there is none."""
    try:
        return client.document(f"/v1/jobs/{job_id}/result")
    except NotFoundError:
        return None
