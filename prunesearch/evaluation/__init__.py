"""Engines turn candidates into evaluations: they look up keys, deduplicate, score and store."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.errors import ScoringError
from prunesearch.objectives.race import Race

FAILURES = (ScoringError, RuntimeError, MemoryError, ArithmeticError, ValueError, LookupError)
"""Exceptions of scoring that fail a candidate and nothing else.

torch raises RuntimeError, for example when it is out of memory. The last three come from metrics:
exp of a huge loss, or a task's own code.
"""


class Engine(Protocol):
    """The interface between search and scoring."""

    workers: int
    """Number of candidates that are scored at once."""

    def evaluate(
        self, candidates: Sequence[LayerSubset], race: Race | None = None
    ) -> AsyncIterator[Evaluation]:
        """Yield one evaluation per distinct candidate, as soon as it is complete.

        The evaluation of a candidate that failed contains the reason.

        Args:
            candidates: candidates to evaluate.
            race: what the candidates race against. A candidate that part of the data shows to be
                worse is not scored on the rest. None: all are scored in full.
        """
        ...
