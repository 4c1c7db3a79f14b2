"""Narrowing of blocks, either for a while or for good.

The channels and KV groups of a model are put in order once, most important first. That does not
change what the model computes. Every width is a prefix then, so a narrower block uses views of the
weights, and scoring a candidate copies none.

A bias may stand for what was removed: Y. An et al., "Fluctuation-based Adaptive Structured Pruning
for Large Language Models" (FLAP), AAAI 2024, eq. 6: the mean input of the removed columns times the
columns.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.models.channel_order import ChannelOrder
from prunesearch.models.experts import NarrowableExperts, fewer_experts, keep_experts
from prunesearch.models.narrowing_check import check_narrowing
from prunesearch.models.permuting import indices_of_groups, permute
from prunesearch.models.structure import blocks_of
from prunesearch.models.width_shape import BlockParts, NarrowableAttention, block_parts
from prunesearch.models.width_views import NarrowLinear, Part, columns_of, install, viewed, views_of
from prunesearch.widths.layer_widths import LayerWidths


@dataclass
class _State:
    """What is known of a model whose weights are in an order.

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


_states: "WeakKeyDictionary[PreTrainedModel, _State]" = WeakKeyDictionary()
"""The models whose weights were put in an order."""


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
    _states[model] = _State(order, tuple(parts), numbers)


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


@contextmanager
def narrowed(
    model: PreTrainedModel, block: nn.Module, channels: int | None, groups: int | None
) -> Iterator[None]:
    """Narrow a block inside the ``with`` block. Its projections use views of their weights.

    What writes to the narrower weights in place writes to the weights of the model.

    Args:
        model: model that the block belongs to, whose channels are in an order.
        block: block of the model.
        channels, groups: number of channels and of KV groups that are kept, at least 1. None: all.

    Raises:
        InputError: the channels of the model are in no order, or the block cannot be narrowed.
    """
    with ExitStack() as stack:
        for view in _views(model, block, channels, groups):
            stack.enter_context(viewed(view))
        experts = _experts(model, block)
        if experts is not None and channels is not None:
            stack.enter_context(fewer_experts(experts, channels))
        yield


@dataclass(frozen=True)
class NarrowOutput:
    """The output projection of a sublayer that a candidate narrows.

    Attributes:
        linear: the whole projection.
        columns: number of its columns that are kept.
        bias: bias of the narrowed projection, which may stand for removed columns; None if it has
            none.
    """

    linear: nn.Linear
    columns: int
    bias: nn.Parameter | None

    @property
    def weight(self) -> nn.Parameter:
        """Weight of the whole projection."""
        return self.linear.get_parameter("weight")


def narrow_outputs(
    model: PreTrainedModel, candidate: LayerSubset, index: int
) -> tuple[NarrowOutput | None, NarrowOutput | None]:
    """Return the narrowed output projections of a block: of its attention and of its MLP.

    The weight of a projection, and its bias, are used whenever the block is narrowed to this width.
    Replacing their data changes what the narrowed block computes.

    Args:
        model: model whose channels are in an order.
        candidate: the candidate.
        index: index of the block.

    Returns:
        None for a sublayer that is whole, that the candidate drops, or that has experts.
    """
    # Only blocks that are kept, of a model in an order, have such projections.
    use = candidate.use(index)
    state = _states.get(model)
    if use is None or state is None:
        return None, None
    found: list[NarrowOutput | None] = []
    for part, count in zip(reversed(state.parts[index]), (use.groups, use.channels), strict=True):
        if part is None or count is None or isinstance(part, NarrowableExperts):
            found.append(None)
            continue
        bias = _bias(state, index, part, count)
        found.append(NarrowOutput(part.output, columns_of(part, count), bias))
    return found[0], found[1]


def _experts(model: PreTrainedModel, block: nn.Module) -> NarrowableExperts | None:
    """Return the experts of a block of a model whose channels are in an order; None without."""
    state = _states[model]
    mlp = state.parts[state.numbers[block]][0]
    if isinstance(mlp, NarrowableExperts):
        return mlp
    return None


def _views(
    model: PreTrainedModel, block: nn.Module, channels: int | None, groups: int | None
) -> Iterator[NarrowLinear]:
    """Yield views of the linear layers of a block that change.

    Raises:
        InputError: the channels of the model are in no order, or the block cannot be narrowed.
    """
    # Which parts does the block have?
    state = _states.get(model)
    if state is None:
        raise InputError("the channels of the model are in no order: put them in one first")
    index = state.numbers[block]
    mlp, attention = state.parts[index]
    # Check the numbers. Experts are narrowed elsewhere, by their router.
    wanted: list[tuple[Part, int]] = []
    if channels is not None:
        least = mlp.top_k if isinstance(mlp, NarrowableExperts) else 1
        if mlp is None or not least <= channels <= len(state.order.channels[index]):
            raise InputError(f"the MLP of a layer cannot be narrowed to {channels} channels")
        if not isinstance(mlp, NarrowableExperts):
            wanted.append((mlp, channels))
    if groups is not None:
        if attention is None or not 0 < groups <= len(state.order.groups[index]):
            raise InputError(f"the attention of a layer cannot be narrowed to {groups} KV groups")
        wanted.append((attention, groups))
    # The output projection gets the bias that stands for what was removed.
    for part, count in wanted:
        inputs, output = views_of(part, count)
        yield from inputs
        yield replace(output, bias=_bias(state, index, part, count))


@torch.inference_mode(False)  # the bias outlives the pass that asks for it first
@torch.no_grad()
def _bias(state: _State, index: int, part: Part, count: int) -> nn.Parameter | None:
    """Return the bias of an output projection that keeps its first units.

    It stands for the mean of the removed columns, if the order has means. It is computed once for
    each width.
    """
    # The columns are those of channels, or those of the heads of groups.
    means, order, kind = state.order.channel_means, state.order.channels[index], "mlp"
    if isinstance(part, NarrowableAttention):
        means, kind = state.order.column_means, "attention"
        order = indices_of_groups(state.order.groups[index], part.query_rows)
    columns = columns_of(part, count)
    if means is None or columns == len(order):
        return part.output.bias
    # Compute the bias when this width is asked for first.
    key = index, kind, count
    if key not in state.biases:
        weight = part.output.weight[:, columns:]
        mean = means[index][order[columns:]].to(weight.device, torch.float32)
        bias = (weight.float() @ mean).to(weight.dtype)
        if part.output.bias is not None:
            bias = bias + part.output.bias
        state.biases[key] = nn.Parameter(bias, requires_grad=False)
    return state.biases[key]


def narrow(model: PreTrainedModel, candidate: LayerWidths) -> PreTrainedModel:
    """Narrow the blocks of `model` for good, and return the model. Dropped blocks are left alone.

    Each projection of a narrowed block gets new parameters that share no memory with the old ones.
    The model is in no order afterwards.

    Raises:
        InputError: the candidate is of another channel order than the model.
    """
    check_order(model, candidate)
    for index, block in enumerate(blocks_of(model)):
        use = candidate.use(index)
        if use is None or not use.narrows:
            continue
        # Copy the views, so that the whole weights can be freed.
        for view in list(_views(model, block, use.channels, use.groups)):
            bias = None if view.bias is None else view.bias.detach().clone()
            copied = replace(view, weight=view.weight.clone(), bias=bias)
            install(copied, trained=view.linear.weight.requires_grad)
        # Experts are removed from their router and from the stacked weights.
        experts = _experts(model, block)
        if experts is not None and use.channels is not None:
            keep_experts(experts, use.channels)
    _states.pop(model, None)
    return model
