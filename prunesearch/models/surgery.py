"""Removal of blocks, either for a while or for good.

A temporary removal scores a candidate without copying any weight. A shorter list of blocks needs
three more changes:

* The per-block config fields change, because masks are chosen by a block's position.
* Each block gets a new number. The cache is addressed by these numbers, and it takes its sequence
  length from the first block.
* Tensors with a part for each block are sliced.

An ablated sublayer returns zeros of its input's shape. Norms after it turn zeros into zeros.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import Cache, EncoderDecoderCache, PretrainedConfig, PreTrainedModel

from prunesearch.candidate import LayerSubset, Use, named_layers
from prunesearch.compat.transformers import CacheLayerMixin
from prunesearch.errors import InputError
from prunesearch.models.architectures import Sublayer
from prunesearch.models.config_edits import Changes, edits
from prunesearch.models.model_configs import settings_of
from prunesearch.models.narrowing import narrowed
from prunesearch.models.reordering import check_order
from prunesearch.models.structure import (
    architecture_of,
    blocks_of,
    parts_of,
    per_layer_tensors,
    sublayer_of,
)
from prunesearch.runtime.patching import replaced

_NUMBERS = ("layer_idx", "layer_id")
"""Attributes in which modules keep the number of their block."""


@contextmanager
def pruned(model: PreTrainedModel, candidate: LayerSubset) -> Iterator[PreTrainedModel]:
    """Turn `model` into the candidate inside the ``with`` block. No block is copied.

    Raises:
        InputError: the candidate is of a model with another number of blocks.
        ModelError: no config can describe the candidate, or its sublayers cannot be ablated.
    """
    blocks = blocks_of(model)
    whole, config = list(blocks), settings_of(model.config)
    with ExitStack() as stack:
        check_order(model, candidate)
        # Dropped sublayers of kept blocks stay in place, and return zeros.
        if not candidate.whole_blocks:
            for index in candidate.kept:
                stack.enter_context(used(model, whole[index], candidate.use(index)))
        # Note everything that changes. Some attributes are views, which cannot be set again, so the
        # stored value of a field is preferred.
        stored = config.to_dict()
        before = {}
        for name in _edits(model, candidate):
            before[name] = stored.get(name, getattr(config, name))
        tensors = {}
        if candidate.dropped:
            for name in per_layer_tensors(model):
                tensors[name] = model.get_parameter(name).data
        try:
            remove(model, LayerSubset(candidate.n_layers, candidate.dropped))
            yield model
        finally:
            # In reverse order, so that the number of blocks is set first.
            _install(model, whole, dict(reversed(before.items())), tensors)


@contextmanager
def used(model: PreTrainedModel, block: nn.Module, use: Use | None) -> Iterator[None]:
    """Let a block compute as a candidate uses it, inside the ``with`` block.

    Args:
        model: model that the block belongs to.
        block: block of the model.
        use: the candidate's use of the block. None: the candidate drops it, so nothing changes.

    Raises:
        ModelError: the sublayers of this model type cannot be ablated one by one.
        InputError: the block cannot be narrowed.
    """
    with ExitStack() as stack:
        if use is not None:
            stack.enter_context(ablated(model, block, not use.attention, not use.mlp))
            if use.narrows:
                stack.enter_context(narrowed(model, block, use.channels, use.groups))
        yield


@contextmanager
def ablated(model: PreTrainedModel, block: nn.Module, attention: bool, mlp: bool) -> Iterator[None]:
    """Make sublayers of a block return zeros inside the ``with`` block.

    Args:
        model: model that the block belongs to.
        block: block of the model.
        attention: silence the attention.
        mlp: silence the MLP.

    Raises:
        ModelError: the sublayers of this model type cannot be ablated one by one.
    """
    with ExitStack() as stack:
        for kind, wanted in (("attention", attention), ("mlp", mlp)):
            if not wanted:
                continue
            sublayer = sublayer_of(model, kind)
            for name in sublayer.modules:
                for module in parts_of(block, (name,)):
                    silent = _nothing(module, name, sublayer)
                    stack.enter_context(replaced(module, "forward", silent))
        yield


def _nothing(module: nn.Module, name: str, sublayer: Sublayer) -> Callable[..., Any]:
    """Make a forward that returns zeros in the form of the module's output.

    The cache still counts the tokens that pass.

    Args:
        module: module that is replaced.
        name: name of the module in its block.
        sublayer: description of the sublayer that the module belongs to.
    """
    # Length of the tuple that the module returns; 0 if it returns a tensor.
    length = 0
    if type(module).__name__ not in sublayer.bare:
        length = sublayer.returns.get(name, 0)

    def forward(
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> torch.Tensor | tuple[torch.Tensor | None, ...]:
        given = (*args, *kwargs.values())
        hidden = next(value for value in given if isinstance(value, torch.Tensor))
        for value in given:
            if isinstance(value, Cache | EncoderDecoderCache):
                _count(value, module, hidden)
        zeros = torch.zeros_like(hidden)
        if not length:
            return zeros
        return (zeros, *(None,) * (length - 1))

    return forward


def _count(cache: Cache | EncoderDecoderCache, module: nn.Module, hidden_BLE: torch.Tensor) -> None:
    """Record in the cache that tokens have passed.

    The sequence length of a cache is that of its first attention, which may be ablated.
    """
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    number = _block_number(module)
    if number is None:
        return
    # A recurrent state has no length.
    if number < len(cache.layers) and not isinstance(cache.layers[number], CacheLayerMixin):
        return
    # The smallest keys and values that have the right length: one number per token.
    one_number_a_token = hidden_BLE.new_zeros(hidden_BLE.shape[0], 1, hidden_BLE.shape[1], 1)
    cache.update(one_number_a_token, one_number_a_token, number)


def remove(model: PreTrainedModel, candidate: LayerSubset) -> PreTrainedModel:
    """Remove the candidate's blocks from `model` for good, and return the model.

    Raises:
        InputError: the candidate is of a model with another number of blocks, or it drops
            sublayers, which no stock architecture supports.
        ModelError: no config of this type can describe the kept blocks.
    """
    check_removable(candidate)
    blocks = blocks_of(model)
    if len(blocks) != candidate.n_layers:
        raise InputError(
            f"the candidate is of a model with {candidate.n_layers} layers, this one has "
            f"{len(blocks)}"
        )
    fields, tensors = _edits(model, candidate), _sliced_tensors(model, candidate)
    _install(model, [blocks[i] for i in candidate.kept], fields, tensors)
    return model


def check_removable(candidate: LayerSubset) -> None:
    """Refuse a candidate that can be scored but cannot be removed for good.

    Raises:
        InputError: the candidate drops sublayers.
    """
    if not candidate.whole_blocks:
        raise InputError(
            f"{named_layers(candidate.text, 'names', 'name')} sublayers (a: attention, m: MLP), "
            f"for which stock architectures have no place: say how to write them with "
            "`export_format` zeroed, deci or remote-code"
        )


def _edits(model: PreTrainedModel, candidate: LayerSubset) -> Changes:
    """Return the config fields that the candidate changes."""
    return edits(settings_of(model.config), architecture_of(model.config).count, candidate.kept)


def _sliced_tensors(model: PreTrainedModel, candidate: LayerSubset) -> dict[str, torch.Tensor]:
    """Return the new value of each parameter that has a part for every block."""
    if not candidate.dropped:
        return {}
    sliced = {}
    for name, axis in per_layer_tensors(model).items():
        tensor = model.get_parameter(name).data
        sliced[name] = slice_parts(tensor, axis, candidate.n_layers, candidate.kept)
    return sliced


def slice_parts(tensor: torch.Tensor, axis: int, n_parts: int, kept: Sequence[int]) -> torch.Tensor:
    """Keep some of the equal parts that an axis consists of.

    Args:
        tensor: tensor to slice.
        axis: axis that consists of the parts.
        n_parts: number of parts.
        kept: indices of the parts to keep.
    """
    chosen = [tensor.tensor_split(n_parts, axis)[i] for i in kept]
    return torch.cat(chosen, axis)


def _install(
    model: PreTrainedModel,
    blocks: Sequence[nn.Module],
    fields: Changes,
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Give a model new blocks, and change all that depends on them.

    Args:
        model: model to change.
        blocks: its new blocks, in order.
        fields: new values of config fields.
        tensors: new values of parameters that have a part for each block.
    """
    parent, _, name = architecture_of(model.config).blocks.rpartition(".")
    kept = nn.ModuleList(blocks)
    kept.training = model.training
    setattr(model.get_submodule(parent), name, kept)
    config: PretrainedConfig = settings_of(model.config)
    for field, value in fields.items():
        setattr(config, field, value)
    for parameter, tensor in tensors.items():
        model.get_parameter(parameter).data = tensor
    # Each module that knows the number of its block gets the new one.
    for position, block in enumerate(blocks):
        for module in block.modules():
            for number in _numbers(module):
                setattr(module, number, position)


def _block_number(module: nn.Module) -> int | None:
    """Return the number of the block that a module belongs to, if the module or a part of it knows
    the number.
    """
    for part in module.modules():
        for number in _numbers(part).values():
            return number
    return None


def _numbers(module: nn.Module) -> dict[str, int]:
    """Return the attributes in which a module keeps the number of its block."""
    numbers = {}
    for name in _NUMBERS:
        number = vars(module).get(name)
        if isinstance(number, int):
            numbers[name] = number
    return numbers
