"""The process of a job: runs the stages of one command, and reports what happens.

    python -m prunesearch.service.job_process

The first line of the input is the order: a JSON object with the fields of `JobOrder`. A later line
``stop`` ends the search early. The end of the input means that the runner is gone: then the process
ends as on SIGTERM. The output has one JSON object per line, ``{"kind": ..., "data": ...}``: an
event (see `job.StoredEvent`), the ``report``, or the reason why the job ``failed``. URLs come by
the environment, so that no list of processes shows them.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from prunesearch import events
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import InputError, PruneSearchError, StudyBusyError, one_line
from prunesearch.runtime import early_end, stopping
from prunesearch.runtime.json_values import JsonObject, to_json
from prunesearch.runtime.masking import CACHE_VARIABLE, STORAGE_VARIABLE, masked_text, printable
from prunesearch.runtime.silence import quiet
from prunesearch.service.event_log import serialized

RETRY = 1.0
"""Seconds between two looks at a study that another process searches."""
_GRACE = 60.0  # seconds until a process without a runner ends at once


@dataclass(frozen=True)
class JobOrder:
    """What the process does.

    Attributes:
        command: ``search`` or ``run``.
        recipe: document of the recipe, with paths of this host.
        study: name of the study.
        trials: total number of trials; None: the default of the command line.
        out: folder of the export.
        device: torch device; None: the default.
        scoring: see `settings.ServiceSettings.scoring`.
        confirm: share of the scored documents that confirms; None: the default.
    """

    command: str
    recipe: JsonObject
    study: str
    trials: int | None
    out: str
    device: str | None
    scoring: JsonObject
    # A runner of an earlier version does not give it.
    confirm: float | None = None


class Reporter:
    """Writes lines for the runner. Several threads may write.

    Args:
        output: stream that the runner reads.
    """

    def __init__(self, output: IO[str]) -> None:
        self._output, self._lock = output, threading.Lock()

    def write(self, kind: str, data: object) -> None:
        """Write one line. If the runner is gone, nothing is written."""
        line = serialized({"kind": kind, "data": data})
        with self._lock:
            try:
                self._output.write(line + "\n")
                self._output.flush()
            except (BrokenPipeError, ValueError):
                return

    def handle(self, event: events.Event) -> None:
        """Write an event of the work."""
        match event:
            case events.Message():
                self.write("message", {"text": printable(masked_text(event.text))})
            case events.StageProgress():
                self.write("progress", event)
            case events.SearchProgress():
                self.write("search", _search(event))
            case events.HealProgress():
                self.write("heal", event)
            case events.StageStarted():
                self.write("stage", {"name": event.stage, "state": "running", "seconds": None})
            case events.StageFinished():
                state = "skipped" if event.skipped else "finished"
                seconds = None if event.skipped else round(event.seconds, 3)
                self.write("stage", {"name": event.stage, "state": state, "seconds": seconds})


def _search(progress: events.SearchProgress) -> JsonObject:
    """Return the data of a `search` event: the progress, and the trial that was told."""
    evaluation = progress.evaluation
    return {
        "study": progress.study,
        "done": progress.done,
        "total": progress.total,
        "hits": progress.hits,
        "computed": progress.computed,
        "best_value": progress.best_value,
        "best_dropped": progress.best_dropped,
        "under_way": progress.under_way,
        "front": progress.front,
        "value": progress.value,
        "dropped": None if evaluation is None else evaluation.candidate.text,
        "cached": None if evaluation is None else evaluation.cached,
    }


def main() -> None:
    """Run a job. The exit status is that of the command line."""
    # Libraries may print. Their words go to the log, and only the reporter writes to the output.
    output = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    reporter = Reporter(output)
    # The order comes first. What follows it are commands of the runner.
    order = JobOrder(**json.loads(sys.stdin.readline()))
    with stopping.handled(), early_end.accepted():
        threading.Thread(target=_listen, daemon=True).start()
        status = _status_of(order, reporter)
    output.close()
    # Threads of libraries must not keep the process.
    sys.stderr.flush()
    os._exit(status)


def _listen() -> None:
    """Obey the lines of the runner. When they end, the runner is gone, and so shall the process."""
    for line in sys.stdin:
        if line.strip() == "stop":
            early_end.request()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os.kill(os.getpid(), signal.SIGTERM)


def _status_of(order: JobOrder, reporter: Reporter) -> int:
    """Run the order, report its end, and return the exit status."""
    try:
        with events.subscribed(reporter.handle):
            report = _run(order)
    except stopping.StopRequested as stop:
        return 128 + stop.number
    except PruneSearchError as error:
        status = 2 if isinstance(error, InputError) else 1
        _fail(reporter, str(error), error)
        return status
    except Exception as error:  # noqa: BLE001 (a bug, of ours or of a library, is one line too)
        _fail(reporter, f"{type(error).__name__}: {one_line(error)}", error)
        return 1
    reporter.write("report", report)
    return 0


def _fail(reporter: Reporter, message: str, error: Exception) -> None:
    text = printable(masked_text(" ".join(message.split())))
    reporter.write("failed", {"error": text[:2000], "kind": type(error).__name__})


def _run(order: JobOrder) -> JsonObject:
    """Run the stages of the command, and return its report."""
    quiet()
    from prunesearch.pipeline.run import report_of, request_of
    from prunesearch.pipeline.state import Request

    # Make the request, as the command line does.
    recipe, options = Recipe.of(order.recipe), _options(order)
    if order.command == "search":
        request = Request(options, (recipe,))
    else:
        request = request_of((recipe,), options, Path(order.out))
    told = ""
    while True:
        try:
            report = to_json(report_of(order.command, request))
        except StudyBusyError as error:
            # A process of this job may still be ending, or a colleague searches the same study.
            if str(error) != told:
                told = str(error)
                events.tell(events.Message(f"waiting: {told}"))
            # A signal ends the wait.
            time.sleep(RETRY)
            continue
        assert isinstance(report, dict)
        return report


def _options(order: JobOrder) -> RunOptions:
    """Return how the recipe is run."""
    values: JsonObject = {
        "storage": os.environ[STORAGE_VARIABLE],
        "cache": os.environ[CACHE_VARIABLE],
        "study": order.study,
        **order.scoring,
    }
    # A value that is given differs from the default of the same value.
    for name in ("trials", "confirm", "device"):
        value = getattr(order, name)
        if value is not None:
            values[name] = value
    return RunOptions.of(values)


if __name__ == "__main__":
    stopping.guard_process()
    # The server says that a job was paused or cancelled, and nobody can press Ctrl-C once more.
    stopping.drawn(True)
    main()
