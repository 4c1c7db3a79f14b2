"""Opening a model that is larger than memory: all but its blocks is loaded, these are read when they are used."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from prunesearch.errors import ModelError, one_line
from prunesearch.model.anatomy import NO_MODEL, blocks_of, family_of, input_device, read_config, sizes_of
from prunesearch.model.checkpoint import Stored, tensors_of
from prunesearch.model.fingerprint import fingerprint
from prunesearch.model.guard import guarded
from prunesearch.model.layers import StreamedLayers
from prunesearch.model.loading import TOKENIZER_ADVICE, LoadedModel, device_named, forget_code, is_quantised
from prunesearch.model.source import resolve, with_weights
from prunesearch.model.sources import Source, keep_exact_parts, locate, read_source


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

    The whole checkpoint is read once, tensor by tensor, for its fingerprint, which is the one that `loading.load`
    gives.

    Args:
        name: a local folder, or a Hugging Face id, which is downloaded.
        dtype, device, revision, trust_remote_code: as in `loading.load`.
        host: keep the blocks in host memory instead of on disk, for a GPU that is too small.

    Raises:
        ModelError: missing, damaged, quantised, of an unsupported architecture, or stored in pieces that are not known.
    """
    place = device_named(device)
    source = resolve(name, revision=revision, trust_remote_code=trust_remote_code)
    folder = source.folder
    if folder is None:
        raise ModelError(f"{name!r} is a GGUF, which cannot be streamed: use --weights memory, or its safetensors")
    config = read_config(str(folder), trust_remote_code)
    family_of(config, trust_remote_code)
    if is_quantised(config):
        raise ModelError(f"model {name!r} is quantised, which cannot be streamed: give the unquantised model")
    source = with_weights(source)
    if not source.safetensors:
        raise ModelError(f"{name!r} holds no safetensors, only those can be streamed: use --weights memory")
    stored = tensors_of(source.weights)
    model = _empty(config, dtype, stored, trust_remote_code)
    with guarded(f"cannot load the tokenizer of {name!r}", folder, advice=TOKENIZER_ADVICE):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if not trust_remote_code:
        forget_code(model.config, tokenizer)
    sources: dict[str, Source] = {**locate(model, stored, name)}
    prefix = family_of(config).blocks + "."
    in_blocks = {p for p, _ in model.named_parameters(remove_duplicate=False) if p.startswith(prefix)}
    try:
        _fill(model, sources, in_blocks, place)
        if host:
            sources |= {p: _pinned(read_source(sources[p]), place) for p in in_blocks}
        digest = fingerprint(model, lambda p: _checked(read_source(sources[p]), model.get_parameter(p), p, name))
    except OSError as error:
        raise ModelError(f"cannot read the weights of {name!r}: {one_line(error)}") from None
    except RuntimeError as error:  # torch: out of memory
        raise ModelError(
            f"what stays in memory of model {name!r} does not fit {place} ({one_line(error)}): prunesearch plan {name} "
            "says how much that is"
        ) from None
    blocks = blocks_of(model)
    per_block = [
        {p: sources[f"{prefix}{index}.{p}"] for p, _ in block.named_parameters()} for index, block in enumerate(blocks)
    ]
    layers = StreamedLayers(blocks, per_block, place)
    model.train(False)
    return LoadedModel(name, model, tokenizer, digest, sizes_of(model), layers, source, trust_remote_code)


@contextmanager
def set_aside(loaded: LoadedModel) -> Iterator[None]:
    """Give back the memory of what is not streamed inside the ``with`` block; after it, it is read again.

    Raises:
        OSError: they cannot be read again.
    """
    model, place = loaded.model, input_device(loaded.model)
    sources: dict[str, Source] = {**locate(model, tensors_of(loaded.source.weights), loaded.name)}
    prefix = family_of(model.config).blocks + "."
    named = dict(model.named_parameters(remove_duplicate=False))
    in_blocks = {name for name in named if name.startswith(prefix)}
    if isinstance(loaded.layers, StreamedLayers):
        loaded.layers.release()
    for name in named.keys() & sources.keys() - in_blocks:
        _put(model, name, nn.Parameter(torch.empty_like(named[name], device="meta"), requires_grad=False))
    named.clear()
    try:
        yield
    finally:
        _fill(model, sources, in_blocks, place)


class _WeightsOnMeta(TorchFunctionMode):
    """Makes weights without memory; `init_empty_weights` alone has them for a moment, and leaves the heap in holes.

    Of a model of 8 GiB these were 2.8 GiB of address space, though untouched.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> Any:  # noqa: ANN401
        """Let ``torch.empty`` be on the meta device, and everything else (buffers are computed) where it is."""
        return func(*args, **{**(kwargs or {}), **({"device": "meta"} if func is torch.empty else {})})


def _empty(
    config: PretrainedConfig, dtype: str, stored: Mapping[str, Stored], trust_remote_code: bool
) -> PreTrainedModel:
    """The model with its parameters on the meta device and its buffers (rotary frequencies) real."""
    wanted = getattr(torch, dtype) if dtype != "auto" else config.dtype
    if not isinstance(wanted, torch.dtype):
        wanted = _first_type(stored)
    with guarded(NO_MODEL), init_empty_weights(include_buffers=False), _WeightsOnMeta(), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=wanted, trust_remote_code=trust_remote_code
        )
    keep_exact_parts(model)
    return model.requires_grad_(False)


def _first_type(stored: Mapping[str, Stored]) -> torch.dtype:
    """The precision of a checkpoint whose config names none: of the first weight of its first file, by name."""
    ordered = sorted(stored.items(), key=lambda item: (item[1].path, item[0]))
    types = (place.dtype for _, place in ordered)
    return next((dtype for dtype in types if dtype.is_floating_point and dtype.itemsize > 1), torch.float32)


def _fill(model: PreTrainedModel, sources: dict[str, Source], in_blocks: set[str], place: torch.device) -> None:
    """Read everything but the blocks' parameters."""
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if name in sources and name not in in_blocks:
            tensor = read_source(sources[name]).to(place, parameter.dtype)
            _put(model, name, nn.Parameter(tensor, requires_grad=False))
    model.tie_weights(missing_keys=set(model.state_dict()) - set(sources), recompute_mapping=False)
    for name, buffer in list(model.named_buffers()):
        _put(model, name, (read_source(sources[name]) if name in sources else buffer).to(place, buffer.dtype))


def _put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, tensor)


def _pinned(tensor: torch.Tensor, place: torch.device) -> torch.Tensor:
    return tensor.pin_memory() if place.type == "cuda" else tensor


def _checked(tensor: torch.Tensor, wanted: torch.Tensor, parameter: str, name: str) -> torch.Tensor:
    """A parameter in the type it computes in; what was put together of pieces is only now known to fit."""
    if tensor.shape != wanted.shape:
        raise ModelError(
            f"checkpoint {name!r} gives {parameter} the shape {tuple(tensor.shape)}, the model has "
            f"{tuple(wanted.shape)}: use --weights memory"
        )
    return tensor.to(wanted.dtype)
