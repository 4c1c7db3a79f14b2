"""A job that runs: its process, which is started again if it dies, and the stages that it finished.

The thread of the workflow calls `RunningJob.wait_for` for one stage after the other. The process is
started when the first stage is waited for that is not finished yet.
"""

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunesearch.errors import InputError
from prunesearch.runtime.json_values import Json, JsonObject
from prunesearch.runtime.masking import CACHE_VARIABLE, STORAGE_VARIABLE, masked_text, printable
from prunesearch.service.allowed import check
from prunesearch.service.child import JobChild
from prunesearch.service.event_writer import EventWriter
from prunesearch.service.job import JobRequest
from prunesearch.service.job_process import JobOrder
from prunesearch.service.settings import ServiceSettings
from prunesearch.service.slots import Slot, Slots

MOST_DEATHS = 3
"""Number of processes of a job that may die in a row without progress."""
GRACE = 60.0
"""Seconds in which the process of a paused or cancelled job may end by itself."""
_LAST = "report"  # stage after which the process ends


class JobFailedError(Exception):
    """A job that has failed. Its text is the reason, in one line. The queue stores it."""


class InterruptedJob(BaseException):
    """Ends a workflow without a result: the job was paused, cancelled, or taken over, or the runner
    ends. It is not an `Exception`, because the queue would store one as the job's failure.
    """


@dataclass(frozen=True)
class Surroundings:
    """What the running jobs of a runner have in common.

    Attributes:
        settings: settings of the service.
        slots: slots of the runner.
        program: command of the process of a job.
        database_failed: tells whether the database did not answer lately.
    """

    settings: ServiceSettings
    slots: Slots
    program: Sequence[str]
    database_failed: Callable[[], bool]


class RunningJob:
    """A job that runs.

    Args:
        job: identifier of the job.
        request: the document that was submitted.
        writer: writes the job's events.
        surroundings: what the runner's jobs have in common.
    """

    def __init__(
        self, job: str, request: JsonObject, writer: EventWriter, surroundings: Surroundings
    ) -> None:
        self.job = job
        self._request, self._writer, self._around = request, writer, surroundings
        self._changed = threading.Condition()
        self._done: set[str] = set()
        self._child: JobChild | None = None
        self._slot: Slot | None = None
        self._interrupted = self._stopped = self._progressed = False
        self._grace = GRACE
        self._deaths = self._most_trials = 0

    def wait_for(self, stage: str) -> JsonObject:
        """Wait until a stage is finished or skipped, and return its record.

        The record of the last stage has the report of the command, too.

        Raises:
            JobFailedError: the job has failed.
            InterruptedJob: see there.
        """
        while True:
            # 1. Wait for the stage, for the end of the process, or for an interruption.
            child = self._child or self._start()
            self._wait_until_over(stage, child)
            if self._interrupted:
                raise InterruptedJob
            # 2. The stage is finished.
            if stage in self._done and (stage != _LAST or child.report is not None):
                record: JsonObject = dict(vars(self._writer.stages[stage]))
                if stage == _LAST:
                    self._finish()
                    record["report"] = self._clean(child.report)
                return record
            # 3. The process has ended before. Fail, or start it again.
            self._judge(child)

    def interrupt(self, grace: float = GRACE) -> None:
        """Let `wait_for` end the process and raise `InterruptedJob`.

        Args:
            grace: seconds in which the process may end by itself.
        """
        with self._changed:
            self._interrupted, self._grace = True, min(grace, self._grace)
            self._changed.notify_all()

    def stop(self) -> None:
        """End the search early. Repeating it changes nothing."""
        with self._changed:
            child, told = self._child, self._stopped
            self._stopped = True
        if child is not None and not told:
            child.say("stop")

    def close(self) -> None:
        """End the process if there is one, write the last events, and free the slot."""
        self._end_child()
        # The database may be away, and a runner must be able to end.
        self._writer.close(5.0 if self._interrupted else None)

    def _wait_until_over(self, stage: str, child: JobChild) -> None:
        """Wait until there is something to do: a stage is finished, or the process has ended.

        The last stage is over once its process has ended too.
        """

        def is_over() -> bool:
            if self._interrupted or child.status is not None:
                return True
            return stage in self._done and stage != _LAST

        with self._changed:
            self._changed.wait_for(is_over)

    def _start(self) -> JobChild:
        """Start the process, once a slot is free.

        Raises:
            JobFailedError: the recipe is refused.
            InterruptedJob: see there.
        """
        order_request = JobRequest(
            recipe=dict(self._request["recipe"]),  # type: ignore[arg-type]
            command=self._request["command"],  # type: ignore[arg-type]
            trials=self._request["trials"],  # type: ignore[arg-type]
            study=self._request["study"],  # type: ignore[arg-type]
            confirm=self._request.get("confirm"),  # type: ignore[arg-type]
        )
        settings = self._around.settings
        # The folders may have changed since the job was submitted, or be those of another host.
        try:
            allowed = check(order_request, settings)
        except InputError as error:
            self._fail(str(error))
        # Wait for a free device.
        slot = None
        while slot is None:
            if self._interrupted:
                raise InterruptedJob
            slot = self._around.slots.acquire(0.5)
        self._slot = slot
        order = JobOrder(
            command=order_request.command,
            recipe=allowed.located.document(),
            study=allowed.study,
            trials=order_request.trials,
            confirm=order_request.confirm,
            out=str(settings.exports.absolute() / self.job),
            device=slot.torch_device,
            scoring=settings.scoring,
        )
        child = JobChild(
            self._around.program, order, self._environment(slot), self._take, self._wake
        )
        # A request to stop may be older than the process.
        with self._changed:
            self._child, stopped = child, self._stopped
        if stopped:
            child.say("stop")
        return child

    def _environment(self, slot: Slot) -> Mapping[str, str]:
        settings = self._around.settings
        environment = {**os.environ, **slot.environment()}
        environment[STORAGE_VARIABLE] = settings.storage
        environment[CACHE_VARIABLE] = settings.cache
        environment["TQDM_DISABLE"] = "1"
        environment["TOKENIZERS_PARALLELISM"] = "false"
        # Without permission, no library asks the hub.
        if not settings.allow_hub:
            for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
                environment[name] = "1"
        return environment

    def _take(self, kind: str, data: JsonObject) -> None:
        """Take an event of the process."""
        cleaned = self._clean(data)
        assert isinstance(cleaned, dict)
        self._writer.put(kind, cleaned)
        # Note what counts as progress.
        with self._changed:
            if kind == "search" and int(str(data["done"])) > self._most_trials:
                self._most_trials, self._progressed = int(str(data["done"])), True
            if kind == "stage" and data["state"] in ("finished", "skipped"):
                name = str(data["name"])
                self._progressed = self._progressed or name not in self._done
                self._done.add(name)
                self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _clean(self, value: Json) -> Json:
        """Return a value without the secrets and the folders of this host in its texts."""
        if isinstance(value, str):
            text = printable(masked_text(value))
            for folder in self._folders():
                text = text.replace(folder, "")
            return text
        if isinstance(value, dict):
            return {key: self._clean(part) for key, part in value.items()}
        if isinstance(value, list):
            return [self._clean(part) for part in value]
        return value

    def _folders(self) -> list[str]:
        """Return the folders that a user of the service does not see, the longest first."""
        settings, found = self._around.settings, set[str]()
        for folder in (*settings.models, *settings.data, settings.exports):
            for path in (os.path.realpath(folder), str(folder.absolute())):
                found.add(path + os.sep)
        return sorted(found, key=len, reverse=True)

    def _judge(self, child: JobChild) -> None:
        """Decide what happens after a process has ended without a result.

        Raises:
            JobFailedError: the job has failed.
        """
        self._writer.flush()
        self._end_child()
        away = self._around.database_failed()
        if child.failure is not None and not away:
            self._fail(child.failure)
        # 1. The process died, or the database was away. Count deaths without progress.
        if self._progressed or away:
            self._deaths, self._progressed = 0, False
        self._deaths += 1
        how = _words_for(child.status)
        if child.failure is not None:
            how = f"ended, because the database did not answer ({child.failure})"
        if self._deaths >= MOST_DEATHS:
            self._fail(
                f"the process of the job {how} {self._deaths} times in a row without progress; "
                f"what is finished is kept. If memory ran out, use a smaller model, fewer tokens "
                f"or fewer jobs at once, then submit the job again"
            )
        # 2. Try again.
        attempt = f"attempt {self._deaths + 1} of {MOST_DEATHS}"
        text = f"the process of the job {how}; it is started again ({attempt})"
        self._writer.put("message", {"text": text})
        with self._changed:
            self._changed.wait_for(lambda: self._interrupted, timeout=2.0**self._deaths / 2)

    def _fail(self, reason: str) -> None:
        """Store the reason why the job has failed.

        Raises:
            JobFailedError: always.
        """
        text = str(self._clean(" ".join(reason.split())))
        self._writer.change(error=text)
        self._writer.flush()
        raise JobFailedError(text)

    def _finish(self) -> None:
        """Write the last events before the job counts as finished."""
        self._end_child()
        folder: Path = self._around.settings.exports / self.job
        self._writer.change(exported=folder.is_dir())
        self._writer.flush()

    def _end_child(self) -> None:
        """End the process, and free its slot."""
        with self._changed:
            child, self._child = self._child, None
        if child is not None:
            child.end(self._grace)
        if self._slot is not None:
            self._around.slots.release(self._slot)
            self._slot = None


def _words_for(status: int | None) -> str:
    """Return how a process has ended, for a message."""
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        if name == "SIGKILL":
            return "was ended by SIGKILL, as the system does when memory runs out,"
        return f"was ended by {name}"
    if status is not None and status > 128 and status - 128 in list(signal.Signals):
        return f"was ended by {signal.Signals(status - 128).name}"
    return f"ended with status {status} and without a result"
