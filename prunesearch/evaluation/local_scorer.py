"""The scorer of this process."""

from collections.abc import Callable, Iterator

from prunesearch.execution.block_code import BlockCode
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.bf16_cpu import wide_products
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.base import ChunkResult, Objective, Work


class LocalScorer:
    """A scorer that uses the model of this process."""

    workers = 1

    def __init__(
        self,
        loaded: LoadedModel,
        objective: Objective,
        state_memory: int | None,
        code: BlockCode | None = None,
    ) -> None:
        self._objective = objective
        self.forward = Forward(loaded.model, loaded.layers, state_memory, code=code)

    def score(self, work: Work, cancelled: Callable[[], bool]) -> Iterator[ChunkResult]:
        """Score candidates on chunks together; see `Scorer.score`."""
        self.forward.stopped = cancelled
        with wide_products():
            yield from self._objective.score(work, self.forward)
