"""A pool of worker processes that score: one per GPU, or one per share of the CPU cores.

Each worker has its own model. It receives its share of a generation and sends each result as soon
as it is known. Every worker has its own pipe, because a killed worker could leave a shared queue or
lock locked.
"""

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from types import TracebackType
from typing import Any, NamedTuple, Self

from prunesearch.candidate import LayerSubset
from prunesearch.errors import PruneSearchError, RunError, one_line
from prunesearch.evaluation import FAILURES
from prunesearch.execution.malloc import keep_freed_memory
from prunesearch.execution.shared_forward import EvaluationCancelled, Forward
from prunesearch.models.bf16_cpu import wide_products
from prunesearch.objectives.base import ChunkResult, ChunkWork, Objective, Work
from prunesearch.objectives.identity import content_digest

Build = Callable[[int], tuple[Objective, Forward, str]]
"""Function that returns the objective, forward pass and model fingerprint of worker n.

It is called in the worker's process, so it must be picklable.
"""

_POLL_SECONDS = 0.2
_ATTEMPTS = 3  # deaths in a row after which a worker's candidates are taken as the cause
_PATIENCE_SECONDS = 30.0  # time for a worker to end its pass at the next block before it is killed


class Content(NamedTuple):
    """Digests of the content that a process scores with.

    Results of processes with different content must not be mixed.

    Attributes:
        model: fingerprint of the dense model.
        data: digest of the objective's data and settings.
        chunks: digest of the identities of the chunks: their data, and how they are computed.
    """

    model: str
    data: str
    chunks: str

    @classmethod
    def of(cls, fingerprint: str, objective: Objective) -> Self:
        """Return the content of an objective on a model."""
        data = content_digest([objective.digest, dict(objective.settings)])
        return cls(
            fingerprint, data, content_digest([chunk.identity for chunk in objective.chunks])
        )

    def unlike(self, other: "Content") -> str | None:
        """Return a description of the first difference; None if all is equal."""
        words = {
            "model": "weights or config of the model",
            "data": "calibration text or task data",
            "chunks": "versions of the libraries, or how the data is computed",
        }
        for name, what in words.items():
            if getattr(self, name) != getattr(other, name):
                return what
        return None


class WorkerPool:
    """Splits a generation among worker processes.

    A worker that dies is started again and completes its share. Neighbours in the order of paths
    share the longest prefixes, so each worker gets a stretch of that order.

    Args:
        build: see `Build`.
        workers: number of workers.
        content: content that this process scores with. A worker with other content is refused.

    Attributes:
        workers: number of workers.
        restarts: number of times that a dead worker was started again.
    """

    def __init__(self, build: Build, workers: int, content: Content) -> None:
        self.workers = workers
        self.restarts = 0
        context = multiprocessing.get_context("spawn")
        self._stop: Any = context.RawValue(ctypes.c_bool, False)
        self._members = [
            _WorkerHandle(context, build, number, content, self._stop) for number in range(workers)
        ]

    def score(self, work: Work, stopped: Callable[[], bool]) -> Iterator[ChunkResult]:
        """Score candidates on chunks in all workers at once, and yield each result when it arrives.

        If a share fails, the other shares are completed first.

        Raises:
            RunError: a worker cannot start, or it dies repeatedly.
            EvaluationCancelled: nobody waits for the results any more.
        """
        # Hand out the shares.
        self._stop.value = False
        failure: Exception | None = None
        for member, share in zip(self._members, split(work, self.workers), strict=True):
            member.take(share)
        # Receive messages until every share is done. A dead worker is started again.
        try:
            while busy := self._busy():
                if stopped():
                    yield from self._drain()
                    raise EvaluationCancelled
                for member in _speaking(busy):
                    try:
                        message = member.receive()
                    except EOFError:
                        message = member.restart()
                        self.restarts += message is None
                    if isinstance(message, Exception):
                        failure = failure or message
                    elif message is not None:
                        yield message
        finally:
            for _ in self._drain():
                pass
        if failure is not None:
            raise failure

    def _busy(self) -> list["_WorkerHandle"]:
        """Return the workers that have an unfinished share."""
        return [member for member in self._members if member.busy]

    def _drain(self) -> Iterator[ChunkResult]:
        """Stop the workers' passes, and yield the results that were complete by then."""
        # Tell the workers to stop, and take back the shares that no worker has received.
        self._stop.value = True
        until = time.monotonic() + _PATIENCE_SECONDS
        for member in self._members:
            member.keep_back()
        # Receive the last messages. A worker that does not stop in time is ended.
        while busy := self._busy():
            for member in _speaking(busy):
                try:
                    message = member.receive()
                except EOFError:
                    member.end()
                    continue
                if isinstance(message, ChunkResult):
                    yield message
            if time.monotonic() > until:
                for member in busy:
                    member.end()

    def close(self) -> None:
        """End the workers."""
        self._stop.value = True
        for member in self._members:
            member.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _WorkerHandle:
    """Handle of a worker process in its parent: the process, the pipe to it, and its share."""

    def __init__(
        self,
        context: SpawnContext,
        build: Build,
        number: int,
        content: Content,
        stop: Any,  # noqa: ANN401 (ctypes)
    ) -> None:
        self._context, self._build, self._number, self._stop = context, build, number, stop
        self._content = content
        self._share: Work = []
        self._done: set[tuple[int, LayerSubset]] = set()
        self._deaths = 0
        self._process: SpawnProcess | None = None
        self._start()

    def _start(self) -> None:
        """Start the process with SIGINT blocked, so that only the parent handles Ctrl-C."""
        line, theirs = self._context.Pipe()
        # The first process would otherwise start the resource tracker, which unblocks the signal.
        resource_tracker.ensure_running()
        # The worker inherits the signal mask.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process = self._context.Process(
                target=_serve, args=(theirs, self._build, self._number, self._stop), daemon=True
            )
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.line, self._process = line, process
        self._ready = False

    @property
    def busy(self) -> bool:
        """True if the worker has an unfinished share."""
        return bool(self._share)

    def take(self, share: Work) -> None:
        """Give the worker a share. It is sent as soon as the worker has its model."""
        self._share, self._done, self._deaths = share, set(), 0
        if share and self._process is None:
            self._start()
        if share and self._ready:
            self._ask()

    def keep_back(self) -> None:
        """Take back a share that was not sent yet."""
        if not self._ready:
            self._share = []

    def receive(self) -> ChunkResult | Exception | None:
        """Receive one message.

        Returns:
            A result or an exception. None: the worker is ready, or its share is done.

        Raises:
            EOFError: the worker is dead.
        """
        try:
            message: ChunkResult | Exception | Content | None = self.line.recv()
        except OSError as error:  # the worker died while it sent the message
            raise EOFError from error
        if isinstance(message, Content):
            return self._begin(message)
        if isinstance(message, ChunkResult):
            self._done.add((message.chunk.index, message.candidate))
            self._deaths = 0
        else:
            self._share = []
        return message

    def _begin(self, content: Content) -> RunError | None:
        """Send the share to a worker that has its model. A worker with other content is ended."""
        what = content.unlike(self._content)
        if what is not None:
            self.end()
            return RunError(
                f"worker {self._number} found other content on disk than this process did ({what} "
                f"changed since the "
                "start): nothing of it was used; run the command again"
            )
        self._ready = True
        self._ask()
        return None

    def restart(self) -> RunError | None:
        """Start a dead worker again for the rest of its share.

        Returns:
            The error if the worker has died too often; otherwise None.
        """
        # Find the part of the share that is not done.
        left: list[ChunkWork] = []
        for piece in self._share:
            missing: list[LayerSubset] = []
            for candidate in piece.candidates:
                if (piece.chunk.index, candidate) not in self._done:
                    missing.append(candidate)
            if missing:
                left.append(ChunkWork(piece.chunk, missing))
        # Release the dead process, and give up after several deaths in a row.
        deaths, self._share = self._deaths + 1, []
        self.end()
        if deaths == _ATTEMPTS:
            return RunError(
                f"worker {self._number} died {_ATTEMPTS} times over the same candidates (out of "
                f"memory?): "
                "give fewer `workers`; what was scored is kept"
            )
        # `take` resets the number of deaths.
        self.take(left)
        self._deaths = deaths
        return None

    def _ask(self) -> None:
        """Send the share."""
        try:
            self.line.send(self._share)
        except OSError:  # the worker is dead, and `receive` will raise
            return

    def end(self) -> None:
        """End the process and release it."""
        self._share, self._ready = [], False
        if self._process is None:
            return
        # An idle worker exits when its pipe is closed. A busy one is terminated, and then killed.
        self.line.close()
        for press in (self._process.terminate, self._process.kill):
            self._process.join(2)
            if self._process.is_alive():
                press()
        self._process.join()
        self._process.close()
        self._process = None


def _speaking(members: Sequence[_WorkerHandle]) -> list[_WorkerHandle]:
    """Wait a short time, and return the workers that have sent a message or died."""
    ready = wait([member.line for member in members], _POLL_SECONDS)
    return [member for member in members if member.line in ready]


def split(work: Work, parts: int) -> list[Work]:
    """Split work into shares of about equal size.

    Each chunk's candidates are cut into stretches of neighbours, which keep about the same number
    of blocks. The first stretch of each chunk goes to another share, so that a few candidates on
    many chunks make work for all.
    """
    shares: list[list[ChunkWork]] = [[] for _ in range(parts)]
    for turn, piece in enumerate(work):
        # Cut the candidates, in the order of their paths, by the number of blocks that they keep.
        ordered = sorted(piece.candidates, key=lambda c: c.path)
        total, done, part = sum(len(c.kept) for c in ordered), 0, 0
        stretches: list[list[LayerSubset]] = [[] for _ in range(parts)]
        for candidate in ordered:
            stretches[part].append(candidate)
            done += len(candidate.kept)
            part = min(parts - 1, done * parts // total)
        # Hand the stretches to the shares, beginning with another share for each chunk.
        for part, stretch in enumerate(stretches):
            if stretch:
                shares[(part + turn) % parts].append(ChunkWork(piece.chunk, stretch))
    return list(shares)


def _serve(line: Connection, build: Build, number: int, stop: Any) -> None:  # noqa: ANN401 (ctypes)
    """Main function of a worker.

    It builds the model, and then scores shares until the pipe is closed or the parent dies.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    # These errors mean that the parent has closed the pipe.
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        # Build the model. The parent compares the content with its own.
        try:
            objective, forward, fingerprint = build(number)
        except (PruneSearchError, *FAILURES) as error:
            line.send(RunError(f"worker {number} cannot start: {one_line(error)}"))
            return
        forward.stopped = lambda: stop.value
        line.send(Content.of(fingerprint, objective))
        while True:
            share: Work = line.recv()
            line.send(_work_off(share, objective, forward, line))


def _work_off(
    share: Work, objective: Objective, forward: Forward, line: Connection
) -> Exception | None:
    """Score a share and send each result.

    Returns:
        The error if the share could not be completed; otherwise None.
    """
    try:
        with wide_products():
            for result in objective.score(share, forward):
                line.send(result)
    except EvaluationCancelled:
        return None
    except PruneSearchError as error:
        if isinstance(error, RunError):
            return error
        return RunError(str(error))
    except FAILURES as error:
        return error
    return None


def _end_with_parent() -> None:
    """Exit at once when the parent process ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
