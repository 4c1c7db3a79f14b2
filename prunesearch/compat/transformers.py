"""Parts of transformers that are not in its public interface. Tested with 5.17.0 and 5.23.0.

The names that are only passed on:

* `Conv1D`: the linear layer of GPT-2, with a transposed weight.
* `CacheLayerMixin`: base of the layers of a key and value cache. Layers of another kind are not
  indexed by position.
* `MoeModelOutputWithPast`: the base-model output with the most attributes.
* `no_init_weights`: a context in which a new model's weights are not initialised.
* `get_relative_import_files`: files that a checkpoint's own code imports.
* `get_model_conversion_mapping`, `rename_source_key`, `dot_natural_key`,
  `WeightRenaming`, `WeightConverter`: the rules by which `from_pretrained` turns stored tensors
  into parameters.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import CacheLayerMixin as CacheLayerMixin
from transformers.conversion_mapping import (
    get_model_conversion_mapping as get_model_conversion_mapping,
)
from transformers.core_model_loading import WeightConverter as WeightConverter
from transformers.core_model_loading import WeightRenaming as WeightRenaming
from transformers.core_model_loading import build_glob_alternation
from transformers.core_model_loading import dot_natural_key as dot_natural_key
from transformers.core_model_loading import rename_source_key as rename_source_key
from transformers.dynamic_module_utils import (
    get_relative_import_files as get_relative_import_files,
)
from transformers.initialization import no_init_weights as no_init_weights
from transformers.modeling_outputs import MoeModelOutputWithPast as MoeModelOutputWithPast
from transformers.pytorch_utils import Conv1D as Conv1D


def attention_name(config: PretrainedConfig) -> str:
    """Return the name of a model's attention function, such as ``sdpa``.

    Stands for `config._attn_implementation`.
    """
    return str(config._attn_implementation)


@contextmanager
def attention_as(config: PretrainedConfig, name: str) -> Iterator[None]:
    """Set the name of the attention function in a config, and restore it on exit.

    `PreTrainedModel.set_attn_implementation` checks the name and may load kernels, and it has no
    way back.
    """
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def float32_names(model: PreTrainedModel) -> re.Pattern[str] | None:
    """Return a pattern of the parameters that transformers keeps in float32 in a 16-bit model.

    Stands for `model._keep_in_fp32_modules_strict` (for any 16-bit dtype) and
    `model._keep_in_fp32_modules` (for float16).

    Returns:
        A pattern to search names with; None if no parameter is kept.
    """
    patterns = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if model.dtype == torch.float16:
        patterns |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    if not patterns:
        return None
    pattern, *_ = build_glob_alternation(sorted(patterns))
    return pattern


def forget_code_of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Remove the references to a checkpoint's own code from a tokenizer.

    Stands for `tokenizer._auto_map` and the same entry of `init_kwargs`.
    """
    tokenizer.init_kwargs.pop("auto_map", None)
    tokenizer._auto_map = None


def offload_device(model: PreTrainedModel) -> torch.device | None:
    """Return the device on which accelerate runs a model whose weights it offloads; else None.

    Stands for the `_hf_hook` that accelerate attaches to a module. Tested with accelerate 1.15.0.
    """
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is None:
        return None
    return torch.device(device)
