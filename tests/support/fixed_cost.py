"""A scoring stand-in of fixed cost: it sleeps, and returns what a hash of the candidate says.

It is imported without torch, so that its workers start quickly.
"""

import functools
import hashlib
import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from prunesearch.candidate import LayerSubset
from prunesearch.evaluation.worker import Build, Content
from prunesearch.execution.cancellation import EvaluationCancelled
from prunesearch.objectives.base import Chunk, ChunkResult, ChunkWork, Metrics, Objective, Row, Work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prunesearch.execution.shared_forward import Forward

FINGERPRINT = "f" * 64
N_LAYERS, DROPPED = 24, 6


def value(candidate: LayerSubset, chunk: int) -> float:
    """What a candidate scores on a chunk: what a hash of both says."""
    digest = hashlib.sha256(f"{candidate.canonical} {chunk}".encode()).digest()
    return digest[0] / 255 + digest[1] / 65025


class FixedCost:
    """An objective whose candidates take the same time each.

    Args:
        chunks: number of chunks.
        seconds: seconds that one candidate on one chunk takes.
        log: file to which each scoring adds a line with the candidate, the chunk and the process.
    """

    metric, maximize, digest = "kl", False, "fixed cost"
    settings: ClassVar[dict[str, str]] = {}

    def __init__(self, chunks: int, seconds: float, log: Path | None = None) -> None:
        self._seconds, self._log = seconds, log
        self.chunks = [Chunk(i, {"kind": "formula", "part": i}, 16) for i in range(chunks)]

    def score(self, work: Work, forward: "Forward") -> "Iterator[ChunkResult]":
        """Sleep, and return the value of each candidate."""
        for piece in work:
            for candidate in piece.candidates:
                if forward.stopped():
                    raise EvaluationCancelled
                time.sleep(self._seconds)
                if self._log is not None:
                    with self._log.open("a") as file:
                        file.write(f"{candidate.canonical} {piece.chunk.index} {os.getpid()}\n")
                yield ChunkResult(piece.chunk, candidate, [[value(candidate, piece.chunk.index)]])

    def metrics(self, results: Sequence[Sequence[Row]]) -> Metrics:
        """Return the mean of the chunks."""
        return Metrics({"kl": sum(self.losses(results)) / len(results)})

    def losses(self, results: Sequence[Sequence[Row]]) -> Sequence[float]:
        """Return the value on each chunk."""
        return [float(rows[0][0]) for rows in results]


def build(
    chunks: int, seconds: float, log: Path | None, number: int
) -> "tuple[Objective, Forward, str]":
    """Stand in for the loading of a model."""
    forward: Any = SimpleNamespace(stopped=lambda: False)
    return cast(Objective, FixedCost(chunks, seconds, log)), forward, FINGERPRINT


def stand_in(chunks: int, seconds: float, log: Path | None = None) -> tuple[Build, Content]:
    """Return the function that builds the stand-in in a worker, and its content."""
    made = functools.partial(build, chunks, seconds, log)
    objective, _, fingerprint = made(0)
    return made, Content.of(fingerprint, objective)


def subsets(count: int) -> list[LayerSubset]:
    """Return the first candidates."""
    found = itertools.islice(itertools.combinations(range(N_LAYERS), DROPPED), count)
    return [LayerSubset.of(N_LAYERS, dropped) for dropped in found]


def generation(candidates: int, chunks: int) -> Work:
    """Return work that has the first candidates on each chunk."""
    found = FixedCost(chunks, 0).chunks
    return [ChunkWork(chunk, subsets(candidates)) for chunk in found]


def values(work: Work) -> dict[tuple[int, LayerSubset], float]:
    """Return the value of each candidate on each chunk of the work."""
    found = {}
    for piece in work:
        for candidate in piece.candidates:
            found[piece.chunk.index, candidate] = value(candidate, piece.chunk.index)
    return found


def scored(results: Sequence[ChunkResult]) -> dict[tuple[int, LayerSubset], float]:
    """Return the values that workers have returned."""
    found = {}
    for result in results:
        found[result.chunk.index, result.candidate] = float(result.rows[0][0])
    return found
