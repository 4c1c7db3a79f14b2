"""The criterion ``flap``: how much the output changes when a column is replaced by its mean.

Y. An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024,
arXiv:2312.11983 (weighted input feature variance):

    score_j = Var(x_j) * sum_i W_ij^2

with x_j the input column j of the output projection and W its weight. The score of a KV group is
the sum over its columns, as in the paper. (FLAP's code squares the metric of an attention first.)

A removed column is replaced by its mean, which is added to the bias of the output projection. The
score is then the expected squared error of the output, if columns are not correlated.
"""

from typing import TYPE_CHECKING

from prunesearch.importance.criteria.registry import CriterionEntry, SublayerInputs, register

if TYPE_CHECKING:
    import torch


def score(inputs: SublayerInputs) -> "torch.Tensor":
    """Return the weighted variance of the columns of each unit."""
    squares_C = inputs.weight_EC.double().square().sum(0)
    return inputs.per_unit(inputs.moments.variance_C * squares_C)


register(
    CriterionEntry(
        "flap",
        "variance of the inputs times squared weights, with biases for the removed means (FLAP)",
        score=score,
        order=10,
        biases=True,
    )
)
