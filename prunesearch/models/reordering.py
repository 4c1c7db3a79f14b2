"""Putting the channels and KV groups of a model in an order, and back.

The order is that of their importance. It does not change what the model computes. Every width is a
prefix then (see `narrowing`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.models.channel_order import ChannelOrder
from prunesearch.models.narrowing_check import check_narrowing
from prunesearch.models.permuting import permute
from prunesearch.models.structure import blocks_of
from prunesearch.models.width_shape import BlockParts, block_parts
from prunesearch.widths.layer_widths import LayerWidths


@dataclass
class Reordered:
    """A model whose weights are in an order.

    Attributes:
        order: the order.
        parts: the sublayers of each block that can be narrowed.
        numbers: number of each block.
        biases: biases of narrowed sublayers by block, sublayer and width.
    """

    order: ChannelOrder
    parts: tuple[BlockParts, ...]
    numbers: dict[nn.Module, int]
    biases: dict[tuple[int, str, int], nn.Parameter] = field(default_factory=dict)


_states: "WeakKeyDictionary[PreTrainedModel, Reordered]" = WeakKeyDictionary()
"""The models whose weights were put in an order."""


def reordered(model: PreTrainedModel) -> Reordered | None:
    """Return what is known of a model whose channels are in an order; None if they are in none."""
    return _states.get(model)


def order_of(model: PreTrainedModel) -> ChannelOrder | None:
    """Return the order in which the channels of a model are; None if it is their own."""
    state = _states.get(model)
    if state is None:
        return None
    return state.order


@torch.no_grad()
def reorder(model: PreTrainedModel, order: ChannelOrder) -> None:
    """Put the channels and groups of a model in an order, in place.

    What the model computes does not change, up to the order of summation. A model that is in
    another order is put back first.

    Raises:
        InputError: the order is of another model, or the weights are not in memory.
        ModelError: see `check_narrowing`.
    """
    before = order_of(model)
    if before is not None:
        if before.digest == order.digest:
            return
        restore(model)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InputError(
            "weights that are not in memory cannot be put in a channel order: leave out `offload` "
            "and `device_map`"
        )
    # Refuse what cannot be put in order.
    blocks = blocks_of(model)
    if not len(order.channels) == len(order.groups) == len(blocks):
        raise InputError(
            f"the channel order is of a model with {len(order.channels)} layers, this one has "
            f"{len(blocks)}"
        )
    # Check everything before the first weight is moved.
    parts: list[BlockParts] = []
    numbers: dict[nn.Module, int] = {}
    for index, block in enumerate(blocks):
        parts.append(block_parts(model, block))
        numbers[block] = index
        _check(parts[index], index, order)
    check_narrowing(model, parts)
    # Move the weights.
    for index, found in enumerate(parts):
        permute(found, order.channels[index], order.groups[index])
    _states[model] = Reordered(order, tuple(parts), numbers)


@torch.no_grad()
def restore(model: PreTrainedModel) -> None:
    """Put the channels and groups of a model back in their own order. Without an order, do nothing.

    The weights are the same to the bit as before `reorder`.
    """
    state = _states.pop(model, None)
    if state is None:
        return
    for index, found in enumerate(state.parts):
        channels, groups = state.order.channels[index], state.order.groups[index]
        permute(found, torch.argsort(channels), torch.argsort(groups))


def forget(model: PreTrainedModel) -> None:
    """Take a model as one in no order, as its weights are now."""
    _states.pop(model, None)


@contextmanager
def in_own_order(model: PreTrainedModel) -> Iterator[None]:
    """Put the channels of a model in their own order inside the ``with`` block only.

    Code that writes or digests weights by their names uses it. Biases of narrowed sublayers that
    were replaced are kept.
    """
    state = _states.get(model)
    restore(model)
    try:
        yield
    finally:
        if state is not None:
            reorder(model, state.order)
            _states[model].biases.update(state.biases)


def _check(parts: BlockParts, index: int, order: ChannelOrder) -> None:
    """Refuse an order that does not fit a block.

    Raises:
        InputError: see above.
    """
    mlp, attention = parts
    for what, has, found in (
        ("channels", 0 if mlp is None else mlp.channels, order.channels[index]),
        ("KV groups", 0 if attention is None else attention.groups, order.groups[index]),
    ):
        if not torch.equal(found.sort().values, torch.arange(has)):
            raise InputError(
                f"the channel order does not fit layer {index}, which has {has} {what}: it is of "
                "another model"
            )


def check_order(model: PreTrainedModel, candidate: LayerSubset) -> None:
    """Refuse widths of another order than the one that the model's weights are in.

    Raises:
        InputError: see above.
    """
    if not isinstance(candidate, LayerWidths):
        return
    order = order_of(model)
    if order is None or order.digest != candidate.order:
        found = "their own order" if order is None else order.digest
        raise InputError(
            f"the candidate is of the channel order {candidate.order}, and the model's channels "
            f"are in {found}: put them in the candidate's order first"
        )
