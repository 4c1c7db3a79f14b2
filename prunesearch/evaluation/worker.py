"""What runs in a worker process: it loads a model, and scores shares until its parent ends it."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Self

from prunesearch.errors import PruneSearchError, RunError, one_line
from prunesearch.evaluation import FAILURES
from prunesearch.execution.malloc import keep_freed_memory
from prunesearch.execution.shared_forward import EvaluationCancelled, Forward
from prunesearch.models.bf16_cpu import wide_products
from prunesearch.objectives.base import Objective, Work
from prunesearch.objectives.identity import content_digest

Build = Callable[[int], tuple[Objective, Forward, str]]
"""Function that returns the objective, forward pass and model fingerprint of worker n.

It is called in the worker's process, so it must be picklable.
"""


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
            line.send(_score_share(share, objective, forward, line))


def _score_share(
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
