"""Taking blocks out: for a while, to score a candidate without copying a weight, or for good, to export it.

What a shorter list of blocks needs besides itself: the count in the config, per-layer config lists sliced (masks are
chosen by position), and each block's `layer_idx` renumbered, because the cache is addressed by it and its sequence
length is read from index 0.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.model.anatomy import blocks_of, family_of


class _Nothing(nn.Module):
    """Stands where a sublayer was; a residual block adds its output, a zero, to its input."""

    def forward(self, hidden_states: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return hidden_states.new_zeros(1)


class _NoAttention(_Nothing):
    """An attention returns its weights too."""

    def forward(  # type: ignore[override]
        self, hidden_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, None]:
        return hidden_states.new_zeros(1), None


@contextmanager
def pruned(model: PreTrainedModel, candidate: LayerSubset) -> Iterator[PreTrainedModel]:
    """Turn `model` into the candidate inside the ``with`` block; the very same blocks are used, none is copied.

    Raises:
        InputError: the candidate is of a model with another number of blocks.
    """
    blocks, lists, family = blocks_of(model), _per_layer_lists(model), family_of(model.config)
    silenced: list[tuple[nn.Module, str, nn.Module]] = []
    silenced += [(blocks[i], family.attention[0], _NoAttention()) for i in candidate.attention]
    silenced += [(blocks[i], family.mlp[0], _Nothing()) for i in candidate.mlp]
    sublayers = [block.get_submodule(name) for block, name, _ in silenced]
    try:
        remove(model, LayerSubset(candidate.n_layers, candidate.dropped))
        for block, name, nothing in silenced:
            setattr(block, name, nothing)
        yield model
    finally:
        for (block, name, _), sublayer in zip(silenced, sublayers, strict=True):
            setattr(block, name, sublayer)
        _install(model, list(blocks), lists)


@contextmanager
def silenced(model: PreTrainedModel, block: nn.Module, attention: bool, mlp: bool) -> Iterator[None]:
    """Let a block of `model` compute nothing in these sublayers inside the ``with`` block."""
    family = family_of(model.config)
    stand_ins: list[tuple[str, nn.Module]] = [(family.attention[0], _NoAttention())] if attention else []
    stand_ins += [(family.mlp[0], _Nothing())] if mlp else []
    sublayers = [(name, block.get_submodule(name)) for name, _ in stand_ins]
    try:
        for name, nothing in stand_ins:
            setattr(block, name, nothing)
        yield
    finally:
        for name, sublayer in sublayers:
            setattr(block, name, sublayer)


def remove(model: PreTrainedModel, candidate: LayerSubset) -> PreTrainedModel:
    """Take the candidate's blocks out of `model` for good and return it.

    Raises:
        InputError: the candidate is of a model with another number of blocks, or drops sublayers, for which no stock
            architecture has a place.
    """
    check_removable(candidate)
    blocks = blocks_of(model)
    if len(blocks) != candidate.n_layers:
        raise InputError(f"the candidate is of a model with {candidate.n_layers} layers, this one has {len(blocks)}")
    kept_of = {name: [values[i] for i in candidate.kept] for name, values in _per_layer_lists(model).items()}
    _install(model, [blocks[i] for i in candidate.kept], kept_of)
    return model


def check_removable(candidate: LayerSubset) -> None:
    """Refuse what can be scored but not taken out for good.

    Raises:
        InputError: the candidate drops sublayers.
    """
    if not candidate.whole_blocks:
        raise InputError(
            f"layers {candidate.text} name sublayers (a: attention, m: MLP), which can be scored but not exported yet: "
            "search with --units blocks to export"
        )


def _per_layer_lists(model: PreTrainedModel) -> dict[str, list[object]]:
    """The config's lists with one entry a block, copied."""
    fields = {name: getattr(model.config, name, None) for name in family_of(model.config).per_layer}
    return {name: list(values) for name, values in fields.items() if values is not None}


def _install(model: PreTrainedModel, blocks: list[nn.Module], per_layer: dict[str, list[object]]) -> None:
    parent, _, name = family_of(model.config).blocks.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList(blocks))
    for field, values in per_layer.items():
        setattr(model.config, field, values)
    model.config.num_hidden_layers = len(blocks)
    for position, block in enumerate(blocks):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", position)  # noqa: B010 (torch types attributes as tensors)
