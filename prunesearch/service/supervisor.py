"""Starts the processes that belong to a server, and starts them again when they die.

The processes outlive a server that is killed. The next server finds them by a file that names the
process, and starts no second one.
"""

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from prunesearch.cache.files import replaced_file
from prunesearch.errors import ConflictError
from prunesearch.runtime.masking import masked_text, printable
from prunesearch.studies.writer_process import is_dead, process_name

_LOOK_SECONDS = 0.2
_SOON = 10.0
"""A process that dies in this time after its start is started again after a pause."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_STOP_SECONDS = 30.0
"""Time in which a process must end after SIGTERM."""
_RESERVE_SECONDS = 2.0
"""Time in which another server that ends must have given its processes free."""
_MOST_LOG = 10 * 1024 * 1024
logger = logging.getLogger("prunesearch.service")


@dataclass(frozen=True)
class Program:
    """A process that belongs to a server.

    Attributes:
        name: name of the process, in messages and files.
        arguments: arguments of the Python interpreter.
        environment: environment variables that the process gets in addition, such as URLs with
            passwords, which must not be in the arguments.
    """

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of all that the process is started with."""
        text = json.dumps([self.arguments, dict(self.environment)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class Child:
    """One process and its file.

    Args:
        program: what is started.
        folder: folder of the files of processes.
        key: tells the processes of services with the same folder apart.
    """

    def __init__(self, program: Program, folder: Path, key: str) -> None:
        self.program = program
        self._file = folder / f"{program.name}-{key}.json"
        self._lock = FileLock(folder / f"{program.name}-{key}.lock")
        self._reserved = FileLock(folder / f"{program.name}-{key}.server.lock")
        self.log = folder / f"{program.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._identity = ""
        self._status: int | None = None
        self._started, self._next, self._pause = 0.0, 0.0, 0.0

    @property
    def pid(self) -> int:
        """Process id; 0 if it was not started yet."""
        return self._pid

    def reserve(self) -> None:
        """Keep other servers from looking after this process, until `release`.

        Two servers with different options would end each other's processes for ever.

        Raises:
            ConflictError: a living server looks after it.
        """
        self._file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._reserved.acquire(timeout=_RESERVE_SECONDS)
        except Timeout:
            name = self.program.name
            raise ConflictError(
                f"another server has the {name} of this storage: end it first, or give `no_{name}`"
            ) from None

    def release(self) -> None:
        """Let another server look after this process."""
        self._reserved.release()

    def look(self) -> None:
        """Start the process if it is not alive and not paused."""
        if self._alive() or time.monotonic() < self._next:
            return
        with self._lock:
            self._find()
            if self._alive():
                return
            self._note_death()
            if time.monotonic() >= self._next:
                self._start()

    def stop(self) -> None:
        """Ask the process to end."""
        if self._alive():
            with _gone_is_no_error():
                os.kill(self._pid, signal.SIGTERM)

    def wait(self, until: float) -> None:
        """Wait until the process has ended. It is killed at a time of the monotonic clock."""
        while self._alive():
            if time.monotonic() > until:
                logger.warning("%s (pid %d) did not end: killed", self.program.name, self._pid)
                with _gone_is_no_error():
                    os.kill(self._pid, signal.SIGKILL)
                until = time.monotonic() + _STOP_SECONDS
            time.sleep(0.05)

    def _alive(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            self._status, self._process = self._process.returncode, None
        return bool(self._identity) and not is_dead(self._identity)

    def _find(self) -> None:
        """Find the process that another server has started, if it lives.

        One that was started with other options is ended, because the present ones must hold.
        """
        try:
            found = json.loads(self._file.read_text())
            identity, pid, digest = str(found["process"]), int(found["pid"]), found["digest"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        # After a restart of the host or the container the number may be that of any process.
        here = pid > 0 and identity != "" and process_name(pid) == identity
        if not here or identity == self._identity:
            return
        self._identity, self._pid = identity, pid
        if digest != self.program.digest:
            logger.warning("%s (pid %d) has other options: restarting it", self.program.name, pid)
            self.stop()
            self.wait(time.monotonic() + _STOP_SECONDS)

    def _note_death(self) -> None:
        """Report that the process has died, and pause before the next start if it died soon."""
        if not self._started:
            return
        # Its main thread has ended, and the others may need a moment.
        if self._process is not None:
            self._status, self._process = self._process.wait(), None
        lived, self._started = time.monotonic() - self._started, 0.0
        name = self.program.name
        if lived > _SOON:
            self._pause = 0.0
            logger.warning("%s ended%s: starting it again", name, self._reason())
            return
        self._pause = min(_LONGEST_PAUSE, max(_FIRST_PAUSE, self._pause * 2))
        self._next = time.monotonic() + self._pause
        said = f"{name} ended after {lived:.1f} s{self._reason()}"
        logger.error("%s: starting it again in %g s; see %s", said, self._pause, self.log)

    def _start(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > _MOST_LOG:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as log:
            # Of a session of its own, Ctrl-C on the terminal does not reach it.
            self._process = subprocess.Popen(
                [sys.executable, *self.program.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.program.environment},
                start_new_session=True,
            )
        self._status = None
        self._pid, self._started = self._process.pid, time.monotonic()
        self._identity = process_name(self._pid)
        record = {"process": self._identity, "pid": self._pid, "digest": self.program.digest}
        with replaced_file(self._file) as scratch:
            scratch.write_text(json.dumps(record))

    def _reason(self) -> str:
        """Return why the process has ended: the signal, or the last line of its log."""
        if self._status is not None and self._status < 0:
            return f" by {signal.Signals(-self._status).name}"
        if self._status:
            return f" with status {self._status} ({self._last_line()})"
        return ""

    def _last_line(self) -> str:
        """Return the last line of the log, without secrets."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 2000))
                lines = file.read().decode("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        return printable(masked_text(lines[-1]))[:300] if lines else ""


class Supervisor:
    """Keeps the processes of a server alive, in a thread of its own.

    Args:
        programs: the processes.
        folder: folder of their files and logs.
        storage: URL of the database that they serve.
    """

    def __init__(self, programs: Sequence[Program], folder: Path, storage: str) -> None:
        key = hashlib.sha256(storage.encode()).hexdigest()[:8]
        self.children = tuple(Child(program, folder, key) for program in programs)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def reserve(self) -> None:
        """Keep other servers from looking after the same processes, as long as this one lives.

        Raises:
            ConflictError: a living server looks after one of them.
        """
        for child in self.children:
            child.reserve()

    def start(self) -> None:
        """Start the processes that are not alive, and the thread that looks after them."""
        for child in self.children:
            child.look()
        self._thread.start()

    def stop(self) -> None:
        """End all processes, and wait until they have ended. What is finished is kept."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        for child in self.children:
            child.stop()
        until = time.monotonic() + _STOP_SECONDS
        for child in self.children:
            child.wait(until)
            child.release()

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            for child in self.children:
                try:
                    child.look()
                except OSError as error:
                    logger.error("cannot start %s: %s", child.program.name, error.strerror)


@contextmanager
def _gone_is_no_error() -> Iterator[None]:
    """Ignore that a process has ended before a signal reached it."""
    try:
        yield
    except ProcessLookupError:
        return
