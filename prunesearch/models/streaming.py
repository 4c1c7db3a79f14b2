"""Opening of models that are larger than memory.

Everything but the blocks is loaded. The blocks are read whenever they are used.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from prunesearch.compat.transformers import no_init_weights
from prunesearch.errors import ModelError, one_line
from prunesearch.models.fingerprint import fingerprint
from prunesearch.models.guard import guarded
from prunesearch.models.layers import StreamedLayers
from prunesearch.models.loading import (
    TOKENIZER_ADVICE,
    LoadedModel,
    device_named,
    forget_code,
    is_quantised,
)
from prunesearch.models.model_configs import NO_MODEL, read_config
from prunesearch.models.safetensors_files import Stored, tensors_of
from prunesearch.models.sizes import sizes_of
from prunesearch.models.source import resolve, with_weights
from prunesearch.models.structure import architecture_of, blocks_of, input_device
from prunesearch.models.weight_map import (
    Source,
    keep_exact_parts,
    locate,
    read_source,
)


def open_streamed(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    host: bool = False,
) -> LoadedModel:
    """Open a safetensors checkpoint for scoring, without loading its blocks.

    The whole checkpoint is read once, tensor by tensor, to compute its fingerprint. This is the
    same fingerprint that `loading.load` computes.

    Args:
        name: a local folder, or a Hugging Face id, which is downloaded.
        revision: branch, tag or commit of a Hugging Face id.
        dtype: dtype to compute in, as in `loading.load`.
        device: torch device, as in `loading.load`.
        trust_remote_code: run modelling code that ships with the checkpoint.
        host: keep the blocks in host memory instead of on disk, for a GPU that is too small.

    Raises:
        ModelError: the model is missing, damaged, quantised or of an unsupported architecture, or
            it is stored in unknown pieces.
    """
    # Find the files, and refuse a model that cannot be streamed.
    place = device_named(device)
    source = resolve(name, revision=revision, trust_remote_code=trust_remote_code)
    folder = source.folder
    if folder is None:
        raise ModelError(
            f"{name!r} is a GGUF, which cannot be streamed: use `offload` none, or its safetensors"
        )
    config = read_config(str(folder), trust_remote_code)
    architecture_of(config, trust_remote_code)
    if is_quantised(config):
        raise ModelError(
            f"model {name!r} is quantised, which cannot be streamed: give the unquantised model"
        )
    source = with_weights(source)
    if not source.safetensors:
        raise ModelError(
            f"{name!r} holds no safetensors, only those can be streamed: use `offload` none"
        )
    # Build the model without weights, and locate each of its parameters in the files.
    stored = tensors_of(source.weights)
    model = _empty(config, dtype, stored, trust_remote_code)
    with guarded(f"cannot load the tokenizer of {name!r}", folder, advice=TOKENIZER_ADVICE):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if not trust_remote_code:
        forget_code(model.config, tokenizer)
    sources: dict[str, Source] = {**locate(model, stored, name)}
    prefix = architecture_of(config).blocks + "."
    in_blocks = _names_in_blocks(model, prefix)

    def read_checked(parameter: str) -> torch.Tensor:
        tensor = read_source(sources[parameter])
        return _checked(tensor, model.get_parameter(parameter), parameter, name)

    try:
        # Load everything but the blocks.
        _fill(model, sources, in_blocks, place)
        if host:
            for parameter in in_blocks:
                sources[parameter] = _pinned(read_source(sources[parameter]), place)
        digest = fingerprint(model, read_checked)
    except OSError as error:
        raise ModelError(f"cannot read the weights of {name!r}: {one_line(error)}") from None
    except RuntimeError as error:  # raised by torch when memory runs out
        raise ModelError(
            f"what stays in memory of model {name!r} does not fit {place} ({one_line(error)}): "
            f"prunesearch plan {name} "
            "says how much that is"
        ) from None
    # Give each block the sources of its parameters.
    blocks = blocks_of(model)
    per_block: list[dict[str, Source]] = []
    for index, block in enumerate(blocks):
        per_block.append({p: sources[f"{prefix}{index}.{p}"] for p, _ in block.named_parameters()})
    layers = StreamedLayers(blocks, per_block, place)
    model.train(False)
    return LoadedModel(
        name, model, tokenizer, digest, sizes_of(model), layers, source, trust_remote_code
    )


def _names_in_blocks(model: PreTrainedModel, prefix: str) -> set[str]:
    """Return the names of all parameters of the blocks, including tied ones.

    Args:
        model: model with the blocks.
        prefix: start of the names of the blocks' parameters.
    """
    names = set()
    for name, _ in model.named_parameters(remove_duplicate=False):
        if name.startswith(prefix):
            names.add(name)
    return names


@contextmanager
def set_aside(loaded: LoadedModel) -> Iterator[None]:
    """Free the memory of the weights that are not streamed inside the ``with`` block.

    They are read again when the block ends.

    Raises:
        OSError: the weights cannot be read again.
    """
    model, place = loaded.model, input_device(loaded.model)
    sources: dict[str, Source] = {**locate(model, tensors_of(loaded.source.weights), loaded.name)}
    prefix = architecture_of(model.config).blocks + "."
    named = dict(model.named_parameters(remove_duplicate=False))
    in_blocks = _names_in_blocks(model, prefix)
    if isinstance(loaded.layers, StreamedLayers):
        loaded.layers.release()
    # Replace the parameters by empty ones. `named` must not keep the old ones alive.
    for name in named.keys() & sources.keys() - in_blocks:
        empty = torch.empty_like(named[name], device="meta")
        _put(model, name, nn.Parameter(empty, requires_grad=False))
    named.clear()
    try:
        yield
    finally:
        _fill(model, sources, in_blocks, place)


class _WeightsOnMeta(TorchFunctionMode):
    """A mode in which new weights take no memory.

    With `init_empty_weights` alone, each weight takes memory for a moment, which fragments the
    heap. For a model of 8 GiB this took 2.8 GiB of address space, although it was never touched.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> Any:  # noqa: ANN401
        """Call a function of torch.

        ``torch.empty`` uses the meta device. Buffers are computed as usual.
        """
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _empty(
    config: PretrainedConfig, dtype: str, stored: Mapping[str, Stored], trust_remote_code: bool
) -> PreTrainedModel:
    """Build a model with its parameters on the meta device.

    Its buffers (rotary frequencies) are real.
    """
    # The dtype is the requested one, that of the config, or that of the files.
    wanted = config.dtype
    if dtype != "auto":
        wanted = getattr(torch, dtype)
    if not isinstance(wanted, torch.dtype):
        wanted = _first_type(stored)
    with (
        guarded(NO_MODEL),
        init_empty_weights(include_buffers=False),
        _WeightsOnMeta(),
        no_init_weights(),
    ):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=wanted, trust_remote_code=trust_remote_code
        )
    keep_exact_parts(model)
    return model.requires_grad_(False)


def _first_type(stored: Mapping[str, Stored]) -> torch.dtype:
    """Return the dtype of a checkpoint whose config names none.

    It is the dtype of the first weight, by name, in the first file.
    """
    for _, place in sorted(stored.items(), key=lambda item: (item[1].path, item[0])):
        if place.dtype.is_floating_point and place.dtype.itemsize > 1:
            return place.dtype
    return torch.float32


def _fill(
    model: PreTrainedModel, sources: dict[str, Source], in_blocks: set[str], place: torch.device
) -> None:
    """Read everything but the parameters of the blocks.

    Args:
        model: model to fill.
        sources: source of each parameter.
        in_blocks: names of the parameters of the blocks.
        place: device to put the weights on.
    """
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if name in sources and name not in in_blocks:
            tensor = read_source(sources[name]).to(place, parameter.dtype)
            _put(model, name, nn.Parameter(tensor, requires_grad=False))
    # A tied parameter that is not stored is the tensor that it is tied to.
    model.tie_weights(missing_keys=set(model.state_dict()) - set(sources), recompute_mapping=False)
    for name, buffer in list(model.named_buffers()):
        stored = read_source(sources[name]) if name in sources else buffer
        _put(model, name, stored.to(place, buffer.dtype))


def _put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Set a parameter or a buffer of a model."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, tensor)


def _pinned(tensor: torch.Tensor, place: torch.device) -> torch.Tensor:
    """Return a tensor in pinned memory if it is to be copied to a GPU, which is faster from
    there.
    """
    return tensor.pin_memory() if place.type == "cuda" else tensor


def _checked(tensor: torch.Tensor, wanted: torch.Tensor, parameter: str, name: str) -> torch.Tensor:
    """Return a parameter in the dtype in which it computes.

    The shape of a tensor that is joined from pieces is only known now.

    Raises:
        ModelError: the tensor has another shape than the model's parameter.
    """
    if tensor.shape != wanted.shape:
        raise ModelError(
            f"checkpoint {name!r} gives {parameter} the shape {tuple(tensor.shape)}, the model has "
            f"{tuple(wanted.shape)}: use `offload` none"
        )
    return tensor.to(wanted.dtype)
