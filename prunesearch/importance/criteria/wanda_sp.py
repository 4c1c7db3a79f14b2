"""The criterion ``wanda-sp``: weight times norm of the input, for whole columns.

M. Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (Wanda),
arXiv:2306.11695, eq. 1, in the structured form of FLAP's repository: the mean over the rows i of

    |W_ij| * ||x_j||

with ||x_j|| the root of the mean square of input column j. The score of a KV group is the sum over
its columns. FLAP's repository recomputes the inputs after each pruned layer; here all scores are
those of the dense model, because all widths share one order.
"""

from typing import TYPE_CHECKING

from prunesearch.importance.criteria.registry import CriterionEntry, SublayerInputs, register

if TYPE_CHECKING:
    import torch


def score(inputs: SublayerInputs) -> "torch.Tensor":
    """Return the mean of |weight| times norm of the columns of each unit."""
    means_C = inputs.weight_EC.double().abs().mean(0)
    return inputs.per_unit(means_C * inputs.moments.mean_square_C.sqrt())


register(
    CriterionEntry(
        "wanda-sp", "absolute weights times the norm of the inputs (Wanda)", score=score, order=20
    )
)
