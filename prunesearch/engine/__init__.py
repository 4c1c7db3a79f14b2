"""Engines turn candidates into evaluations: key, look up, deduplicate, score, store."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.errors import ScoringError

FAILURES = (ScoringError, RuntimeError, MemoryError, ArithmeticError, ValueError, LookupError)
"""What scoring may raise; it fails candidates and nothing else. RuntimeError is torch's (out of memory among others),
the last three come from metrics: exp of a huge loss, or a task's own code."""


class Engine(Protocol):
    """The seam between searching and scoring."""

    workers: int
    """How many candidates it scores at once."""

    def evaluate(
        self, candidates: Sequence[LayerSubset], rival: LayerSubset | None = None
    ) -> AsyncIterator[Evaluation]:
        """Yield one evaluation per distinct candidate, as each is done; a failed one carries its reason.

        Args:
            rival: race against it: a candidate that is worse on part of the data is not scored on the rest.
        """
        ...
