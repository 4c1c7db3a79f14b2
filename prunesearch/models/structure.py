"""Locate the blocks of a model, and count their parameters.

Known model types are listed in `architectures.ARCHITECTURES`. For any other type the blocks are
inferred: they are the only list of modules whose length is the number of blocks in the config.
Verification proves the result; it is never assumed to be right.
"""

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.compat.gguf import quick_reader
from prunesearch.compat.transformers import offload_device
from prunesearch.errors import ModelError
from prunesearch.models.architectures import ARCHITECTURES, Architecture, Sublayer
from prunesearch.models.guard import guarded
from prunesearch.widths.layer_widths import LayerWidths

_COUNTS = ("num_hidden_layers", "decoder_layers", "num_decoder_layers")
OTHER_PARTS = ("vision", "visual", "audio", "encoder.")
"""Words in the names of modules that do not belong to the language model."""
_POSITIONS = re.compile(
    r"(?:^|\.)(?:wpe|positions_embed|pos_encoding|embed_positions?|position_embeddings?)(?:\.|$)"
)
"""Names of position tables: learned ones, and stored tables of sines."""
_MOST_BLOCKS = 10_000
NO_MODEL = "no causal language model can be built from this config"
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


def settings_of(config: PretrainedConfig) -> PretrainedConfig:
    """Return the part of a config that describes the blocks.

    For a multimodal model this is the config of its language model.
    """
    text = getattr(config, "text_config", None)
    return text if isinstance(text, PretrainedConfig) else config


def _infer(config: PretrainedConfig, trust_remote_code: bool) -> Architecture:
    """Infer the architecture of a type that is not in the table."""
    # A multimodal model may have the blocks of a known language model.
    settings = settings_of(config)
    like = ARCHITECTURES.get(settings.model_type) if settings is not config else None
    if like is not None and like.refused is not None:
        return like
    model = meta_model(config, trust_remote_code)
    # Find the outermost lists of modules that are as long as the config says.
    counts = [count for count in _COUNTS if isinstance(getattr(settings, count, None), int)]
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


@dataclass(frozen=True)
class Sizes:
    """Exact parameter counts and bytes of a model, computed from shapes alone.

    Attributes:
        block_params: number of parameters of each block.
        attention_params: number of parameters of each block's attention and its norms. The rest of
            a block counts as its MLP.
        other_params: number of all other parameters (embeddings, final norm, head). Tied weights
            count once.
        bytes_per_param: bytes per parameter in the dtype of the model.
    """

    block_params: tuple[int, ...]
    attention_params: tuple[int, ...]
    other_params: int
    bytes_per_param: int

    def params(self, candidate: LayerSubset | None = None) -> int:
        """Return the number of parameters that a candidate keeps.

        Without a candidate: of the dense model.
        """
        total = self.other_params + sum(self.block_params)
        if not isinstance(candidate, LayerWidths):
            return total - int(lost(self.block_params, self.attention_params, candidate))
        # Blocks and sublayers that are gone, and then what narrower sublayers have lost.
        gone = LayerSubset(
            candidate.n_layers, candidate.dropped, candidate.attention, candidate.mlp
        )
        total -= int(lost(self.block_params, self.attention_params, gone))
        return total - candidate.narrowing_params

    def bytes(self, candidate: LayerSubset | None = None) -> int:
        """Return the bytes of the weights that a candidate keeps.

        Without a candidate: of the dense model.
        """
        return self.params(candidate) * self.bytes_per_param


def sizes_of(model: PreTrainedModel) -> Sizes:
    """Count the parameters of a model. The model may be on the meta device."""
    sublayer = architecture_of(model.config).attention
    names = sublayer.parts if sublayer else ()
    per_block: list[int] = []
    attention: list[int] = []
    for block in blocks_of(model):
        per_block.append(_params_of(block))
        attention.append(sum(map(_params_of, parts_of(block, names))))
    # parameters() yields a tied weight once.
    other = _params_of(model) - sum(per_block)
    return Sizes(tuple(per_block), tuple(attention), other, model.dtype.itemsize)


def _params_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def lost(
    block: Sequence[float], attention: Sequence[float], candidate: LayerSubset | None
) -> float:
    """Return how much of a quantity a candidate saves.

    Args:
        block: the quantity of each block.
        attention: the share of each block's attention. The rest of the block is the share of its
            MLP.
        candidate: candidate that drops blocks or sublayers. None saves nothing.
    """
    if candidate is None:
        return 0.0
    # Whole blocks, then the attention of kept blocks, then their MLPs.
    blocks = sum(block[i] for i in candidate.dropped)
    attentions = sum(attention[i] for i in candidate.attention)
    mlps = sum(block[i] - attention[i] for i in candidate.mlp)
    saved = blocks + attentions + mlps
    # A narrower sublayer saves in proportion.
    if isinstance(candidate, LayerWidths):
        for i in candidate.kept:
            use = candidate.use(i)
            if use is not None and use.groups is not None:
                saved += attention[i] * (1 - use.groups / candidate.shape.groups[i])
            # A token uses as many experts as before, so removed experts save no time.
            experts = candidate.shape.experts_used(i) > 0
            if use is not None and use.channels is not None and not experts:
                saved += (block[i] - attention[i]) * (
                    1 - use.channels / candidate.shape.channels[i]
                )
    return saved


def meta_model(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build a model on the meta device, which has shapes but no weights.

    Args:
        config: config of the model.
        trust_remote_code: run code that ships with the model.

    Raises:
        ModelError: transformers cannot build a causal LM from this config.
    """
    # transformers writes the dtype into the config, so it gets a copy.
    config = deepcopy(config)
    # A config names its dtype as a text or as a torch dtype, or has none.
    dtype = config.dtype
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, None)
    if not isinstance(dtype, torch.dtype):
        dtype = torch.float32
    with guarded(NO_MODEL, advice="correct it"), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    return model


def read_gguf_config(path: Path) -> PretrainedConfig:
    """Read the config of a GGUF file, as transformers builds it from the header.

    Raises:
        ModelError: the header cannot be read, or transformers does not know its architecture.
    """
    with quick_reader(), guarded(f"cannot read the config of {str(path)!r}", path):
        config: PretrainedConfig = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    _check_numbers(config, str(path))
    return config


def read_config(name: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """Read the config of a model.

    Args:
        name: a model folder, a ``config.json`` without weights, or a Hugging Face id.
        trust_remote_code: run code that ships with the model. If False, the returned config names
            no such code.

    Raises:
        ModelError: the config is missing, or it cannot be read or used.
    """
    path = Path(name)
    if path.suffix == ".json" and not path.is_file():
        raise ModelError(
            f"no config file {name!r}: give a config.json, a model folder or a Hugging Face id"
        )
    where = "" if path.exists() else ", which is not a local folder or file either"
    with guarded(f"cannot read the config of {name!r}{where}", path):
        config: PretrainedConfig = AutoConfig.from_pretrained(
            name, trust_remote_code=trust_remote_code
        )
    _check_numbers(config, name)
    # transformers would fail only when an export is compared, after the search.
    if config.return_dict is False and not trust_remote_code:
        raise ModelError(
            f"the config of {name!r} has return_dict = false, with which transformers fails: "
            f"delete it"
        )
    if not trust_remote_code and hasattr(config, "auto_map"):
        del config.auto_map
    return config


def _check_numbers(config: PretrainedConfig, name: str) -> None:
    """Refuse a config with numbers that no model can have. transformers checks little but their
    types.

    Raises:
        ModelError: a number is out of its range, or two numbers contradict each other.
    """
    settings = settings_of(config)
    # Sizes are positive, and the number of blocks has an upper limit.
    for field in (*_COUNTS, "vocab_size", "hidden_size"):
        value = getattr(settings, field, None)
        if isinstance(value, int) and value < 1:
            raise ModelError(f"the config of {name!r} has {field} = {value}: it must be 1 or more")
        if field in _COUNTS and isinstance(value, int) and value > _MOST_BLOCKS:
            raise ModelError(
                f"the config of {name!r} has {field} = {value}: no model has more than "
                f"{_MOST_BLOCKS} blocks"
            )
    # Query heads share key and value heads evenly.
    heads = getattr(settings, "num_attention_heads", None)
    shared = getattr(settings, "num_key_value_heads", None)
    if isinstance(heads, int) and isinstance(shared, int) and shared > 0 and heads % shared:
        raise ModelError(
            f"the config of {name!r} has num_attention_heads = {heads}, which is not a multiple of "
            f"its "
            f"num_key_value_heads = {shared}"
        )
