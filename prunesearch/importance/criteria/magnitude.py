"""The criterion ``magnitude``: the L2 norm of the columns of the output projection.

H. Li et al., "Pruning Filters for Efficient ConvNets", arXiv:1608.08710, for input columns instead
of filters and with the L2 norm. The score of a KV group is the sum over its columns, that of an
expert the norm of all its weights. It reads no text.
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
    """Return the norm of the columns of each unit."""
    return inputs.per_unit(inputs.weight_EC.double().square().sum(0).sqrt())


def score_experts(inputs: ExpertInputs) -> "torch.Tensor":
    """Return the norm of the weights of each expert."""
    return inputs.norm_U


register(
    CriterionEntry(
        "magnitude",
        "norm of the columns of the output projection",
        score=score,
        order=30,
        score_experts=score_experts,
    )
)
