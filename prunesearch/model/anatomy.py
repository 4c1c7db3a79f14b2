"""Where the blocks of a model live, as data, and what each of them weighs.

A model type that is not in `FAMILIES` is refused, not guessed: a wrong guess gives a checkpoint that loads and
computes something else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import ModelError, one_line


@dataclass(frozen=True)
class Family:
    """How a model type is built.

    Attributes:
        blocks: path of the `ModuleList` of blocks inside the causal LM.
        attention, mlp: names of each sublayer and of the norm before it, inside a block that adds each sublayer's
            output to its input.
        per_layer: config fields that hold one entry a block, where they are set; sliced with the blocks.
    """

    blocks: str = "model.layers"
    attention: tuple[str, str] = ("self_attn", "input_layernorm")
    mlp: tuple[str, str] = ("mlp", "post_attention_layernorm")
    per_layer: tuple[str, ...] = ()


FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(per_layer=("layer_types",)),
    "qwen3": Family(per_layer=("layer_types",)),
}


def family_of(config: PretrainedConfig) -> Family:
    """Look up a model's family.

    Raises:
        ModelError: the type is not in the table.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(
            f"models of type {config.model_type!r} cannot be pruned yet: "
            f"this version knows {', '.join(sorted(FAMILIES))}"
        )
    if config.model_type in ("qwen2", "mistral") and getattr(config, "use_sliding_window", False):
        raise ModelError(
            f"this {config.model_type} model uses sliding-window attention by position "
            "(use_sliding_window), which dropping layers would shift; it cannot be pruned yet"
        )
    return family


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The model's list of blocks itself, not a copy.

    Raises:
        ModelError: the type is unknown, or the list is not where the table says.
    """
    path = family_of(model.config).blocks
    blocks = model.get_submodule(path)
    if not isinstance(blocks, nn.ModuleList) or len(blocks) != model.config.num_hidden_layers:
        raise ModelError(
            f"{type(model).__name__} does not keep its {model.config.num_hidden_layers} blocks in {path}: "
            "its modelling code is not the one this version knows"
        )
    return blocks


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
        attention_params: of these, each block's attention and its norm; the rest is the MLP's.
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
    family = family_of(model.config)
    attention = tuple(
        sum(p.numel() for name in family.attention for p in block.get_submodule(name).parameters()) for block in blocks
    )
    total = sum(p.numel() for p in model.parameters())  # parameters() yields a tied weight once
    return Sizes(per_block, attention, total - sum(per_block), model.dtype.itemsize)


def lost(block: Sequence[float], attention: Sequence[float], candidate: LayerSubset | None) -> float:
    """What a candidate saves of a quantity that each block has; the attention's share is part of its block's."""
    if candidate is None:
        return 0.0
    whole = sum(block[i] for i in candidate.dropped)
    return whole + sum(attention[i] for i in candidate.attention) + sum(block[i] - attention[i] for i in candidate.mlp)


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """Build the model on the meta device: shapes without weights.

    Raises:
        ModelError: transformers has no causal LM for this config.
    """
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    except (ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"no causal language model can be built from this config: {one_line(error)}") from None
    return model


def read_config(name: str, **hub: Any) -> PretrainedConfig:  # noqa: ANN401 (passed through to transformers)
    """Read a model's config from a hub id, a folder, or a bare ``config.json`` without weights.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    path = Path(name)
    if path.suffix == ".json" and not path.is_file():
        raise ModelError(f"no config file {name!r}: give a config.json, a model folder or a Hugging Face id")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(name, **hub)
    except (OSError, ValueError, KeyError) as error:
        where = "" if path.exists() else ", which is no local folder or file either"
        raise ModelError(f"cannot read the config of {name!r}{where}: {one_line(error)}") from None
    return config
