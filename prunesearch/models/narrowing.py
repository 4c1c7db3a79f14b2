"""Narrowing of blocks, either for a while or for good.

The channels and KV groups of a model are in an order, most important first (see `reordering`).
Every width is a prefix, so a narrower block uses views of the weights, and scoring a candidate
copies none.

A bias may stand for what was removed: Y. An et al., "Fluctuation-based Adaptive Structured Pruning
for Large Language Models" (FLAP), AAAI 2024, eq. 6: the mean input of the removed columns times the
columns.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.models.experts import NarrowableExperts, fewer_experts, keep_experts
from prunesearch.models.permuting import indices_of_groups
from prunesearch.models.reordering import Reordered, check_order, forget, reordered
from prunesearch.models.structure import blocks_of
from prunesearch.models.width_shape import NarrowableAttention
from prunesearch.models.width_views import NarrowLinear, Part, columns_of, install, viewed, views_of
from prunesearch.widths.layer_widths import LayerWidths


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
    state = reordered(model)
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
    state = reordered(model)
    assert state is not None, "the channels were put in an order"
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
    state = reordered(model)
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
def _bias(state: Reordered, index: int, part: Part, count: int) -> nn.Parameter | None:
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
    forget(model)
    return model
