"""What a worker computes with, and what runs in a worker process.

The process loads a model, and scores shares until its parent ends it. Workers of Ray are in
`ray_worker`. This module is imported without torch, so that a worker loads it when it needs it.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from prunesearch.errors import PruneSearchError, RunError, one_line
from prunesearch.evaluation import FAILURES
from prunesearch.execution.cancellation import EvaluationCancelled
from prunesearch.execution.malloc import keep_freed_memory
from prunesearch.objectives.base import ChunkResult, Objective, Work
from prunesearch.objectives.digests import content_digest

if TYPE_CHECKING:
    from prunesearch.execution.shared_forward import Forward

Build = Callable[[int], "tuple[Objective, Forward, str]"]
"""Function that returns the objective, forward pass and model fingerprint of worker n.

It is called in the worker's process, so it must be picklable.
"""
_DIGITS = 12  # digits of a digest in a message


class Difference(NamedTuple):
    """The first difference between two contents.

    Attributes:
        what: name of what differs.
        digests: the digests of both, for a message.
    """

    what: str
    digests: str


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

    def unlike(self, other: "Content") -> Difference | None:
        """Return the first difference between this content of a worker and that of its parent.

        None: all is equal.
        """
        words = {
            "model": "weights or config of the model",
            "data": "calibration text or task data",
            "chunks": "versions of the libraries, or how the data is computed",
        }
        for name, what in words.items():
            there, here = getattr(self, name), getattr(other, name)
            if there != here:
                digests = f"digest {there[:_DIGITS]} there, {here[:_DIGITS]} here"
                return Difference(what, digests)
        return None


def serve(line: Connection, build: Build, number: int, stop: Any) -> None:  # noqa: ANN401 (ctypes)
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
            for message in score_share(share, objective, forward):
                line.send(message)


def score_share(
    share: Work, objective: Objective, forward: "Forward"
) -> Iterator[ChunkResult | Exception | None]:
    """Score a share in a worker.

    Yields:
        Each result. Then the error if the share could not be completed, otherwise None.
    """
    try:
        with _numerics():
            yield from objective.score(share, forward)
        yield None
    except EvaluationCancelled:
        yield None
    except PruneSearchError as error:
        yield error if isinstance(error, RunError) else RunError(str(error))
    except FAILURES as error:
        yield error


def _numerics() -> AbstractContextManager[None]:
    """Return the context that a model is run in. A worker without torch has no model."""
    if "torch" not in sys.modules:
        return nullcontext()
    from prunesearch.models.bf16_cpu import wide_products

    return wide_products()


def _end_with_parent() -> None:
    """Exit at once when the parent process ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
