"""The fingerprint of a model: a digest of its weights and of the settings that change its output.

It does not depend on the place or the name of the model.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel

from prunesearch.compat.transformers import get_relative_import_files
from prunesearch.runtime.json_values import JsonObject, as_object

# transformers imports the code of checkpoints into this package.
_DYNAMIC = "transformers_modules."

# Config fields that do not affect any logit, such as names and paths.
_NOT_NUMERIC = frozenset(
    """_name_or_path architectures auto_map bos_token_id chunk_size_feed_forward dtype eos_token_id
    id2label label2id finetuning_task gguf_file initializer_range name_or_path output_attentions
    output_hidden_states pad_token_id prefix problem_type quantization_config return_dict
    task_specific_params tokenizer_class torch_dtype transformers_version unk_token_id use_cache
    vocab_file pretraining_tp""".split()
)


def fingerprint(model: PreTrainedModel, read: Callable[[str], torch.Tensor] | None = None) -> str:
    """Compute the digest of a model's weights and of its numeric config.

    The same content has the same digest, however it is stored, sharded or named. Code that ships
    with the model and its quantisation count as content.

    Args:
        model: model to digest.
        read: function that returns a parameter on the meta device, by its name.

    Returns:
        The 64 hexadecimal digits of a sha256.
    """
    digest = hashlib.sha256(json.dumps(numeric_config(model.config), sort_keys=True).encode())
    # Ordinary models have neither of the two, so their digests are the same as in earlier versions.
    for kind, found in (("quantisation", _quantisation(model.config)), ("code", _own_code(model))):
        if found:
            digest.update(f"\0{kind}\0{json.dumps(found, sort_keys=True, default=str)}".encode())
    # Add one tensor at a time, with its name, dtype and shape.
    state = _state(model) if read is None else model.state_dict()
    for name, held in sorted(state.items()):
        tensor = read(name) if read is not None and held.is_meta else held
        _add_tensor(digest, name, tensor)
        # Free the tensor before the next one is read.
        del tensor
    return digest.hexdigest()


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Compute the digest of some tensors with their names, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        _add_tensor(digest, name, tensor)
    return digest.hexdigest()


def _add_tensor(digest: "hashlib._Hash", name: str, tensor: torch.Tensor) -> None:
    """Add a tensor to a digest, with its name, dtype and shape."""
    digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
    flat = tensor.detach().to("cpu").contiguous().flatten()
    digest.update(flat.view(torch.uint8).numpy().data)


def numeric_config(config: PretrainedConfig) -> JsonObject:
    """Return the config fields that affect the output of a model, as JSON values."""
    kept = {}
    for name, value in config.to_dict().items():
        if name not in _NOT_NUMERIC and value is not None:
            kept[name] = value
    return as_object(json.loads(json.dumps(kept, default=str)), "the config")


def _quantisation(config: PretrainedConfig) -> object:
    """Return the quantisation of a model's weights; None for an ordinary model."""
    return config.to_dict().get("quantization_config")


def _own_code(model: PreTrainedModel) -> JsonObject:
    """Describe the code of a checkpoint that the model runs.

    Returns:
        The names of the classes, and a digest of each file. Empty if the model runs no such code.
    """
    # Find the classes of the model that come from the checkpoint.
    used: set[type] = {type(module) for module in model.modules()} | {type(model.config)}
    own: set[type] = set()
    for kind in used:
        for base in kind.__mro__:
            if base.__module__.startswith(_DYNAMIC):
                own.add(base)
    if not own:
        return {}
    # Digest their files, and the files that these import.
    files: set[tuple[str, str]] = set()
    for entry in set(map(inspect.getfile, own)):
        for path in map(Path, (entry, *get_relative_import_files(entry))):
            files.add((path.name, hashlib.sha256(path.read_bytes()).hexdigest()))
    return {
        "model": type(model).__qualname__,
        "config": type(model.config).__qualname__,
        "files": sorted(files),
    }


def _state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the weights of a model. Weights that accelerate has offloaded are read."""
    if any(p.is_meta for p in model.parameters()):
        from accelerate.utils.modeling import get_state_dict_offloaded_model

        offloaded: dict[str, torch.Tensor] = get_state_dict_offloaded_model(model)
        return offloaded
    state: dict[str, torch.Tensor] = model.state_dict()
    return state
