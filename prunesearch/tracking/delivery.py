"""Delivery of records to a tracker: a bounded queue, a thread that sends, and a process that has
the tracker's library.

The command only puts records into the queue, and never waits while it works. If the queue is full,
records are dropped and counted. At the end, the command waits a short time for what is left.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextvars import copy_context
from dataclasses import asdict, dataclass
from typing import IO

from prunesearch import events
from prunesearch.tracking.places import TrackerPlace
from prunesearch.tracking.records import (
    DeliveryAnswer,
    Record,
    RunStart,
    TrackerOrder,
    points_in,
    written,
)

CAPACITY = 5_000
"""Largest number of records that wait for a tracker. A record has up to 500 points."""
GATHER = 0.5
"""Seconds in which records are gathered into one batch."""
_MODULE = "prunesearch.tracking.process"
_MOST_RECORDS = 200  # of a batch
_PAUSES = (1.0, 2.0, 5.0, 15.0, 60.0)  # seconds before another attempt
_ATTEMPTS = 3  # after which a record is dropped, unless it begins a run


@dataclass(frozen=True)
class Patience:
    """How long the end of a command waits for a tracker.

    Attributes:
        quiet: seconds without an answer after which it is given up.
        whole: seconds that are never exceeded.
    """

    quiet: float
    whole: float


LOCAL, REMOTE, INTERRUPTED = Patience(60.0, 120.0), Patience(5.0, 30.0), Patience(2.0, 4.0)
"""Patience with a folder, with a server, and after a signal."""
LOADING = Patience(60.0, 60.0)
"""Patience while the library is loaded, which takes long on a busy machine."""


class ProcessEndedError(Exception):
    """The process of a tracker has ended or was ended."""


class Delivery:
    """Sends records to one tracker.

    Args:
        place: where the tracker writes.
        command: command line of the process; the default serves the tracker.
        capacity: largest number of records that wait.
    """

    def __init__(
        self,
        place: TrackerPlace,
        command: "tuple[str, ...] | None" = None,
        capacity: int = CAPACITY,
    ) -> None:
        self._place = place
        self._command = command or (sys.executable, "-P", "-m", _MODULE)
        self._queue: queue.Queue[Record] = queue.Queue(capacity)
        self._closing, self._ended = threading.Event(), threading.Event()
        self._loaded = threading.Event()  # the process has loaded the library
        self._lock = threading.Lock()
        self._put = self._taken = self.dropped = 0
        self._failure = ""  # the last one; empty while all is well
        self._warned = False
        self._asked: float | None = None  # time of a batch that is not answered yet
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._work,), daemon=True, name="tracking"
        )
        self._thread.start()

    def put(self, record: Record) -> None:
        """Hand over a record. It is dropped if too many wait already."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self.dropped += points_in(record)
        else:
            self._put += points_in(record)

    def close(self, interrupted: bool = False) -> None:
        """Wait for the tracker a short time, end its process, and say what was not delivered.

        Args:
            interrupted: whether the command was stopped by a signal.
        """
        self._closing.set()
        patience = REMOTE if self._place.remote else LOCAL
        if interrupted:
            patience = INTERRUPTED
        elif not self._loaded.is_set():
            # No server was asked yet.
            self._wait(LOADING, self._loaded)
        self._wait(patience, self._ended)
        self._end_process()
        lost = self._put - self._taken + self.dropped
        if lost:
            why = f": {self._failure}" if self._failure else ""
            events.tell_or_log(
                f"{self._place.tracker} did not get {lost} of {self._put + self.dropped} points "
                f"and results at {self._place.shown}{why}"
            )

    def _wait(self, patience: Patience, event: threading.Event) -> None:
        """Wait for an event. A tracker that fails, or has not answered for long, gets no more
        time.
        """
        end = time.monotonic() + patience.whole
        while not self._failure and self._thread.is_alive() and not event.is_set():
            now = time.monotonic()
            asked = self._asked
            left = min(end, patience.quiet + (now if asked is None else asked)) - now
            if left <= 0:
                self._failure = "it does not answer"
                break
            event.wait(min(left, 0.5))

    # What follows runs in the thread.

    def _work(self) -> None:
        """Send batches until the delivery is closed and nothing is left."""
        try:
            self._start()
            self._loaded.set()
            while batch := self._gather():
                self._deliver(batch)
        except (ProcessEndedError, OSError) as error:
            self._failure = self._failure or str(error)
            self._warn()
            self._drain()
        finally:
            self._ended.set()

    def _start(self) -> None:
        """Start the process of the tracker, and wait until it has loaded the library."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=environment,
            process_group=0,  # Ctrl-C is for the command only
        )
        with self._lock:
            self._process = process
        order = TrackerOrder(self._place.tracker, self._place.where, self._place.remote)
        answer = self._ask(json.dumps(asdict(order)))
        if answer.failure:
            raise ProcessEndedError(answer.failure)

    def _gather(self) -> list[Record]:
        """Return the next records. An empty list means that the delivery is closed."""
        # Wait for the first record.
        batch: list[Record] = []
        while not batch:
            try:
                batch.append(self._queue.get(timeout=0.1))
            except queue.Empty:
                if self._closing.is_set():
                    return []
        # Those that come soon after it go with it.
        end = time.monotonic() + GATHER
        while len(batch) < _MOST_RECORDS:
            left = 0.0 if self._closing.is_set() else max(0.0, end - time.monotonic())
            try:
                batch.append(self._queue.get(timeout=min(left, 0.1)) if left else self._next())
            except queue.Empty:
                if left <= 0.1:
                    break
        return batch

    def _next(self) -> Record:
        return self._queue.get_nowait()

    def _deliver(self, batch: list[Record]) -> None:
        """Send a batch, with pauses between attempts."""
        attempts = 0
        while batch:
            answer = self._ask(written(batch))
            # Count what was taken.
            for record in batch[: answer.done]:
                self._taken += points_in(record)
            batch = batch[answer.done :]
            attempts = 0 if answer.done else attempts
            self._failure = answer.failure
            if not answer.failure:
                continue
            self._warn()
            attempts += 1
            # A record that the tracker does not take must not stop the others.
            if attempts >= _ATTEMPTS and not isinstance(batch[0], RunStart):
                batch, attempts = batch[1:], 0
                continue
            if self._closing.wait(_PAUSES[min(attempts, len(_PAUSES)) - 1]):
                raise ProcessEndedError(self._failure)

    def _ask(self, line: str) -> DeliveryAnswer:
        """Write a line to the process, and read its answer.

        Raises:
            ProcessEndedError: the process is gone.
        """
        assert self._process is not None
        pipes = self._process.stdin, self._process.stdout
        assert pipes[0] is not None
        assert pipes[1] is not None
        self._asked = time.monotonic()
        try:
            pipes[0].write(line + "\n")
            pipes[0].flush()
            text = pipes[1].readline()
        except (OSError, ValueError):
            text = ""
        self._asked = None
        if not text:
            raise ProcessEndedError("its process ended")
        return DeliveryAnswer(**json.loads(text))

    def _warn(self) -> None:
        """Say once that the tracker fails."""
        if self._warned or self._closing.is_set():
            return
        self._warned = True
        events.tell_or_log(
            f"{self._place.tracker} fails at {self._place.shown}: {self._failure}; the run goes on "
            f"without it"
        )

    def _drain(self) -> None:
        """Drop what waits and what comes, so that nothing is kept for a process that is gone."""
        while not self._closing.wait(0.5):
            self._empty()
        self._empty()

    def _empty(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()

    def _end_process(self) -> None:
        """End the process and the processes that its library has started."""
        with self._lock:
            process = self._process
        if process is None:
            return
        # What was answered is delivered, so there is nothing to wait for.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._thread.join(1.0)
        _close(process.stdin)
        _close(process.stdout)


def _close(pipe: "IO[str] | None") -> None:
    """Close a pipe whose other end may be gone."""
    if pipe is not None:
        with contextlib.suppress(OSError):
            pipe.close()
