"""Permutations of the channels and KV groups of a block, in place."""

import torch
from torch import nn

from prunesearch.models.experts import NarrowableExperts, permute_experts
from prunesearch.models.width_shape import BlockParts


@torch.no_grad()
def permute(parts: BlockParts, channels: torch.Tensor, groups: torch.Tensor) -> None:
    """Permute the channels, or the experts, and the groups of a block in place."""
    mlp, attention = parts
    if isinstance(mlp, NarrowableExperts):
        permute_experts(mlp, channels)
    elif mlp is not None:
        for module in mlp.inputs:
            _permute_rows(module, channels)
        _permute_columns(mlp.output, channels)
    if attention is not None:
        queries = indices_of_groups(groups, attention.query_rows)
        heads = indices_of_groups(groups, attention.head_dim)
        _permute_rows(attention.query, queries)
        _permute_rows(attention.key, heads)
        _permute_rows(attention.value, heads)
        _permute_columns(attention.output, queries)


def indices_of_groups(groups: torch.Tensor, size: int) -> torch.Tensor:
    """Return the indices of the rows of groups that have `size` rows each."""
    return (groups[:, None] * size + torch.arange(size)).flatten()


def _permute_rows(module: nn.Linear, rows: torch.Tensor) -> None:
    """Permute the rows of a weight and the numbers of its bias in place."""
    rows = rows.to(module.weight.device)
    module.weight.copy_(module.weight[rows])
    if module.bias is not None:
        module.bias.copy_(module.bias[rows])


def _permute_columns(module: nn.Linear, columns: torch.Tensor) -> None:
    """Permute the columns of a weight in place."""
    module.weight.copy_(module.weight[:, columns.to(module.weight.device)])
