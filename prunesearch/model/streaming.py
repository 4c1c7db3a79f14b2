"""Opening a model that is larger than memory: everything but its blocks is loaded, these are read when they are used."""

from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from prunesearch.errors import ModelError, one_line
from prunesearch.model.anatomy import blocks_of, family_of, read_config, sizes_of
from prunesearch.model.checkpoint import Stored, read, tensors_in
from prunesearch.model.fingerprint import fingerprint
from prunesearch.model.layers import StreamedLayers
from prunesearch.model.loading import LoadedModel, device_named, looks_local

_WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja")


def open_streamed(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    host: bool = False,
) -> LoadedModel:
    """Open a safetensors checkpoint for scoring with its blocks left where they are.

    The whole checkpoint is read once, for its fingerprint, which is the one that `loading.load` gives.

    Args:
        name: a local folder, or a Hugging Face id, which is downloaded.
        dtype, device, revision, trust_remote_code: as in `loading.load`.
        host: keep the blocks in host memory instead of on disk, for a GPU that is too small.

    Raises:
        ModelError: missing, damaged, of an unsupported architecture, or stored in other pieces than the model's own.
    """
    place = device_named(device)
    folder = _folder(name, revision)
    config = read_config(str(folder), trust_remote_code=trust_remote_code)
    family_of(config)
    stored = tensors_in(folder)
    model = _empty(config, dtype, trust_remote_code)
    blocks = blocks_of(model)
    prefix = family_of(config).blocks + "."
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot load the tokenizer of {name!r}: {one_line(error)}") from None
    where = _locate(model, stored, name)
    for parameter in [p for p in where if not p.startswith(prefix)]:
        _put(model, parameter, read(where[parameter]).to(place, model.dtype))
    model.tie_weights()  # type: ignore[no-untyped-call]
    for buffer_name, buffer in model.named_buffers():
        _put_buffer(model, buffer_name, buffer.to(place))
    per_block: list[dict[str, Stored | torch.Tensor]] = [
        {p: where[f"{prefix}{i}.{p}"] for p, _ in block.named_parameters()} for i, block in enumerate(blocks)
    ]
    digest = fingerprint(model, lambda parameter: read(where[parameter]).to(model.dtype))
    if host:
        per_block = [{p: read(s) for p, s in of_block.items() if isinstance(s, Stored)} for of_block in per_block]
    layers = StreamedLayers(blocks, per_block, place, model.dtype)
    return LoadedModel(name, model.eval(), tokenizer, digest, sizes_of(model), layers)


def _folder(name: str, revision: str | None) -> Path:
    if name.endswith(".gguf"):
        raise ModelError(f"{name!r} is a GGUF, which cannot be streamed: use --weights resident, or its safetensors")
    if looks_local(name):
        if not (Path(name) / "config.json").is_file():
            raise ModelError(f"no checkpoint folder {name!r}: give a folder with config.json or a Hugging Face id")
        return Path(name)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_WANTED)))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ModelError(f"cannot download model {name!r}: {one_line(error)}") from None


def _empty(config: PretrainedConfig, dtype: str, trust_remote_code: bool) -> PreTrainedModel:
    """The model with its parameters on the meta device and its buffers (rotary frequencies) real."""
    wanted = config.dtype if dtype == "auto" else getattr(torch, dtype)
    wanted = wanted if isinstance(wanted, torch.dtype) else torch.float32
    with init_empty_weights(include_buffers=False), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=wanted, trust_remote_code=trust_remote_code
        )
    return model.requires_grad_(False)


def _locate(model: PreTrainedModel, stored: Mapping[str, Stored], name: str) -> dict[str, Stored]:
    """Where each parameter of the model lies; a tied one is not stored twice."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    found = {}
    for parameter, tensor in model.named_parameters(remove_duplicate=False):
        place = stored.get(parameter)
        if place is None and parameter in tied:
            continue
        if place is None or place.shape != tuple(tensor.shape):
            what = "does not hold" if place is None else "holds in another shape"
            raise ModelError(
                f"checkpoint {name!r} {what} {parameter}: it is not complete, or stored in other pieces than "
                f"{type(model).__name__} is built of; use --weights resident"
            )
        found[parameter] = place
    return found


def _put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))


def _put_buffer(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, tensor)
