"""Views of the first channels and KV groups of a layer, and their use for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from prunesearch.models.width_shape import NarrowableAttention, NarrowableMlp

Part = NarrowableMlp | NarrowableAttention
"""An MLP or an attention that can be narrowed."""


@dataclass(frozen=True)
class NarrowLinear:
    """A linear layer with narrower parameters.

    Attributes:
        linear: the layer.
        weight: view of the rows or columns of its weight that are kept.
        bias: bias that belongs to them; None if there is none.
    """

    linear: nn.Linear
    weight: torch.Tensor
    bias: torch.Tensor | None


def columns_of(part: Part, count: int) -> int:
    """Return the number of columns of the output projection that belong to `count` units."""
    if isinstance(part, NarrowableAttention):
        return count * part.query_rows
    return count


def views_of(part: Part, count: int) -> tuple[list[NarrowLinear], NarrowLinear]:
    """Return views of the projections of a sublayer for its first channels or KV groups.

    Args:
        part: the sublayer.
        count: number of channels or groups that are kept.

    Returns:
        The projections before the output projection, and the output projection with its own bias.
    """
    inputs = []
    if isinstance(part, NarrowableAttention):
        inputs.append(_rows(part.query, count * part.query_rows))
        inputs.append(_rows(part.key, count * part.head_dim))
        inputs.append(_rows(part.value, count * part.head_dim))
    else:
        for linear in part.inputs:
            inputs.append(_rows(linear, count))
    weight = part.output.weight.detach()[:, : columns_of(part, count)]
    return inputs, NarrowLinear(part.output, weight, part.output.bias)


def _rows(linear: nn.Linear, count: int) -> NarrowLinear:
    """Return views of the first rows of a weight and of its bias."""
    bias = None
    if linear.bias is not None:
        bias = linear.bias.detach()[:count]
    return NarrowLinear(linear, linear.weight.detach()[:count], bias)


@contextmanager
def viewed(view: NarrowLinear) -> Iterator[None]:
    """Let a linear layer use the parameters of a view inside the ``with`` block.

    Narrower weights that were replaced, and not written to, are copied into the view at its end.
    """
    linear = view.linear
    before = linear.weight, linear.bias, linear.out_features, linear.in_features
    install(view, trained=False)
    try:
        yield
    finally:
        # Training holds 16-bit weights as float32, and rounds them into new tensors.
        if linear.weight.data_ptr() != view.weight.data_ptr():
            with torch.no_grad():
                view.weight.copy_(linear.weight)
        linear.weight, linear.bias, linear.out_features, linear.in_features = before


def install(view: NarrowLinear, trained: bool) -> None:
    """Give a linear layer the parameters of a view. A `nn.Parameter` is used as it is."""
    linear = view.linear
    linear.weight = _parameter(view.weight, trained)
    bias = None
    if view.bias is not None:
        bias = _parameter(view.bias, trained)
    linear.register_parameter("bias", bias)
    linear.out_features, linear.in_features = view.weight.shape


def _parameter(tensor: torch.Tensor, trained: bool) -> nn.Parameter:
    """Return a parameter with the data of a tensor."""
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor, requires_grad=trained)
