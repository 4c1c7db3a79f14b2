"""The registry of importance criteria.

A file in this folder that calls `register` adds a criterion. A criterion scores the units of a
sublayer: the channels of an MLP, or the KV groups of an attention. A larger score is more
important. Scores are compared within one sublayer of one model only, except by the allocation
``flap-global``, which scales them first.

The command line reads this registry without torch, so this module and the files beside it import
torch for annotations only.

Shapes: E hidden size, C input columns of the output projection, U units.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunesearch.errors import UnknownNameError
from prunesearch.runtime.registry import Registry

if TYPE_CHECKING:
    import torch

    from prunesearch.importance.moments import InputMoments


@dataclass(frozen=True)
class SublayerInputs:
    """What the units of a sublayer are scored by.

    Attributes:
        weight_EC: weight of the sublayer's output projection.
        moments: moments of the projection's input columns.
        units: number of units. Each has the same number of neighbouring columns: one for a channel,
            and those of all query heads for a KV group.
        gradients_U: for each unit the sum of |w dL/dw| over its weights in all projections; None if
            the criterion does not ask for gradients.
    """

    weight_EC: "torch.Tensor"
    moments: "InputMoments"
    units: int
    gradients_U: "torch.Tensor | None" = None

    def per_unit(self, columns_C: "torch.Tensor") -> "torch.Tensor":
        """Return the sum of the columns of each unit, shape (U,)."""
        return columns_C.double().reshape(self.units, -1).sum(1)


@dataclass(frozen=True)
class ExpertInputs:
    """What the experts of a block are scored by.

    Attributes:
        use_U: mean over the tokens of an expert of router weight times norm of its output (REAP).
        norm_U: L2 norm of all weights of an expert.
        gradients_U: sum of |w dL/dw| over the weights of an expert; None if the criterion does not
            ask for gradients.
    """

    use_U: "torch.Tensor"
    norm_U: "torch.Tensor"
    gradients_U: "torch.Tensor | None" = None


def use_of_experts(inputs: ExpertInputs) -> "torch.Tensor":
    """Return the score of each expert by its use. See `importance.router_use`."""
    return inputs.use_U


@dataclass(frozen=True)
class CriterionEntry:
    """Facts about one criterion.

    Attributes:
        name: name on the command line and in recipes.
        label: one line for help texts and tables.
        score: function that returns the score of each unit of a sublayer, shape (U,).
        order: position in lists.
        biases: whether the mean input of a removed channel is added to the bias of the output
            projection.
        gradients: whether it needs a backward pass.
        score_experts: function that returns the score of each expert of a block, shape (U,).
    """

    name: str
    label: str
    score: "Callable[[SublayerInputs], torch.Tensor]"
    order: int = 50
    biases: bool = False
    gradients: bool = False
    score_experts: "Callable[[ExpertInputs], torch.Tensor]" = use_of_experts


REGISTRY: Registry[CriterionEntry] = Registry(
    "prunesearch.importance.criteria",
    lambda name, known: UnknownNameError("criterion", name, known),
)
register = REGISTRY.register
