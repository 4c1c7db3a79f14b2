"""Channel orders and widths for tests."""

import copy
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from prunesearch.models import narrowing, reordering
from prunesearch.models.channel_order import ChannelOrder
from prunesearch.models.layers import ResidentLayers
from prunesearch.models.loading import LoadedModel
from prunesearch.models.sizes import sizes_of
from prunesearch.models.structure import blocks_of
from prunesearch.models.weights_state import WeightsState
from prunesearch.models.width_shape import attention_of, width_shape_of
from prunesearch.widths.layer_widths import LayerWidths


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


def narrow_copy(loaded: LoadedModel) -> tuple[LayerWidths, LoadedModel]:
    """A candidate whose order the model's channels are put in, and a copy of the model that is
    narrow for good.
    """
    order = order_for(loaded.model, biases=True)
    text, shape = "0:40/2,1:64/1,2:24/1,3:8/2,5:50/1", width_shape_of(loaded.model)
    candidate = LayerWidths.read(text, shape, order.digest, True)
    model = copy.deepcopy(loaded.model)
    reordering.reorder(model, order)
    narrowing.narrow(model, candidate)
    reordering.reorder(loaded.model, order)
    small = replace(
        loaded,
        model=model,
        sizes=sizes_of(model),
        layers=ResidentLayers(blocks_of(model)),
        weights=WeightsState(),
        fingerprint="1" * 64,
    )
    return candidate, small
