"""The process of a tracker: takes records from a pipe, and hands them to the tracker's library.

    python -m prunesearch.tracking.process

A library may be slow, may hang on a dead server, may print, or may keep a process from ending. In a
process of its own, it does not concern the command. The first line of the input is a
`TrackerOrder`, and each later line a batch of records. The output has a `DeliveryAnswer` for each
of them, and further ones for the parts of a batch that takes long. The end of the input means that
the command is gone: the process then ends, too.
"""

import contextlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import IO

from prunesearch.errors import one_line
from prunesearch.tracking.records import (
    DeliveryAnswer,
    Record,
    RunDocument,
    RunEnd,
    RunPoints,
    RunStart,
    RunSummary,
    TrackerOrder,
    read,
)
from prunesearch.tracking.registry import REGISTRY, TrackedRun, Tracker

_NICE = 19  # the least share of the processor
_ANSWER_EVERY = 0.5  # seconds, while a batch is delivered
_GRACE = 20.0  # seconds after the end of the input in which records are still delivered


class Runs:
    """The runs of a tracker that are open.

    Args:
        tracker: the tracker.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._open: dict[str, TrackedRun] = {}

    def take(self, batch: Sequence[Record]) -> Iterator[DeliveryAnswer]:
        """Hand records to the tracker, until one fails. The last answer is for the whole batch.

        A slow tracker has answers in between, which tell it from one that does not answer.
        """
        due = time.monotonic() + _ANSWER_EVERY
        for done, record in enumerate(batch, 1):
            try:
                self._take(record)
            except Exception as error:  # noqa: BLE001 (a library may raise anything)
                yield DeliveryAnswer(done - 1, f"{type(error).__name__}: {one_line(error)}")
                return
            if done == len(batch) or time.monotonic() >= due:
                yield DeliveryAnswer(done)
                due = time.monotonic() + _ANSWER_EVERY

    def _take(self, record: Record) -> None:
        if isinstance(record, RunStart):
            if record.run not in self._open:
                self._open[record.run] = self._tracker.open_run(record)
            return
        run = self._open.get(record.run)
        # A run that could not be opened has been given up.
        if run is None:
            return
        match record:
            case RunPoints():
                # What an earlier process has delivered is not repeated.
                new = [point for point in record.points if point.step > run.last_step]
                if new:
                    run.log(new)
            case RunSummary():
                run.summarise(record.figures)
            case RunDocument():
                run.add_document(record.name, record.text)
            case RunEnd():
                run.end(record.state)
                del self._open[record.run]


def _let_the_command_go_first() -> None:
    """Run only where the command leaves a processor free.

    Linux has a policy for that, ``SCHED_IDLE``. It counts within a session (``sched_autogroup``),
    so this process is in the session of the command; see sched(7). Elsewhere the process has the
    lowest priority.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):
        os.nice(_NICE)


def main() -> None:
    """Serve one command."""
    _let_the_command_go_first()
    # Libraries may print. Only answers are written to the output.
    output = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    if not os.environ.get("PRUNESEARCH_TRACEBACK"):
        os.dup2(nothing, 2)
    # The input is read ahead, so that its end is noticed while a library waits for a server.
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(sys.stdin, lines), daemon=True).start()
    order = TrackerOrder(**json.loads(lines.get()))
    entry = REGISTRY.get(order.tracker)
    try:
        runs = Runs(entry.open(order.place, order.remote))
        answer = DeliveryAnswer(0)
    except Exception as error:  # noqa: BLE001 (a library may raise anything)
        answer = DeliveryAnswer(0, f"{type(error).__name__}: {one_line(error)}")
    _write(output, answer)
    if answer.failure:
        return
    while line := lines.get():
        for answer in runs.take(read(line)):
            _write(output, answer)
    # Threads of libraries must not keep the process.
    output.flush()
    os._exit(0)


def _read_lines(source: IO[str], lines: "queue.SimpleQueue[str]") -> None:
    """Pass lines on. After the last one, end the process in time."""
    for line in source:
        lines.put(line)
    lines.put("")
    end = threading.Timer(_GRACE, os._exit, (1,))
    end.daemon = True
    end.start()


def _write(output: IO[str], answer: DeliveryAnswer) -> None:
    # Without a reader, the rest of the input is still delivered.
    with contextlib.suppress(BrokenPipeError):
        output.write(json.dumps(asdict(answer)) + "\n")


if __name__ == "__main__":
    main()
