"""What a model is, as opposed to where it lies: a digest of its weights and of the settings that change its output."""

import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files

_DYNAMIC = "transformers_modules."  # transformers imports the code of checkpoints into this package

# Config fields that name, place or decorate a model but enter no logit.
_NOT_NUMERIC = frozenset(
    """_name_or_path architectures auto_map bos_token_id chunk_size_feed_forward dtype eos_token_id id2label label2id
    finetuning_task gguf_file initializer_range name_or_path output_attentions output_hidden_states pad_token_id
    prefix problem_type quantization_config return_dict task_specific_params tokenizer_class torch_dtype
    transformers_version unk_token_id use_cache vocab_file pretraining_tp""".split()
)


def fingerprint(model: PreTrainedModel, read: Callable[[str], torch.Tensor] | None = None) -> str:
    """Digest weights and numeric config; the same for the same content however it was stored, sharded or named.

    Of a model that runs code of its own that code counts too, and of a quantised one how it is quantised.

    Args:
        read: gives a parameter that is on the meta device, by name.

    Returns:
        64 hexadecimal digits of a sha256.
    """
    digest = hashlib.sha256(json.dumps(numeric_config(model.config), sort_keys=True).encode())
    for kind, found in (("quantisation", _quantisation(model.config)), ("code", _own_code(model))):
        if found:  # digests of ordinary models are what they always were
            digest.update(f"\0{kind}\0{json.dumps(found, sort_keys=True, default=str)}".encode())
    for name, held in sorted((_state(model) if read is None else model.state_dict()).items()):
        tensor = read(name) if read is not None and held.is_meta else held
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().to("cpu").contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
        del tensor, flat  # before the next one is read
    return digest.hexdigest()


def numeric_config(config: PretrainedConfig) -> dict[str, Any]:
    """The config fields that change what a model computes, as plain JSON values."""
    fields: dict[str, Any] = config.to_dict()
    kept = {name: value for name, value in fields.items() if name not in _NOT_NUMERIC and value is not None}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def _quantisation(config: PretrainedConfig) -> Any:  # noqa: ANN401 (as JSON values)
    """How a model's weights are quantised; None for an ordinary model."""
    return config.to_dict().get("quantization_config")


def _own_code(model: PreTrainedModel) -> dict[str, Any]:
    """Describe code that came with a checkpoint and computes in the model: its classes, and a digest of each file."""
    used = {type(module) for module in model.modules()} | {type(model.config)}
    own = {base for kind in used for base in kind.__mro__ if base.__module__.startswith(_DYNAMIC)}
    if not own:
        return {}
    files: set[tuple[str, str]] = set()
    for entry in {inspect.getfile(kind) for kind in own}:
        for path in map(Path, (entry, *get_relative_import_files(entry))):
            files.add((path.name, hashlib.sha256(path.read_bytes()).hexdigest()))
    return {"model": type(model).__qualname__, "config": type(model.config).__qualname__, "files": sorted(files)}


def _state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    if any(p.is_meta for p in model.parameters()):
        from accelerate.utils.modeling import get_state_dict_offloaded_model

        offloaded: dict[str, torch.Tensor] = get_state_dict_offloaded_model(model)
        return offloaded
    state: dict[str, torch.Tensor] = model.state_dict()
    return state
