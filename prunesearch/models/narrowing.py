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
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.layer_widths import LayerWidths
from prunesearch.models.channel_order import ChannelOrder
from prunesearch.models.structure import blocks_of
from prunesearch.models.width_shape import (
    NarrowableAttention,
    NarrowableMlp,
    attention_of,
    mlp_of,
)


@dataclass
class _State:
    """What is known of a model whose weights are in an order.

    Attributes:
        order: the order.
        biases: biases of narrowed sublayers by block, sublayer and width.
    """

    order: ChannelOrder
    biases: dict[tuple[nn.Module, str, int], torch.Tensor] = field(default_factory=dict)


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
        InputError: the order is of another model.
    """
    before = order_of(model)
    if before is not None:
        if before.digest == order.digest:
            return
        restore(model)
    blocks = blocks_of(model)
    if not len(order.channels) == len(order.groups) == len(blocks):
        raise InputError(
            f"the channel order is of a model with {len(order.channels)} layers, this one has "
            f"{len(blocks)}"
        )
    for index, block in enumerate(blocks):
        _check(model, block, index, order)
    for index, block in enumerate(blocks):
        _permute(model, block, order.channels[index], order.groups[index])
    _states[model] = _State(order)


@torch.no_grad()
def restore(model: PreTrainedModel) -> None:
    """Put the channels and groups of a model back in their own order. Without an order, do nothing.

    The weights are the same to the bit as before `reorder`.
    """
    state = _states.pop(model, None)
    if state is None:
        return
    for index, block in enumerate(blocks_of(model)):
        channels, groups = state.order.channels[index], state.order.groups[index]
        _permute(model, block, torch.argsort(channels), torch.argsort(groups))


def _check(model: PreTrainedModel, block: nn.Module, index: int, order: ChannelOrder) -> None:
    """Refuse an order that does not fit a block.

    Raises:
        InputError: see above.
    """
    mlp, attention = mlp_of(model, block), attention_of(model, block)
    for what, has, found in (
        ("channels", 0 if mlp is None else mlp.channels, order.channels[index]),
        ("KV groups", 0 if attention is None else attention.groups, order.groups[index]),
    ):
        if not torch.equal(found.sort().values, torch.arange(has)):
            raise InputError(
                f"the channel order does not fit layer {index}, which has {has} {what}: it is of "
                "another model"
            )


def _permute(
    model: PreTrainedModel, block: nn.Module, channels: torch.Tensor, groups: torch.Tensor
) -> None:
    """Permute the channels and groups of a block in place."""
    mlp, attention = mlp_of(model, block), attention_of(model, block)
    if mlp is not None:
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
    rows = rows.to(module.weight.device)
    module.weight.copy_(module.weight[rows])
    if module.bias is not None:
        module.bias.copy_(module.bias[rows])


def _permute_columns(module: nn.Linear, columns: torch.Tensor) -> None:
    module.weight.copy_(module.weight[:, columns.to(module.weight.device)])


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

    Args:
        model: model that the block belongs to, whose channels are in an order.
        block: block of the model.
        channels, groups: number of channels and of KV groups that are kept, at least 1. None: all.

    Raises:
        InputError: the channels of the model are in no order, or the block cannot be narrowed.
    """
    with ExitStack() as stack:
        for linear, weight, bias in _narrow_parameters(model, block, channels, groups):
            stack.enter_context(_parameters(linear, weight, bias))
        yield


@contextmanager
def _parameters(
    module: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None
) -> Iterator[None]:
    """Give a linear layer other parameters inside the ``with`` block."""
    before = module.weight, module.bias
    _set(module, weight, bias, trained=False)
    try:
        yield
    finally:
        module.weight, module.bias = before


def _set(module: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None, trained: bool) -> None:
    """Set the parameters of a linear layer."""
    module.weight = nn.Parameter(weight, requires_grad=trained)
    parameter = None
    if bias is not None:
        parameter = nn.Parameter(bias, requires_grad=trained)
    module.register_parameter("bias", parameter)


def _narrow_parameters(
    model: PreTrainedModel, block: nn.Module, channels: int | None, groups: int | None
) -> Iterator[tuple[nn.Linear, torch.Tensor, torch.Tensor | None]]:
    """Yield the linear layers of a block that change, with views of their weights and biases."""
    state = _states.get(model)
    if state is None:
        raise InputError("the channels of the model are in no order: put them in one first")
    if channels is not None:
        mlp = mlp_of(model, block)
        if mlp is None or not 0 < channels <= mlp.channels:
            raise InputError(f"the MLP of a layer cannot be narrowed to {channels} channels")
        for linear in mlp.inputs:
            yield linear, *_rows(linear, channels)
        yield (
            mlp.output,
            mlp.output.weight.detach()[:, :channels],
            _bias(state, model, block, mlp, channels),
        )
    if groups is not None:
        attention = attention_of(model, block)
        if attention is None or not 0 < groups <= attention.groups:
            raise InputError(f"the attention of a layer cannot be narrowed to {groups} KV groups")
        columns = groups * attention.query_rows
        yield attention.query, *_rows(attention.query, columns)
        yield attention.key, *_rows(attention.key, groups * attention.head_dim)
        yield attention.value, *_rows(attention.value, groups * attention.head_dim)
        yield (
            attention.output,
            attention.output.weight.detach()[:, :columns],
            _bias(state, model, block, attention, columns),
        )


def _rows(module: nn.Linear, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return views of the first rows of a weight and of its bias."""
    bias = None
    if module.bias is not None:
        bias = module.bias.detach()[:count]
    return module.weight.detach()[:count], bias


@torch.no_grad()
def _bias(
    state: _State,
    model: PreTrainedModel,
    block: nn.Module,
    part: NarrowableMlp | NarrowableAttention,
    columns: int,
) -> torch.Tensor | None:
    """Return the bias of an output projection that keeps its first columns.

    It stands for the mean of the removed columns, if the order has means. It is computed once for
    each width.
    """
    own = part.output.bias
    means = state.order.channel_means
    kind = "mlp"
    if isinstance(part, NarrowableAttention):
        means, kind = state.order.column_means, "attention"
    if means is None or columns == part.output.in_features:
        return None if own is None else own.detach()
    key = block, kind, columns
    if key not in state.biases:
        index = list(blocks_of(model)).index(block)
        order = state.order.channels[index]
        if isinstance(part, NarrowableAttention):
            order = indices_of_groups(state.order.groups[index], part.query_rows)
        weight = part.output.weight.detach()[:, columns:]
        mean = means[index][order[columns:]].to(weight.device, torch.float32)
        bias = (weight.float() @ mean).to(weight.dtype)
        if own is not None:
            bias = bias + own.detach()
        state.biases[key] = bias
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
        changed = list(_narrow_parameters(model, block, use.channels, use.groups))
        for linear, weight, bias in changed:
            copied = None if bias is None else bias.clone()
            _set(linear, weight.clone(), copied, linear.weight.requires_grad)
            linear.out_features, linear.in_features = weight.shape
    _states.pop(model, None)
    return model
