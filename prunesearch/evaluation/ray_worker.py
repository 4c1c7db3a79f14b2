"""What runs in a worker of Ray (an actor): it loads a model, and scores stretches of candidates.

Ray imports this module on every node. It is imported without torch, and without Ray's own modules.
"""

import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from prunesearch.errors import PruneSearchError, RunError, one_line
from prunesearch.evaluation import FAILURES
from prunesearch.evaluation.worker import Build, Content, score_share
from prunesearch.execution.malloc import keep_freed_memory
from prunesearch.objectives.base import ChunkResult, Objective, Work

if TYPE_CHECKING:
    from prunesearch.execution.shared_forward import Forward

CONTROL = "control"
"""Concurrency group of the methods that answer while the worker scores."""


class Place(NamedTuple):
    """Where a worker runs.

    Attributes:
        host: name of the machine.
        node: Ray's id of the node.
        pid: id of the process.
    """

    host: str
    node: str
    pid: int


class NotLoaded(NamedTuple):
    """Message: the worker has no model, because Ray has started it again since it loaded one."""


def place_here() -> Place:
    """Return where this process runs. It is called in a worker."""
    import ray

    return Place(socket.gethostname(), ray.get_runtime_context().get_node_id(), os.getpid())


class RayWorker:
    """A worker with a model of its own.

    The model is not loaded when Ray creates the worker. A model that cannot be loaded is therefore
    an error with a reason, and not a worker that Ray creates again and again.

    Args:
        build: see `Build`.
        number: number of the worker.
    """

    def __init__(self, build: Build, number: int) -> None:
        self._build, self._number = build, number
        self._stopped = 0
        self._scored: tuple[Objective, Forward] | None = None

    def place(self) -> Place:
        """Return where this worker runs."""
        return place_here()

    def load(self) -> Content | RunError:
        """Load the model and the data, and return what they are; or the reason why it failed."""
        keep_freed_memory()
        try:
            objective, forward, fingerprint = self._build(self._number)
        except (PruneSearchError, *FAILURES) as error:
            return RunError(one_line(error))
        self._scored = objective, forward
        return Content.of(fingerprint, objective)

    def score(self, share: Work, turn: int) -> Iterator[ChunkResult | Exception | NotLoaded | None]:
        """Score a stretch of candidates, and yield each result; see `worker.score_share`.

        Args:
            share: chunks and candidates.
            turn: number of the stretch. Later ones have larger numbers.
        """
        if self._scored is None:
            yield NotLoaded()
            return
        objective, forward = self._scored
        forward.stopped = lambda: self._stopped >= turn
        # Ray sends values into the generator, which `yield from` would pass on.
        for message in score_share(share, objective, forward):  # noqa: UP028
            yield message

    def stop(self, turn: int) -> None:
        """End the passes of all stretches up to this number at their next block."""
        self._stopped = max(self._stopped, turn)
