"""An evaluation engine that computes a formula instead of running a model."""

from collections.abc import AsyncIterator, Sequence

from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.objectives.race import Race


class TableEngine:
    """The engine's double: a formula instead of a model;
    stops like a killed process after `patience` evaluations.
    """

    workers = 1

    def __init__(self, patience: int = 10**6, failing: frozenset[int] = frozenset()) -> None:
        self.patience, self.failing = patience, failing
        self.scored: list[str] = []

    async def evaluate(
        self, candidates: Sequence[LayerSubset], race: Race | None = None
    ) -> AsyncIterator[Evaluation]:
        for candidate in candidates:
            if len(self.scored) == self.patience:
                raise KeyboardInterrupt
            self.scored.append(candidate.text)
            if self.failing.intersection(candidate.dropped):
                yield Evaluation(candidate, failure="MemoryError: too large")
            else:
                yield Evaluation(candidate, {"kl": sum(i * i + 1 for i in candidate.dropped) / 10})
