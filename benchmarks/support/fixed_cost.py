"""A scoring stand-in of fixed cost: it sleeps, and returns what a hash of the candidate says."""

import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from prunesearch.candidate import LayerSubset
from prunesearch.evaluation.worker import Build, Content
from prunesearch.execution.shared_forward import EvaluationCancelled, Forward
from prunesearch.objectives.base import Chunk, ChunkResult, ChunkWork, Objective, Work
from tests.support.formula import FINGERPRINT, Formula, subsets, value


class FixedCost(Formula):
    """An objective whose candidates take the same time each.

    Args:
        chunks: number of chunks.
        seconds: seconds that one candidate on one chunk takes.
        log: file to which each scoring adds a line with the candidate, the chunk and the process.
    """

    def __init__(self, chunks: int, seconds: float, log: Path | None = None) -> None:
        super().__init__(chunks)
        self._seconds, self._log = seconds, log

    def score(self, work: Work, forward: object) -> Iterator[ChunkResult]:
        """Sleep, and return the value of each candidate."""
        stopped = cast(Forward, forward).stopped
        for piece in work:
            for candidate in piece.candidates:
                if stopped():
                    raise EvaluationCancelled
                time.sleep(self._seconds)
                if self._log is not None:
                    with self._log.open("a") as file:
                        file.write(f"{candidate.canonical} {piece.chunk.index} {os.getpid()}\n")
                yield ChunkResult(
                    piece.chunk, candidate, value(candidate.canonical, piece.chunk.index)
                )


class NoForward:
    """A forward pass that is never run."""

    def stopped(self) -> bool:
        """Nobody stops it. A worker replaces this method."""
        return False


def build(
    chunks: int, seconds: float, log: Path | None, number: int
) -> tuple[Objective, Forward, str]:
    """Stand in for the loading of a model."""
    objective = FixedCost(chunks, seconds, log)
    return cast(Objective, objective), cast(Forward, NoForward()), FINGERPRINT


def stand_in(chunks: int, seconds: float, log: Path | None = None) -> tuple[Build, Content]:
    """Return the function that builds the stand-in in a worker, and its content."""
    made = functools.partial(build, chunks, seconds, log)
    objective, _, fingerprint = made(0)
    return made, Content.of(fingerprint, objective)


def generation(candidates: int, chunks: int) -> Work:
    """Return work that has the first candidates of the space on each chunk."""
    work = []
    for index in range(chunks):
        chunk = Chunk(index, {"kind": "formula", "part": index}, 16)
        work.append(ChunkWork(chunk, subsets(candidates)))
    return work


def candidates_of(work: Work) -> set[tuple[int, LayerSubset]]:
    """Return the chunk and the candidate of each result that the work asks for."""
    found = set()
    for piece in work:
        for candidate in piece.candidates:
            found.add((piece.chunk.index, candidate))
    return found
