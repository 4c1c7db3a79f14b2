"""The proposals of one generation."""

from collections.abc import Iterator

from prunesearch.samplers.base import Proposal


class GenerationPlan:
    """The proposals of one generation, which are computed in the order of their slots.

    A generation is a function of the trials before it. So it does not matter when a slot is
    computed.

    Args:
        generation: number of the generation.
        proposals: the proposals of all slots.
    """

    def __init__(self, generation: int, proposals: Iterator[Proposal]) -> None:
        self.generation = generation
        self._proposals = proposals
        self._made: list[Proposal] = []

    def at(self, slot: int) -> Proposal:
        """Return the proposal of a slot. Those of the slots before it are computed first."""
        while len(self._made) <= slot:
            self._made.append(next(self._proposals))
        return self._made[slot]
