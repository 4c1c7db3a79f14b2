"""Taking blocks out: for a while, to score a candidate without copying a weight, or for good.

What a shorter list of blocks needs besides itself: the config fields that speak of single blocks (masks are chosen by
position), each block's number renewed, because the cache is addressed by it and its sequence length is read from the
first, and tensors with a part for each block sliced.

A silenced sublayer is one that gives zeros of its input's shape; norms behind it make zeros of them again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn
from transformers import Cache, EncoderDecoderCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.model.anatomy import blocks_of, family_of, parts_of, per_layer_tensors, settings_of, sublayer_of
from prunesearch.model.families import Sublayer
from prunesearch.model.fields import edits

_NUMBERS = ("layer_idx", "layer_id")


@contextmanager
def pruned(model: PreTrainedModel, candidate: LayerSubset) -> Iterator[PreTrainedModel]:
    """Turn `model` into the candidate inside the ``with`` block; the very same blocks are used, none is copied.

    Raises:
        InputError: the candidate is of a model with another number of blocks, or its sublayers cannot be silenced.
    """
    blocks = blocks_of(model)
    whole, config = list(blocks), settings_of(model.config)
    with ExitStack() as stack:
        for index in candidate.kept if not candidate.whole_blocks else ():
            use = (index in candidate.attention, index in candidate.mlp)
            stack.enter_context(silenced(model, whole[index], *use))
        stored = config.to_dict()  # some attributes are views, which cannot be set again
        before = {name: stored.get(name, getattr(config, name)) for name in _edits(model, candidate)}
        tensors = {name: model.get_parameter(name).data for name in _sliced_tensors(model, candidate)}
        try:
            remove(model, LayerSubset(candidate.n_layers, candidate.dropped))
            yield model
        finally:
            _install(model, whole, dict(reversed(before.items())), tensors)  # the number of blocks first


@contextmanager
def silenced(model: PreTrainedModel, block: nn.Module, attention: bool, mlp: bool) -> Iterator[None]:
    """Let a block of `model` compute nothing in these sublayers inside the ``with`` block.

    Raises:
        ModelError: the sublayers of this model type cannot be silenced one by one.
    """
    with ExitStack() as stack:
        for kind, wanted in (("attention", attention), ("mlp", mlp)):
            if wanted:
                sublayer = sublayer_of(model, kind)
                for name in sublayer.modules:
                    for module in parts_of(block, (name,)):
                        stack.enter_context(mock.patch.object(module, "forward", _nothing(module, name, sublayer)))
        yield


def _nothing(module: nn.Module, name: str, sublayer: Sublayer) -> Callable[..., Any]:
    """A forward that gives zeros, in the form in which `module` gives its output, and lets the cache count tokens."""
    length = 0 if type(module).__name__ in sublayer.bare else dict(sublayer.returns).get(name, 0)

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor | tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        given = (*args, *kwargs.values())
        hidden = next(value for value in given if isinstance(value, torch.Tensor))
        for cache in (value for value in given if isinstance(value, Cache | EncoderDecoderCache)):
            _count(cache, module, hidden)
        zeros = torch.zeros_like(hidden)
        return (zeros, *(None,) * (length - 1)) if length else zeros

    return forward


def _count(cache: Cache | EncoderDecoderCache, module: nn.Module, hidden_BLE: torch.Tensor) -> None:
    """Note in the cache that tokens have passed, as its sequence length is that of the first attention's."""
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    number = next((n for part in module.modules() for n in _numbers(part).values()), None)
    if number is None or (number < len(cache.layers) and not isinstance(cache.layers[number], CacheLayerMixin)):
        return  # a recurrent state, which nobody asks for its length
    one_number_a_token = hidden_BLE.new_zeros(hidden_BLE.shape[0], 1, hidden_BLE.shape[1], 1)
    cache.update(one_number_a_token, one_number_a_token, number)


def remove(model: PreTrainedModel, candidate: LayerSubset) -> PreTrainedModel:
    """Take the candidate's blocks out of `model` for good and return it.

    Raises:
        InputError: the candidate is of a model with another number of blocks, or drops sublayers, for which no stock
            architecture has a place.
        ModelError: no config of this type says what would be left.
    """
    check_removable(candidate)
    blocks = blocks_of(model)
    if len(blocks) != candidate.n_layers:
        raise InputError(f"the candidate is of a model with {candidate.n_layers} layers, this one has {len(blocks)}")
    fields, tensors = _edits(model, candidate), _sliced_tensors(model, candidate)
    _install(model, [blocks[i] for i in candidate.kept], fields, tensors)
    return model


def check_removable(candidate: LayerSubset) -> None:
    """Refuse what can be scored but not taken out for good.

    Raises:
        InputError: the candidate drops sublayers.
    """
    if not candidate.whole_blocks:
        raise InputError(
            f"layers {candidate.text} name sublayers (a: attention, m: MLP), for which stock architectures have no "
            "place: say how to write them with --as zeroed, deci or remote-code"
        )


def _edits(model: PreTrainedModel, candidate: LayerSubset) -> dict[str, Any]:
    return edits(settings_of(model.config), family_of(model.config).count, candidate.kept)


def _sliced_tensors(model: PreTrainedModel, candidate: LayerSubset) -> dict[str, torch.Tensor]:
    """The kept blocks' parts of each parameter that has a part for every block."""
    if not candidate.dropped:
        return {}
    return {
        name: slice_parts(model.get_parameter(name).data, axis, candidate.n_layers, candidate.kept)
        for name, axis in per_layer_tensors(model).items()
    }


def slice_parts(tensor: torch.Tensor, axis: int, n_parts: int, kept: Sequence[int]) -> torch.Tensor:
    """Keep some of the `n_parts` equal parts that an axis consists of."""
    chosen = [tensor.tensor_split(n_parts, axis)[i] for i in kept]
    return torch.cat(chosen, axis)


def _install(
    model: PreTrainedModel,
    blocks: Sequence[nn.Module],
    fields: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    parent, _, name = family_of(model.config).blocks.rpartition(".")
    kept = nn.ModuleList(blocks)
    kept.training = model.training
    setattr(model.get_submodule(parent), name, kept)
    config: PretrainedConfig = settings_of(model.config)
    for field, value in fields.items():
        setattr(config, field, value)
    for parameter, tensor in tensors.items():
        model.get_parameter(parameter).data = tensor
    for position, block in enumerate(blocks):
        for module in block.modules():
            for number in _numbers(module):
                setattr(module, number, position)


def _numbers(module: nn.Module) -> dict[str, int]:
    """The attributes in which a module knows the number of its block."""
    return {name: vars(module)[name] for name in _NUMBERS if isinstance(vars(module).get(name), int)}
