"""A pool of workers that Ray places on the nodes of a cluster, and starts again when they die.

Each worker has its own model. It gets one stretch of neighbouring candidates at a time, and sends
each result as soon as it is known. When a worker or its node dies, only the candidates of its
stretch that have no result are handed out again.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import ray

from prunesearch import events
from prunesearch.errors import RunError
from prunesearch.evaluation.ray_cluster import described
from prunesearch.evaluation.ray_handle import (
    ATTEMPTS,
    Died,
    Message,
    RayHandle,
    Refused,
    WorkerResources,
)
from prunesearch.evaluation.ray_worker import Place
from prunesearch.evaluation.stretches import Item, StretchQueue
from prunesearch.evaluation.worker import Build, Content
from prunesearch.execution.cancellation import EvaluationCancelled
from prunesearch.objectives.base import ChunkResult, Work
from prunesearch.runtime.closing import Closing

_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 30.0  # time for a worker to end its pass at the next block before it is killed
ROOM_SECONDS = 120.0
"""Time in which some node must have room for a worker. A cluster that grows adds nodes in it."""


class RayPool(Closing):
    """Hands out a generation to workers of Ray.

    This process must be connected to Ray; see `ray_cluster.connected`.

    Args:
        build: see `Build`.
        workers: number of workers. The pool works with fewer while not all have room.
        content: content that this process scores with. A worker with other content is refused.
        resources: what each worker asks for.
        whole: hand out one stretch for each worker; see `StretchQueue`.
        room_seconds: longest time without any worker on a node.

    Attributes:
        workers: number of workers.
        restarts: number of times that a worker died and was started again.
    """

    def __init__(
        self,
        build: Build,
        workers: int,
        content: Content,
        resources: WorkerResources = WorkerResources(),  # noqa: B008 (frozen)
        whole: bool = False,
        room_seconds: float = ROOM_SECONDS,
    ) -> None:
        self.workers = workers
        self.restarts = 0
        self._resources, self._whole, self._room_seconds = resources, whole, room_seconds
        turns = itertools.count(1)
        self._members: list[RayHandle] = []
        for number in range(workers):
            self._members.append(RayHandle(build, number, content, resources, turns))
        self._last_placed = time.monotonic()

    @property
    def places(self) -> list[Place]:
        """Where the workers that have room run."""
        return [member.place for member in self._members if member.place is not None]

    def wait_for_all(self, seconds: float) -> bool:
        """Wait until all workers have their models, and return whether they do.

        Raises:
            RunError: a worker cannot start, or it has other content.
        """
        until = time.monotonic() + seconds
        while not all(member.idle for member in self._members) and time.monotonic() < until:
            for member in self._speaking(self._members):
                message = self._receive(member)
                if isinstance(message, Refused):
                    raise message.reason
        return all(member.idle for member in self._members)

    def score(self, work: Work, cancelled: Callable[[], bool]) -> Iterator[ChunkResult]:
        """Score candidates on chunks in all workers at once, and yield each result when it arrives.

        If a stretch fails, the others are completed first.

        Raises:
            RunError: a worker cannot start, it has other content, or it dies repeatedly; no node
                has room for a worker.
            EvaluationCancelled: the results are no longer needed.
        """
        queue = StretchQueue(work, self.workers, self._whole)
        missing = _items(work)
        failure: Exception | None = None
        self._last_placed = time.monotonic()
        try:
            while queue or self._busy():
                if cancelled():
                    yield from self._drain(missing)
                    raise EvaluationCancelled
                # Hand out stretches, one to each worker that has none.
                self._hand_out(queue)
                self._check_room()
                # Receive messages. What a dead worker did not score is handed out again.
                for member in self._speaking(self._members):
                    message = self._receive(member)
                    if isinstance(message, Refused):
                        yield from self._drain(missing)
                        raise message.reason
                    if isinstance(message, Died):
                        failure = self._requeue(message, queue) or failure
                    elif isinstance(message, Exception):
                        failure = failure or message
                    elif message is not None and _is_missing(message, missing):
                        yield message
        finally:
            for _ in self._drain(missing):
                pass
        if failure is not None:
            raise failure

    def _hand_out(self, queue: StretchQueue) -> None:
        """Give each idle worker a stretch."""
        for member in self._members:
            if member.idle and queue:
                member.assign(queue.take())

    def _requeue(self, died: Died, queue: StretchQueue) -> RunError | None:
        """Put the rest of a dead worker's stretch into the queue.

        Returns:
            The error if workers have died over it too often; otherwise None.
        """
        # A worker without a stretch costs nothing.
        if died.rest is None or not died.rest.work:
            return None
        if died.rest.deaths < ATTEMPTS:
            queue.put(died.rest)
            return None
        return RunError(
            f"workers died {ATTEMPTS} times over the same candidates (out of memory?): give fewer "
            f"`workers` or more `gpus_per_worker`; what was scored is kept"
        )

    def _check_room(self) -> None:
        """Raise an error if no node has had room for any worker for too long.

        Raises:
            RunError: there is no room.
        """
        now = time.monotonic()
        if any(member.placed for member in self._members):
            self._last_placed = now
        elif now - self._last_placed > self._room_seconds:
            raise RunError(
                f"no node of the Ray cluster has had room for a worker of {self._resources} for "
                f"{self._room_seconds:.0f} s: it has {described()}; add nodes, or give less "
                f"`gpus_per_worker` or `threads`; what was scored is kept"
            )
        elif now - self._last_placed > 1:
            events.tell(events.StageProgress(f"waiting for room for {self._resources} on Ray"))

    def _busy(self) -> list[RayHandle]:
        """Return the workers that score."""
        return [member for member in self._members if member.busy]

    def _speaking(self, members: Sequence[RayHandle]) -> list[RayHandle]:
        """Wait a short time, and return the workers that have sent a message or died."""
        asked = {}
        for member in members:
            if member.waits_for is not None:
                asked[member.waits_for] = member
        if not asked:
            return []
        ready, rest = ray.wait(list(asked), timeout=_POLL_SECONDS, fetch_local=False)
        if ready and rest:
            # Others may be ready too.
            more, _ = ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)
            ready += more
        return [asked[reference] for reference in ready]

    def _receive(self, member: RayHandle) -> Message:
        """Receive a worker's message, and count its deaths. See `RayHandle.receive`."""
        message = member.receive()
        self.restarts += isinstance(message, Died)
        return message

    def _drain(self, missing: set[Item]) -> Iterator[ChunkResult]:
        """Stop the workers' passes, and yield the results that were complete by then."""
        # Tell the workers to stop, and receive their last messages.
        until = time.monotonic() + _PATIENCE_SECONDS
        for member in self._busy():
            member.stop()
        while busy := self._busy():
            for member in self._speaking(busy):
                message = self._receive(member)
                if isinstance(message, ChunkResult) and _is_missing(message, missing):
                    yield message
            # A worker that does not stop in time is killed.
            if time.monotonic() > until:
                for member in busy:
                    member.kill()

    def close(self) -> None:
        """End the workers."""
        for member in self._members:
            member.end()


def _items(work: Work) -> set[Item]:
    """Return all items of work."""
    found = set()
    for piece in work:
        for candidate in piece.candidates:
            found.add((piece.chunk.index, candidate))
    return found


def _is_missing(result: ChunkResult, missing: set[Item]) -> bool:
    """Take a result's item out of the missing ones. A second result of an item is dropped."""
    item = (result.chunk.index, result.candidate)
    if item not in missing:
        return False
    missing.remove(item)
    return True
