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
    RunEnd,
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
_MOST_REFUSED = 3  # records in a row; at the end, only starts and ends of runs are sent then


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
        self._loaded = threading.Event()  # the library, or the thread has ended
        self._lock = threading.Lock()
        self._put = self._taken = self.dropped = 0
        self._refused = 0  # records in a row that the tracker did not take
        self._failure = ""  # the last one
        self._warned = False
        # Time of the batch under way, or of the last answer to a part of it.
        self._asked: float | None = None
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
        # No server is asked before the library is loaded.
        answers = interrupted or self._wait(LOADING, self._loaded)
        answers = answers and self._wait(patience, self._ended)
        self._end_process()
        if not answers:
            self._failure = "it does not answer"
        lost = self._put - self._taken + self.dropped
        if lost:
            why = f": {self._failure}" if self._failure else ""
            events.tell_or_log(
                f"{self._place.tracker} did not get {lost} of {self._put + self.dropped} points "
                f"and results at {self._place.shown}{why}"
            )

    def _wait(self, patience: Patience, event: threading.Event) -> bool:
        """Wait for an event. Return False if the tracker has used up the patience.

        What was asked earlier counts as asked now, so that it gets the whole patience.
        """
        began = time.monotonic()
        while not event.is_set():
            now = time.monotonic()
            asked = self._asked
            quiet_since = now if asked is None else max(asked, began)
            left = min(began + patience.whole, quiet_since + patience.quiet) - now
            if left <= 0:
                return False
            event.wait(min(left, 0.5))
        return True

    # What follows runs in the thread.

    def _work(self) -> None:
        """Send batches until the delivery is closed and nothing is left."""
        try:
            self._start()
            self._loaded.set()
            while batch := self._gather():
                self._deliver(batch)
        except (ProcessEndedError, OSError) as error:
            self._failure = str(error)
            self._warn()
            self._drain()
        finally:
            self._loaded.set()
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
        self._write(json.dumps(asdict(order)))
        answer = self._read()
        self._asked = None
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
        """Send a batch, with pauses between attempts.

        While the delivery is closing, nothing is repeated: a record that fails is dropped.

        Raises:
            ProcessEndedError: the process is gone, or a run cannot begin and the delivery is
                closing.
        """
        attempts = 0
        while batch:
            done = self._send(batch)
            batch = batch[done:]
            if done:
                attempts = self._refused = 0
            if not batch:
                break
            self._warn()
            attempts += 1
            start = isinstance(batch[0], RunStart)
            repeat = start or attempts < _ATTEMPTS
            if repeat and not self._closing.wait(_PAUSES[min(attempts, len(_PAUSES)) - 1]):
                continue
            # Nothing of a run is taken before it has begun.
            if start:
                raise ProcessEndedError(self._failure)
            # A record that the tracker does not take must not stop the others.
            batch, attempts = self._without_refused(batch), 0

    def _without_refused(self, batch: list[Record]) -> list[Record]:
        """Drop the first record. Drop more at the end if the tracker has refused several."""
        self._refused += 1
        rest = batch[1:]
        if self._closing.is_set() and self._refused >= _MOST_REFUSED:
            rest = [record for record in rest if isinstance(record, RunStart | RunEnd)]
        return rest

    def _send(self, batch: list[Record]) -> int:
        """Send records. Return the number of those that the tracker has taken.

        Raises:
            ProcessEndedError: the process is gone.
        """
        self._write(written(batch))
        answer = DeliveryAnswer(0)
        while answer.done < len(batch) and not answer.failure:
            done = answer.done
            answer = self._read()
            for record in batch[done : answer.done]:
                self._taken += points_in(record)
        self._asked = None
        self._failure = answer.failure or self._failure
        return answer.done

    def _write(self, line: str) -> None:
        """Write a line to the process. A process that is gone is noticed when it is read."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._asked = time.monotonic()
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _read(self) -> DeliveryAnswer:
        """Read an answer of the process.

        Raises:
            ProcessEndedError: the process is gone.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        text = ""
        with contextlib.suppress(OSError, ValueError):
            text = self._process.stdout.readline()
        if not text:
            raise ProcessEndedError("its process ended")
        self._asked = time.monotonic()
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
