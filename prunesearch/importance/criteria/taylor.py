"""The criterion ``taylor``: the first-order change of the loss when a unit is removed.

X. Ma et al., "LLM-Pruner: On the Structural Pruning of Large Language Models", arXiv:2305.11627,
without its second-order term, summed over the coupled weights of the unit:

    score_u = sum over the weights w of unit u of |w dL/dw|

with L the cross-entropy of a window of text. A channel couples its rows of the gate and up
projections with its column of the down projection. A KV group couples its key, value and query
rows with its columns of the output projection. The scores of all windows are added, as the ranking
`taylor` of whole layers does.
"""

from typing import TYPE_CHECKING

from prunesearch.importance.criteria.registry import (
    CriterionEntry,
    ExpertInputs,
    SublayerInputs,
    register,
)

if TYPE_CHECKING:
    import torch


def score(inputs: SublayerInputs) -> "torch.Tensor":
    """Return the sums of |w dL/dw| of each unit."""
    assert inputs.gradients_U is not None
    return inputs.gradients_U.double()


def score_experts(inputs: ExpertInputs) -> "torch.Tensor":
    """Return the sums of |w dL/dw| of each expert."""
    assert inputs.gradients_U is not None
    return inputs.gradients_U.double()


register(
    CriterionEntry(
        "taylor",
        "weights times their gradients, summed over a channel (LLM-Pruner)",
        score=score,
        order=40,
        gradients=True,
        score_experts=score_experts,
    )
)
