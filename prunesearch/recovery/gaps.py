"""Gaps of a candidate, and the results of compensating them."""

from dataclasses import dataclass, field
from itertools import pairwise

import torch

from prunesearch.candidate import LayerSubset


@dataclass(frozen=True)
class Gap:
    """Consecutive dropped blocks.

    Attributes:
        before: index of the kept block before them.
        dropped: indices of the dropped blocks.
    """

    before: int
    dropped: tuple[int, ...]

    @property
    def text(self) -> str:
        """The dropped blocks, separated by commas."""
        return ",".join(map(str, self.dropped))


def gaps_of(candidate: LayerSubset) -> list[Gap]:
    """Return the gaps that have a kept block before them, in order."""
    gaps = []
    # Two neighbouring kept blocks have a gap between them if their indices are not consecutive.
    for before, after in pairwise((*candidate.kept, candidate.n_layers)):
        if after > before + 1:
            gaps.append(Gap(before, tuple(range(before + 1, after))))
    return gaps


@dataclass(frozen=True)
class GapResult:
    """Result of compensating one gap.

    Attributes:
        gap: the gap.
        alpha: ratio by which the gap's blocks multiply the norm of the state. None if scaling was
            not kept.
        ridge: ridge strength of the linear map, one of `RIDGES`. None if no linear map was kept.
        loss_before, loss_after: cross-entropy of the held-out tokens, in nats per token.
        seconds: time that the search took.
        change_FE: change D of the linear map. None if no linear map was kept.
    """

    gap: Gap
    alpha: float | None
    ridge: float | None
    loss_before: float
    loss_after: float
    seconds: float
    change_FE: torch.Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def method(self) -> str:
        """Method that was kept: ``scaling``, ``linear``, ``scaling+linear`` or ``none``."""
        used = []
        if self.alpha is not None:
            used.append("scaling")
        if self.ridge is not None:
            used.append("linear")
        return "+".join(used) or "none"
