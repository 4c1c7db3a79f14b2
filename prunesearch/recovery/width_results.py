"""Results of compensating narrowed blocks."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class SublayerFit:
    """The fit of one narrowed output projection.

    Shapes: K columns that are kept, E hidden size.

    Attributes:
        ridge: ridge strength, one of `RIDGES`.
        error_before, error_after: squared distance of its output from that of the whole sublayer,
            as a share of the latter's squares, on held-out text.
        weight_EK: the fitted weight, in the dtype of the model.
        bias_E: the fitted bias. None if the narrowed projection has none.
    """

    ridge: float
    error_before: float
    error_after: float
    weight_EK: torch.Tensor = field(repr=False, compare=False)
    bias_E: torch.Tensor | None = field(repr=False, compare=False)

    @property
    def errors(self) -> tuple[float, float]:
        """Error before and after."""
        return self.error_before, self.error_after


@dataclass(frozen=True)
class WidthResult:
    """Result of compensating one narrowed block.

    Attributes:
        block: index of the block.
        attention, mlp: fits that are kept. None if the sublayer is whole or its fit did not help.
        seconds: time that it took.
    """

    block: int
    attention: SublayerFit | None
    mlp: SublayerFit | None
    seconds: float

    @property
    def method(self) -> str:
        """Sublayers that were changed: ``attention``, ``mlp``, ``attention+mlp`` or ``none``."""
        changed = []
        for name in ("attention", "mlp"):
            if getattr(self, name) is not None:
                changed.append(name)
        return "+".join(changed) or "none"
