"""Locate the blocks of a model, and their parts.

Known model types are listed in `architectures.ARCHITECTURES`. For any other type the blocks are
inferred: they are the only list of modules whose length is the number of blocks in the config.
Verification proves the result; it is never assumed to be right.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from prunesearch.compat.transformers import offload_device
from prunesearch.errors import ModelError
from prunesearch.models.architectures import ARCHITECTURES, Architecture, Sublayer
from prunesearch.models.model_configs import BLOCK_COUNTS, meta_model, settings_of

OTHER_PARTS = ("vision", "visual", "audio", "encoder.")
"""Words in the names of modules that do not belong to the language model."""
_POSITIONS = re.compile(
    r"(?:^|\.)(?:wpe|positions_embed|pos_encoding|embed_positions?|position_embeddings?)(?:\.|$)"
)
"""Names of position tables: learned ones, and stored tables of sines."""
_inferred: dict[tuple[str, type[PretrainedConfig]], Architecture] = {}
"""Inferred architectures of types that are not in the table, by type and class of the config.

Inferring builds the model on the meta device, and `architecture_of` is called for every candidate.
An architecture depends on the code of the config's class and of its model alone, so it is kept for
the whole process. Two repositories with code of their own have different classes, even if they give
their model the same type.
"""


def architecture_of(config: PretrainedConfig, trust_remote_code: bool = False) -> Architecture:
    """Look up the architecture of a model, or infer it.

    Args:
        config: config of the model.
        trust_remote_code: build the model with code that ships with it, if its architecture must be
            inferred.

    Raises:
        ModelError: models of this type cannot be pruned. The message says why.
    """
    name = config.model_type
    key = name, type(config)
    architecture = ARCHITECTURES.get(name) or _inferred.get(key)
    if architecture is None:
        architecture = _inferred[key] = _infer(config, trust_remote_code)
    if architecture.refused is not None:
        raise ModelError(f"models of type {name!r} cannot be pruned: {architecture.refused}")
    return architecture


def _infer(config: PretrainedConfig, trust_remote_code: bool) -> Architecture:
    """Infer the architecture of a type that is not in the table."""
    # A multimodal model may have the blocks of a known language model.
    settings = settings_of(config)
    like = ARCHITECTURES.get(settings.model_type) if settings is not config else None
    if like is not None and like.refused is not None:
        return like
    model = meta_model(config, trust_remote_code)
    # Find the outermost lists of modules that are as long as the config says.
    counts = [count for count in BLOCK_COUNTS if isinstance(getattr(settings, count, None), int)]
    found: list[tuple[str, str]] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer, _ in found)
        if not isinstance(module, nn.ModuleList) or inside:
            continue
        for count in counts:
            if len(module) == getattr(settings, count):
                found.append((path, count))
                break
    # Encoders for images and sound have lists of blocks too. Exactly one list must be left.
    text = [(path, count) for path, count in found if not _is_other_part(path)]
    if len(text) != 1:
        many = f"{len(text)} lists" if text else "no list"
        return Architecture(
            refused=f"{many} of modules could be its blocks, and this version does not know it"
        )
    path, count = text[0]
    if like is not None:
        return replace(like, blocks=path, count=count)
    return Architecture(path, count, known=False)


def _is_other_part(name: str) -> bool:
    """Return whether a module does not belong to the language model, judged by its name."""
    return any(word in name for word in OTHER_PARTS)


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return the model's list of blocks itself, not a copy.

    Raises:
        ModelError: the type cannot be pruned, or the list is not where its architecture says.
    """
    architecture = architecture_of(model.config)
    number = getattr(settings_of(model.config), architecture.count)
    try:
        blocks = model.get_submodule(architecture.blocks)
    except AttributeError:
        blocks = None
    if not isinstance(blocks, nn.ModuleList) or len(blocks) != number:
        raise ModelError(
            f"{type(model).__name__} does not keep its {number} blocks in {architecture.blocks}: "
            "its modelling code is not the one this version knows"
        )
    return blocks


def per_layer_tensors(model: PreTrainedModel) -> dict[str, int]:
    """Return the parameters outside the blocks that have a part for each block.

    Returns:
        The axis that consists of these parts, by the parameter's name.
    """
    architecture = architecture_of(model.config)
    axes = dict(architecture.per_layer_tensors)
    if not axes:
        return {}
    parent, _, _ = architecture.blocks.rpartition(".")
    parameters = dict(model.named_parameters())
    # A model of the architecture need not have each of them.
    found = {}
    for name, axis in axes.items():
        if (path := f"{parent}.{name}") in parameters:
            found[path] = axis
    return found


def sublayer_of(model: PreTrainedModel, kind: str) -> Sublayer:
    """Return the architecture's description of a sublayer.

    Args:
        model: model whose architecture is looked up.
        kind: ``attention`` or ``mlp``.

    Raises:
        ModelError: the sublayers of this model type cannot be ablated one by one.
    """
    sublayer: Sublayer | None = getattr(architecture_of(model.config), kind)
    if sublayer is None:
        raise ModelError(
            f"the sublayers of {model.config.model_type!r} models cannot be dropped one by one: "
            f"use `units` blocks"
        )
    return sublayer


def parts_of(block: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Return those of the named modules that a block has."""
    found = []
    for name in names:
        module = getattr(block, name, None)
        if isinstance(module, nn.Module):
            found.append(module)
    return found


def returned(
    model: PreTrainedModel, hidden: torch.Tensor
) -> torch.Tensor | tuple[torch.Tensor | None, ...]:
    """Return hidden states in the form in which the model's blocks return them: a tensor or a
    tuple.
    """
    length = architecture_of(model.config).returns
    if not length:
        return hidden
    return (hidden, *(None,) * (length - 1))


def most_positions(model: PreTrainedModel) -> int | None:
    """Return the number of positions of a model that looks them up in a table.

    Returns:
        None if the model computes its positions, as RoPE does.
    """
    # The tables of the model limit its positions.
    limits = []
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        is_table = tensor.ndim == 2 and tensor.is_floating_point() and _POSITIONS.search(name)
        if is_table and not _is_other_part(name):
            limits.append(len(tensor))
    if not limits:
        return None
    # A table may have more rows than the config allows.
    settings = settings_of(model.config)
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        number = getattr(settings, name, None)
        if isinstance(number, int) and number > 0:
            limits.append(number)
    return min(limits)


def input_device(model: PreTrainedModel) -> torch.device:
    """Return the device that token ids must be on.

    For weights that accelerate has offloaded, this is the device on which they compute.
    """
    offloaded = offload_device(model)
    return model.device if offloaded is None else offloaded
