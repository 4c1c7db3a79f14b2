"""A pool of worker processes that score: one per GPU, or one per share of the CPU cores.

Each worker has its own model. It receives its share of a generation and sends each result as soon
as it is known. Every worker has its own pipe, because a killed worker could leave a shared queue or
lock locked.
"""

import ctypes
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

from prunesearch.evaluation.stretches import split
from prunesearch.evaluation.worker import Build, Content
from prunesearch.evaluation.worker_handle import WorkerHandle
from prunesearch.execution.cancellation import EvaluationCancelled
from prunesearch.objectives.base import ChunkResult, Work
from prunesearch.runtime.closing import Closing

_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 30.0  # time for a worker to end its pass at the next block before it is killed


class WorkerPool(Closing):
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
            WorkerHandle(context, build, number, content, self._stop) for number in range(workers)
        ]

    def score(self, work: Work, cancelled: Callable[[], bool]) -> Iterator[ChunkResult]:
        """Score candidates on chunks in all workers at once, and yield each result when it arrives.

        If a share fails, the other shares are completed first.

        Raises:
            RunError: a worker cannot start, or it dies repeatedly.
            EvaluationCancelled: the results are no longer needed.
        """
        # Hand out the shares.
        self._stop.value = False
        failure: Exception | None = None
        for member, share in zip(self._members, split(work, self.workers), strict=True):
            member.assign(share)
        # Receive messages until every share is done. A dead worker is started again.
        try:
            while busy := self._busy():
                if cancelled():
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

    def _busy(self) -> list[WorkerHandle]:
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


def _speaking(members: Sequence[WorkerHandle]) -> list[WorkerHandle]:
    """Wait a short time, and return the workers that have sent a message or died."""
    ready = wait([member.line for member in members], _POLL_SECONDS)
    return [member for member in members if member.line in ready]
