"""Several processes that score, each with a model of its own: one per GPU, or per share of the CPU cores."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from types import TracebackType
from typing import Self

from prunesearch.candidate import LayerSubset
from prunesearch.engine.memory import keep_freed_memory
from prunesearch.errors import RunError
from prunesearch.scoring.forward import Forward, Stopped
from prunesearch.scoring.objectives import Chunk, Objective, Scored, Work

Build = Callable[[int], tuple[Objective, Forward]]
"""Makes worker n's objective and forward pass, in its own process; it travels there, so it must be picklable."""

_POLL_SECONDS = 0.2
_ATTEMPTS = 3  # a share whose worker dies so often kills its workers


class WorkerPool:
    """Splits a generation among processes; one that dies is started again and its share is done again.

    Neighbours in the order of their paths share most, so each worker gets a stretch of that order.

    Args:
        build: see `Build`.
        workers: how many.

    Attributes:
        restarts: workers that died and were started again.
    """

    def __init__(self, build: Build, workers: int) -> None:
        self.workers = workers
        self.restarts = 0
        self._build = build
        self._context = multiprocessing.get_context("spawn")
        self._stop = self._context.Event()
        self._executors = [self._start(number) for number in range(workers)]

    def _start(self, number: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, self._context, _initialise, (self._build, number, self._stop))

    def score(self, work: Work, stopped: Callable[[], bool]) -> Iterator[Scored]:
        """Score candidates on chunks, in all workers at once.

        Raises:
            RunError: workers die again and again.
            Stopped: nobody waits any more.
        """
        self._stop.clear()
        shares = [(number, share) for number, share in enumerate(split(work, self.workers)) if share]
        attempts = dict.fromkeys(range(len(shares)), 0)
        running: dict[Future[list[Scored]], int] = {self._submit(*share): i for i, share in enumerate(shares)}
        while running:
            done, _ = wait(running, _POLL_SECONDS, FIRST_COMPLETED)
            if stopped():
                self._stop.set()
                wait(running)
                raise Stopped
            for future in done:
                share = running.pop(future)
                number, asked = shares[share]
                try:
                    yield from future.result()
                except BrokenProcessPool:
                    attempts[share] += 1
                    if attempts[share] == _ATTEMPTS:
                        raise RunError(
                            f"worker {number} died {_ATTEMPTS} times over the same candidates (out of memory?): "
                            "give fewer --workers; what was scored is kept"
                        ) from None
                    self.restarts += 1
                    self._executors[number].shutdown(wait=False)
                    self._executors[number] = self._start(number)
                    running[self._submit(number, asked)] = share

    def _submit(self, number: int, share: Work) -> Future[list[Scored]]:
        return self._executors[number].submit(_score, share)

    def close(self) -> None:
        """End the workers."""
        self._stop.set()
        for executor in self._executors:
            executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def split(work: Work, parts: int) -> list[Work]:
    """Cut each chunk's candidates into stretches of neighbours that keep about as many blocks."""
    shares: list[list[tuple[Chunk, Sequence[LayerSubset]]]] = [[] for _ in range(parts)]
    for chunk, candidates in work:
        ordered = sorted(candidates, key=lambda c: c.path)
        total, done, part = sum(len(c.kept) for c in ordered), 0, 0
        stretches: list[list[LayerSubset]] = [[] for _ in range(parts)]
        for candidate in ordered:
            stretches[part].append(candidate)
            done += len(candidate.kept)
            part = min(parts - 1, done * parts // total)
        for share, stretch in zip(shares, stretches, strict=True):
            if stretch:
                share.append((chunk, stretch))
    return list(shares)


_parts: tuple[Objective, Forward]


def _initialise(build: Build, number: int, stop: Event) -> None:
    """Make a worker's model; it ignores Ctrl-C, which its parent handles, and ends when its parent does."""
    global _parts
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.join,), daemon=True).start()
    keep_freed_memory()
    objective, forward = build(number)
    forward.stopped = stop.is_set
    _parts = objective, forward


def _end_with(join: Callable[[], None]) -> None:
    join()
    os._exit(1)


def _score(share: Work) -> list[Scored]:
    objective, forward = _parts
    try:
        return list(objective.score(share, forward))
    except Stopped:
        return []
