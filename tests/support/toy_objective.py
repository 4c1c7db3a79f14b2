"""An objective for worker processes that misbehaves on demand.

This module loads neither torch nor pytest, so that a worker of toys starts at once.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from prunesearch.candidate import LayerSubset
from prunesearch.errors import DataError, ScoringError
from prunesearch.evaluation.worker import Content
from prunesearch.execution.cancellation import EvaluationCancelled
from prunesearch.objectives.base import Chunk, ChunkResult, ChunkWork, Objective, Work

if TYPE_CHECKING:
    from prunesearch.execution.shared_forward import Forward

WELL, DIES_ONCE, DIES, NO_MEMORY, NO_DATA, SLOW = range(30, 36)


class Toy:
    """An objective that misbehaves where it is told to: the MLP that a candidate drops says how."""

    digest = "toys"
    settings: ClassVar[dict[str, str]] = {}
    chunks = ()

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def score(self, work: Work, forward: "Forward") -> Iterator[ChunkResult]:
        for piece in work:
            for candidate in piece.candidates:
                self._act(candidate)
                if forward.stopped():
                    raise EvaluationCancelled
                row = [float(sum(candidate.dropped)), float(os.getpid())]
                yield ChunkResult(piece.chunk, candidate, [row])

    def _act(self, candidate: LayerSubset) -> None:
        act = candidate.mlp[0] if candidate.mlp else None
        if act == DIES or (act == DIES_ONCE and not self._seen(candidate)):
            os.kill(os.getpid(), signal.SIGKILL)
        if act == NO_MEMORY:
            raise MemoryError("no room")
        if act == NO_DATA:
            raise DataError("the data went away")
        if act == SLOW:
            (self._folder / "busy").touch()
            time.sleep(0.3)

    def _seen(self, candidate: LayerSubset) -> bool:
        mark = self._folder / candidate.text
        seen = mark.exists()
        mark.touch()
        return seen


class Still:
    """A forward pass that does nothing."""

    stopped: Callable[[], bool]


def build_toy(folder: Path, number: int) -> "tuple[Objective, Forward, str]":
    """Stand in for the loading of a model; a toy needs none of what it leaves out."""
    return cast(Objective, Toy(folder)), cast("Forward", Still()), "a toy"


def build_nothing(number: int) -> "tuple[Objective, Forward, str]":
    """Fail, as where the model is missing."""
    raise ScoringError("the model is missing")


def build_other_once(folder: Path, number: int) -> "tuple[Objective, Forward, str]":
    """Build a toy, and another one from the second time on."""
    mark = folder / "changed"
    name = "another toy" if mark.exists() else "a toy"
    mark.touch()
    toy, still, _ = build_toy(folder, number)
    return toy, still, name


TOYS = Content.of("a toy", cast(Objective, Toy(Path())))


def toys(*acts: int) -> list[LayerSubset]:
    """Candidates that act in this order, which is that of their paths too."""
    return [LayerSubset.of(40, [29 - i], mlp=[act]) for i, act in enumerate(acts)]


def chunks(*lots: list[LayerSubset]) -> Work:
    return [ChunkWork(Chunk(index, {}, 1), lot) for index, lot in enumerate(lots)]
