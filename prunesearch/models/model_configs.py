"""Read the configs of models, and build models of them without weights."""

from copy import deepcopy
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from prunesearch.compat.gguf import quick_reader
from prunesearch.errors import ModelError
from prunesearch.models.guard import guarded

BLOCK_COUNTS = ("num_hidden_layers", "decoder_layers", "num_decoder_layers")
"""Fields of a config that may have the number of blocks."""
_MOST_BLOCKS = 10_000
NO_MODEL = "no causal language model can be built from this config"


def settings_of(config: PretrainedConfig) -> PretrainedConfig:
    """Return the part of a config that describes the blocks.

    For a multimodal model this is the config of its language model.
    """
    text = getattr(config, "text_config", None)
    return text if isinstance(text, PretrainedConfig) else config


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
    for field in (*BLOCK_COUNTS, "vocab_size", "hidden_size"):
        value = getattr(settings, field, None)
        if isinstance(value, int) and value < 1:
            raise ModelError(f"the config of {name!r} has {field} = {value}: it must be 1 or more")
        if field in BLOCK_COUNTS and isinstance(value, int) and value > _MOST_BLOCKS:
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
