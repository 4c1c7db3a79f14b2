"""The runner's side of a job's process: starts it, reads what it reports, and ends it."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import IO

from prunesearch.runtime.json_values import JsonObject, as_object, as_text
from prunesearch.service.event_log import serialized
from prunesearch.service.job_process import JobOrder

PROGRAM = (sys.executable, "-m", "prunesearch.service.job_process")
"""Command of the process."""
PATIENCE = 5.0
"""Seconds in which a process must end that was told to do so at once."""
_DRAIN = 5.0  # seconds for the last lines of a process that has ended
_LONGEST = 2000  # letters of a log line that are kept


class JobChild:
    """A process of a job.

    The process has a session of its own, so that Ctrl-C reaches the runner only. It ends when its
    input ends. So it does not outlive the runner, and there is no need for the parent-death signal,
    which Linux sends already when the thread ends that started a process.

    Args:
        program: command of the process.
        order: what it does.
        environment: environment of the process.
        on_line: function that is called with the kind and the data of each event.
        on_end: function that is called once the process has ended and its lines were read.
    """

    def __init__(
        self,
        program: Sequence[str],
        order: JobOrder,
        environment: Mapping[str, str],
        on_line: Callable[[str, JsonObject], None],
        on_end: Callable[[], None],
    ) -> None:
        self.report: JsonObject | None = None
        self.failure: str | None = None
        self.status: int | None = None
        self._on_end, self._ended = on_end, threading.Event()
        self._on_line = on_line
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        # A full pipe would block the process, so both outputs are read all the time.
        self._readers = [
            threading.Thread(target=self._read_events, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._read_log, args=(self._process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        # Wait for the end, and give the order.
        threading.Thread(target=self._watch, daemon=True).start()
        self.say(serialized(asdict(order)))

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def say(self, line: str) -> None:
        """Write a line to the input of the process. A process that has ended is not told."""
        assert self._process.stdin is not None
        with self._lock:
            try:
                self._process.stdin.write(line.encode() + b"\n")
                self._process.stdin.flush()
            except (BrokenPipeError, ValueError):
                return

    def _watch(self) -> None:
        """Wait until the process has ended and what it said was read."""
        status = self._process.wait()
        # A process that it started may hold the other end of the pipes.
        for reader in self._readers:
            reader.join(timeout=_DRAIN)
        self.status = status
        self._ended.set()
        self._on_end()

    def end(self, seconds: float) -> None:
        """End the process, and wait until it is gone. Call this once.

        A second signal ends it at once. What is finished is kept in every case.

        Args:
            seconds: time in which it may end after the step that is under way.
        """
        for number, patience in ((signal.SIGTERM, seconds), (signal.SIGTERM, PATIENCE)):
            self._signal(number)
            if self._ended.wait(patience):
                break
        else:
            self._signal(signal.SIGKILL)
            self._ended.wait()
        self._close()

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, number)

    def _close(self) -> None:
        """Close the input of a process that has ended."""
        assert self._process.stdin is not None
        with self._lock:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                return

    def _read_events(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                try:
                    read = as_object(json.loads(line), "line")
                    kind = as_text(read["kind"], "kind")
                    data = as_object(read["data"], "data")
                except (ValueError, KeyError):
                    # A process that is killed may leave half a line.
                    continue
                if kind == "report":
                    self.report = data
                elif kind == "failed":
                    self.failure = str(data.get("error"))
                else:
                    self._on_line(kind, data)

    def _read_log(self, stream: IO[bytes]) -> None:
        with stream:
            while line := stream.readline(1 << 16):
                text = line.decode("utf-8", "replace").rstrip()
                if text:
                    self._on_line("log", {"line": text[:_LONGEST]})
