"""Several processes that score, each with a model of its own: one per GPU, or per share of the CPU cores.

A worker is handed its share of a generation and sends back each result as it has it, over a pipe of its own: a shared
queue or lock could be left locked by a worker that is killed.
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
from prunesearch.engine import FAILURES
from prunesearch.engine.memory import keep_freed_memory
from prunesearch.errors import PruneSearchError, RunError, one_line
from prunesearch.model.arithmetic import wide_products
from prunesearch.scoring.forward import Forward, Stopped
from prunesearch.scoring.objectives import Chunk, Objective, Scored, Work, content_digest

Build = Callable[[int], tuple[Objective, Forward, str]]
"""Makes worker n's objective, forward pass and model fingerprint, in its own process; it travels there, so it must be
picklable."""

_POLL_SECONDS = 0.2
_ATTEMPTS = 3  # a candidate whose worker dies so often kills its workers
_PATIENCE_SECONDS = 30.0  # a worker leaves its pass at the next block; one that does not is ended


class Content(NamedTuple):
    """What a process scores with, by content: results of processes that differ in it must not be mixed.

    Attributes:
        model: fingerprint of the dense model.
        data: digest of the objective's data and settings.
        chunks: digest of what the chunks are and how they are computed.
    """

    model: str
    data: str
    chunks: str

    @classmethod
    def of(cls, fingerprint: str, objective: Objective) -> Self:
        """The content of an objective on a model."""
        data = content_digest([objective.digest, dict(objective.settings)])
        return cls(fingerprint, data, content_digest([chunk.identity for chunk in objective.chunks]))

    def unlike(self, other: "Content") -> str | None:
        """What differs first, for people; None where all is the same."""
        words = {
            "model": "weights or config of the model",
            "data": "calibration text or task data",
            "chunks": "versions of the libraries, or how the data is computed",
        }
        return next((what for name, what in words.items() if getattr(self, name) != getattr(other, name)), None)


class WorkerPool:
    """Splits a generation among processes; one that dies is started again and does what is left of its share.

    Neighbours in the order of their paths share most, so each worker gets a stretch of that order.

    Args:
        build: see `Build`.
        workers: how many.
        content: what this process scores with; a worker that reads anything else is refused.

    Attributes:
        restarts: workers that died and were started again.
    """

    def __init__(self, build: Build, workers: int, content: Content) -> None:
        self.workers = workers
        self.restarts = 0
        context = multiprocessing.get_context("spawn")
        self._stop: Any = context.RawValue(ctypes.c_bool, False)
        self._members = [_Member(context, build, number, content, self._stop) for number in range(workers)]

    def score(self, work: Work, stopped: Callable[[], bool]) -> Iterator[Scored]:
        """Score candidates on chunks, in all workers at once; each result is yielded when it arrives.

        Where a share fails, the others are finished first.

        Raises:
            RunError: a worker dies again and again, or cannot start.
            Stopped: nobody waits any more.
        """
        self._stop.value = False
        failure: Exception | None = None
        for member, share in zip(self._members, split(work, self.workers), strict=True):
            member.take(share)
        try:
            while busy := [member for member in self._members if member.busy]:
                if stopped():
                    yield from self._last_words()
                    raise Stopped
                for member in _speaking(busy):
                    try:
                        message = member.hear()
                    except EOFError:
                        message = member.revive()
                        self.restarts += message is None
                    if isinstance(message, Exception):
                        failure = failure or message
                    elif message is not None:
                        yield message
        finally:
            for _ in self._last_words():
                pass
        if failure is not None:
            raise failure

    def _last_words(self) -> Iterator[Scored]:
        """Have the workers leave their passes; yields what they had finished by then."""
        self._stop.value = True
        until = time.monotonic() + _PATIENCE_SECONDS
        for member in self._members:
            member.keep_back()
        while busy := [member for member in self._members if member.busy]:
            for member in _speaking(busy):
                try:
                    message = member.hear()
                except EOFError:
                    member.end()
                    continue
                if isinstance(message, tuple):
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
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Member:
    """A worker as its parent sees it: a process, the line to it, and what it was asked for."""

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
        line, theirs = self._context.Pipe()
        resource_tracker.ensure_running()  # or the first process would start it, and unblock the signal with it
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which the worker inherits
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
        """Whether an answer is awaited."""
        return bool(self._share)

    def take(self, share: Work) -> None:
        """Ask for a share, as soon as the worker has its model."""
        self._share, self._done, self._deaths = share, set(), 0
        if share and self._process is None:
            self._start()
        if share and self._ready:
            self._ask()

    def keep_back(self) -> None:
        """Forget a share that the worker has not been asked for yet."""
        if not self._ready:
            self._share = []

    def hear(self) -> Scored | Exception | None:
        """Take one message: a result, a failure, or neither.

        Raises:
            EOFError: the worker is dead.
        """
        try:
            message: Scored | Exception | Content | None = self.line.recv()
        except OSError as error:  # it died within a message
            raise EOFError from error
        if isinstance(message, Content):
            return self._begin(message)
        if isinstance(message, tuple):
            self._done.add(message[:2])
            self._deaths = 0
        else:
            self._share = []
        return message

    def _begin(self, content: Content) -> RunError | None:
        """Ask a worker that has its model; one that scores with anything else than this process is ended."""
        if (what := content.unlike(self._content)) is not None:
            self.end()
            return RunError(
                f"worker {self._number} found other content on disk than this process did ({what} changed since the "
                "start): nothing of it was used; run the command again"
            )
        self._ready = True
        self._ask()
        return None

    def revive(self) -> RunError | None:
        """Start a dead worker again, for what it has not done yet; returns why not."""
        left = [(c, [a for a in asked if (c.index, a) not in self._done]) for c, asked in self._share]
        deaths, self._share = self._deaths + 1, []
        self.end()
        if deaths == _ATTEMPTS:
            return RunError(
                f"worker {self._number} died {_ATTEMPTS} times over the same candidates (out of memory?): "
                "give fewer --workers; what was scored is kept"
            )
        self.take([(chunk, asked) for chunk, asked in left if asked])
        self._deaths = deaths
        return None

    def _ask(self) -> None:
        try:
            self.line.send(self._share)
        except OSError:  # it is dead, as `hear` will find out
            return

    def end(self) -> None:
        """End the process: it ends by itself when its line is closed, unless it is at work."""
        self._share, self._ready = [], False
        if self._process is None:
            return
        self.line.close()
        for press in (self._process.terminate, self._process.kill):
            self._process.join(2)
            if self._process.is_alive():
                press()
        self._process.join()
        self._process.close()
        self._process = None


def _speaking(members: Sequence[_Member]) -> list[_Member]:
    """Those that have said something, or died, within the time after which one looks elsewhere."""
    ready = wait([member.line for member in members], _POLL_SECONDS)
    return [member for member in members if member.line in ready]


def split(work: Work, parts: int) -> list[Work]:
    """Cut each chunk's candidates into stretches of neighbours that keep about as many blocks.

    The stretches go round from chunk to chunk, so that few candidates on many chunks make work for all.
    """
    shares: list[list[tuple[Chunk, Sequence[LayerSubset]]]] = [[] for _ in range(parts)]
    for turn, (chunk, candidates) in enumerate(work):
        ordered = sorted(candidates, key=lambda c: c.path)
        total, done, part = sum(len(c.kept) for c in ordered), 0, 0
        stretches: list[list[LayerSubset]] = [[] for _ in range(parts)]
        for candidate in ordered:
            stretches[part].append(candidate)
            done += len(candidate.kept)
            part = min(parts - 1, done * parts // total)
        for part, stretch in enumerate(stretches):
            if stretch:
                shares[(part + turn) % parts].append((chunk, stretch))
    return list(shares)


def _serve(line: Connection, build: Build, number: int, stop: Any) -> None:  # noqa: ANN401 (ctypes)
    """A worker's life: make the model, then score whatever comes until the line is closed or the parent dies."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # nobody is at the other end any more
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


def _work_off(share: Work, objective: Objective, forward: Forward, line: Connection) -> Exception | None:
    """Score a share; returns why it could not be finished."""
    try:
        with wide_products():
            for scored in objective.score(share, forward):
                line.send(scored)
    except Stopped:
        return None
    except PruneSearchError as error:
        return RunError(str(error)) if not isinstance(error, RunError) else error
    except FAILURES as error:
        return error
    return None


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
