"""Channel orders and widths for tests."""

import torch
from transformers import PreTrainedModel

from prunesearch.layer_widths import LayerWidths
from prunesearch.models.channel_order import ChannelOrder
from prunesearch.models.structure import blocks_of
from prunesearch.models.width_shape import attention_of, width_shape_of


def order_for(model: PreTrainedModel, biases: bool, seed: int = 1) -> ChannelOrder:
    """A random order of a model in its own order, with random means if `biases`."""
    random = torch.Generator().manual_seed(seed)
    shape = width_shape_of(model)
    means, columns = None, None
    if biases:
        means = tuple(torch.randn(count, generator=random) for count in shape.channels)
        columns = tuple(torch.randn(size, generator=random) for size in _columns(model))
    return ChannelOrder(
        "magnitude",
        tuple(torch.randperm(count, generator=random) for count in shape.channels),
        tuple(torch.randperm(count, generator=random) for count in shape.groups),
        means,
        columns,
    )


def _columns(model: PreTrainedModel) -> list[int]:
    """Number of columns of the attention's output projection of each block."""
    sizes = []
    for block in blocks_of(model):
        attention = attention_of(model, block)
        sizes.append(0 if attention is None else attention.output.in_features)
    return sizes


def random_widths(model: PreTrainedModel, order: ChannelOrder, seed: int = 0) -> LayerWidths:
    """Widths of every block, at least one group, and one channel or the experts of a token."""
    random = torch.Generator().manual_seed(seed)
    shape = width_shape_of(model)
    kept: list[list[int]] = []
    for counts in (shape.channels, shape.groups):
        drawn = []
        for index, count in enumerate(counts):
            least = max(1, shape.experts_used(index)) if counts is shape.channels else 1
            drawn.append(int(torch.randint(least, count + 1, (), generator=random)) if count else 0)
        kept.append(drawn)
    return LayerWidths.within(shape, kept[0], kept[1], order.digest, order.biases)
