"""Where the blocks of a model live, and what each of them weighs.

What is known of a model type is in `families.FAMILIES`. Another type is looked at: its blocks are the one list of as
many modules as its config says blocks. Whether that was right is proven by verification, never assumed.
"""

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import ModelError
from prunesearch.model.families import FAMILIES, Family, Sublayer
from prunesearch.model.guard import guarded

_COUNTS = ("num_hidden_layers", "decoder_layers", "num_decoder_layers")
OTHER_PARTS = ("vision", "visual", "audio", "encoder.")
"""Words in the names of modules that are no part of the language model."""
_POSITIONS = re.compile(r"(?:^|\.)(?:wpe|positions_embed|pos_encoding|embed_positions?|position_embeddings?)(?:\.|$)")
"""Names of tables of positions: learned ones, and those of sines that are not computed anew."""
_MOST_BLOCKS = 10_000
NO_MODEL = "no causal language model can be built from this config"
_found: dict[str, Family] = {}
"""Families of types outside the table, as they were met."""


def family_of(config: PretrainedConfig, trust_remote_code: bool = False) -> Family:
    """Look up a model's family, or find out about it.

    Args:
        trust_remote_code: build it with code that ships with it, to find out about a type that is met first.

    Raises:
        ModelError: models of this type cannot be pruned; says why.
    """
    name = config.model_type
    family = FAMILIES.get(name) or _found.get(name)
    if family is None:
        family = _found[name] = _look_at(config, trust_remote_code)
    if family.refused is not None:
        raise ModelError(f"models of type {name!r} cannot be pruned: {family.refused}")
    return family


def settings_of(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a config that describes the blocks: of a model that also sees or hears, its language model's."""
    text = getattr(config, "text_config", None)
    return text if isinstance(text, PretrainedConfig) else config


def _look_at(config: PretrainedConfig, trust_remote_code: bool) -> Family:
    """Find the blocks of a type that the table does not have."""
    settings = settings_of(config)
    like = FAMILIES.get(settings.model_type) if settings is not config else None
    if like is not None and like.refused is not None:
        return like
    model = skeleton(config, trust_remote_code)
    counts = [count for count in _COUNTS if isinstance(getattr(settings, count, None), int)]
    found: list[tuple[str, str]] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, nn.ModuleList) and not inside:
            found += [(path, c) for c in counts if len(module) == getattr(settings, c)][:1]
    text = [pair for pair in found if not any(word in pair[0] for word in OTHER_PARTS)]
    if len(text) != 1:
        many = f"{len(text)} lists" if text else "no list"
        return Family(refused=f"{many} of modules could be its blocks, and this version does not know it")
    path, count = text[0]
    if like is not None:
        return Family(path, count, like.attention, like.mlp, like.returns, like.per_layer_tensors)
    return Family(path, count, known=False)


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The model's list of blocks itself, not a copy.

    Raises:
        ModelError: the type cannot be pruned, or the list is not where the table says.
    """
    family = family_of(model.config)
    number = getattr(settings_of(model.config), family.count)
    try:
        blocks = model.get_submodule(family.blocks)
    except AttributeError:
        blocks = None
    if not isinstance(blocks, nn.ModuleList) or len(blocks) != number:
        raise ModelError(
            f"{type(model).__name__} does not keep its {number} blocks in {family.blocks}: "
            "its modelling code is not the one this version knows"
        )
    return blocks


def per_layer_tensors(model: PreTrainedModel) -> dict[str, int]:
    """Parameters outside the blocks with a part for each block, by name, and the axis that has these parts."""
    family = family_of(model.config)
    parent, _, _ = family.blocks.rpartition(".")
    named = {f"{parent}.{name}": axis for name, axis in dict(family.per_layer_tensors).items()}
    return {name: axis for name, axis in named.items() if name in dict(model.named_parameters())} if named else {}


def sublayer_of(model: PreTrainedModel, kind: str) -> Sublayer:
    """The family's ``attention`` or ``mlp``.

    Raises:
        ModelError: it cannot be silenced alone.
    """
    sublayer: Sublayer | None = getattr(family_of(model.config), kind)
    if sublayer is None:
        raise ModelError(
            f"the sublayers of {model.config.model_type!r} models cannot be dropped one by one: use --units blocks"
        )
    return sublayer


def parts_of(block: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Those of the named modules that a block has."""
    found = (getattr(block, name, None) for name in names)
    return [module for module in found if isinstance(module, nn.Module)]


def returned(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor | None, ...]:
    """Hidden states in the form in which the model's blocks return them."""
    length = family_of(model.config).returns
    return (hidden, *(None,) * (length - 1)) if length else hidden


def most_positions(model: PreTrainedModel) -> int | None:
    """How many positions a model has, where it looks them up in a table; None where it computes them, as RoPE does."""
    settings = settings_of(model.config)
    rows = [
        len(tensor)
        for name, tensor in chain(model.named_parameters(), model.named_buffers())
        if tensor.ndim == 2 and tensor.is_floating_point() and _POSITIONS.search(name)
        if not any(part in name for part in OTHER_PARTS)
    ]
    if not rows:
        return None
    said = (getattr(settings, name, None) for name in ("max_position_embeddings", "n_positions", "n_ctx"))
    return min([*rows, *(number for number in said if isinstance(number, int) and number > 0)])


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids go: of weights that accelerate has offloaded, the device they are computed on."""
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return model.device if device is None else torch.device(device)


@dataclass(frozen=True)
class Sizes:
    """Exact parameter counts and bytes, from shapes alone.

    Attributes:
        block_params: parameters of each block.
        attention_params: of these, each block's attention and its norms; the rest is the MLP's.
        other_params: everything else (embeddings, final norm, head), tied weights counted once.
        bytes_per_param: by the precision the checkpoint is stored in.
    """

    block_params: tuple[int, ...]
    attention_params: tuple[int, ...]
    other_params: int
    bytes_per_param: int

    def params(self, candidate: LayerSubset | None = None) -> int:
        """Parameters left by a candidate; of the dense model without one."""
        total = self.other_params + sum(self.block_params)
        return total - int(lost(self.block_params, self.attention_params, candidate))

    def bytes(self, candidate: LayerSubset | None = None) -> int:
        """Bytes of the weights left by a candidate; of the dense model without one."""
        return self.params(candidate) * self.bytes_per_param


def sizes_of(model: PreTrainedModel) -> Sizes:
    """Count a model's parameters; works on the meta device, where nothing is allocated."""
    blocks = blocks_of(model)
    per_block = tuple(sum(p.numel() for p in block.parameters()) for block in blocks)
    sublayer = family_of(model.config).attention
    names = sublayer.parts if sublayer else ()
    attention = tuple(sum(p.numel() for part in parts_of(block, names) for p in part.parameters()) for block in blocks)
    total = sum(p.numel() for p in model.parameters())  # parameters() yields a tied weight once
    return Sizes(per_block, attention, total - sum(per_block), model.dtype.itemsize)


def lost(block: Sequence[float], attention: Sequence[float], candidate: LayerSubset | None) -> float:
    """What a candidate saves of a quantity that each block has; the attention's share is part of its block's."""
    if candidate is None:
        return 0.0
    whole = sum(block[i] for i in candidate.dropped)
    return whole + sum(attention[i] for i in candidate.attention) + sum(block[i] - attention[i] for i in candidate.mlp)


def skeleton(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build the model on the meta device: shapes without weights.

    Args:
        trust_remote_code: with code that ships with it.

    Raises:
        ModelError: transformers has no causal LM for this config.
    """
    config = deepcopy(config)  # transformers notes the precision in it
    named = getattr(torch, config.dtype, None) if isinstance(config.dtype, str) else config.dtype
    dtype = named if isinstance(named, torch.dtype) else torch.float32
    with guarded(NO_MODEL, advice="correct it"), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    return model


def read_config(name: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """Read a model's config from a folder, or a bare ``config.json`` without weights.

    Args:
        trust_remote_code: run code that ships with the model. If not, the config names none afterwards.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    path = Path(name)
    if path.suffix == ".json" and not path.is_file():
        raise ModelError(f"no config file {name!r}: give a config.json, a model folder or a Hugging Face id")
    where = "" if path.exists() else ", which is no local folder or file either"
    with guarded(f"cannot read the config of {name!r}{where}", path):
        config: PretrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    _check_numbers(config, name)
    if config.return_dict is False and not trust_remote_code:  # seen only when an export is compared, after the search
        raise ModelError(f"the config of {name!r} has return_dict = false, with which transformers fails: delete it")
    if not trust_remote_code and hasattr(config, "auto_map"):
        del config.auto_map
    return config


def _check_numbers(config: PretrainedConfig, name: str) -> None:
    """Refuse a config whose numbers no model can have; transformers checks their types and little else.

    Raises:
        ModelError: names the field and its value.
    """
    settings = settings_of(config)
    for field in (*_COUNTS, "vocab_size", "hidden_size"):
        value = getattr(settings, field, None)
        if isinstance(value, int) and value < 1:
            raise ModelError(f"the config of {name!r} has {field} = {value}: it must be 1 or more")
        if field in _COUNTS and isinstance(value, int) and value > _MOST_BLOCKS:
            raise ModelError(
                f"the config of {name!r} has {field} = {value}: no model has more than {_MOST_BLOCKS} blocks"
            )
    heads, shared = (getattr(settings, field, None) for field in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and isinstance(shared, int) and shared > 0 and heads % shared:
        raise ModelError(
            f"the config of {name!r} has num_attention_heads = {heads}, which is no multiple of its "
            f"num_key_value_heads = {shared}"
        )
