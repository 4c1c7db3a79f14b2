"""Writer of GGUF files for pruned Llama, Mistral, Qwen2 and Qwen3 checkpoints, in the dtype they
are stored in.

The `gguf` package has the names of tensors and metadata. In addition this module knows the order of
rotary dimensions in llama.cpp: Llama's queries and keys are stored interleaved. Tokenizers are in
`gguf_tokenizer`.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.export import (
    gguf_edit,
    gguf_record,
    gguf_tokenizer,
    gguf_widths,
    llama_cpp,
)
from prunesearch.export.atomic import new_file
from prunesearch.export.formats.registry import narrows
from prunesearch.export.results import LlamaCppCheck
from prunesearch.models.loading import LoadedModel
from prunesearch.models.reordering import order_of
from prunesearch.models.surgery import pruned
from prunesearch.runtime import stopping
from prunesearch.widths.layer_widths import LayerWidths

_ARCHITECTURES: Mapping[str, gguf.MODEL_ARCH] = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
_INTERLEAVED = (gguf.MODEL_ARCH.LLAMA, gguf_widths.ARCHITECTURE)
"""Architectures whose rotary dimensions are stored in pairs."""
_TYPES: Mapping[torch.dtype, gguf.GGMLQuantizationType] = {
    torch.float32: gguf.GGMLQuantizationType.F32,
    torch.float16: gguf.GGMLQuantizationType.F16,
    torch.bfloat16: gguf.GGMLQuantizationType.BF16,
}
_FILE_TYPES: Mapping[torch.dtype, gguf.LlamaFileType] = {
    torch.float32: gguf.LlamaFileType.ALL_F32,
    torch.float16: gguf.LlamaFileType.MOSTLY_F16,
    torch.bfloat16: gguf.LlamaFileType.MOSTLY_BF16,
}


def write(
    loaded: LoadedModel, candidate: LayerSubset, out: Path, *, compare: bool
) -> LlamaCppCheck | None:
    """Write a candidate as one GGUF file.

    Args:
        loaded: dense model.
        candidate: candidate of the dense model.
        out: new GGUF file.
        compare: compare llama.cpp's predictions from the new file with the candidate, before it
            gets its name.

    Raises:
        InputError: the model type, a setting or the tokenizer cannot be written.
        VerificationError: llama.cpp predicts something else.
        StorageError: `out` cannot be written.
    """
    # Refuse a model that cannot be written before any work is done.
    config = loaded.model.config
    if narrows(candidate):
        gguf_widths.check(loaded.model, candidate)
    if config.model_type not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise InputError(
            f"a GGUF can be written of {known} checkpoints, not of {config.model_type}: give the "
            f"model as .gguf, or "
            f"{llama_cpp.OTHER_WAY}"
        )
    if loaded.layers.streamed_once:
        raise InputError("a GGUF is written from weights in memory: leave out `offload`")
    architecture = _ARCHITECTURES[config.model_type]
    if narrows(candidate):
        architecture = gguf_widths.ARCHITECTURE
    else:
        gguf_edit.check_architecture(gguf.MODEL_ARCH_NAMES[architecture], candidate)
    _check_settings(loaded.model)
    tokenizer = gguf_tokenizer.read(loaded.tokenizer, config.vocab_size)
    with new_file(out) as path:
        with pruned(loaded.model, candidate) as model:
            # The header comes first: settings, tokenizer, descriptions of the tensors, and the
            # record of the export.
            writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
            _add_settings(writer, model, out.stem)
            gone: frozenset[str] = frozenset()
            if isinstance(candidate, LayerWidths) and narrows(candidate):
                gguf_widths.add_sizes(writer, model, candidate)
                gone = gguf_widths.gone_parameters(model, candidate)
            else:
                writer.add_feed_forward_length(model.config.intermediate_size)
                writer.add_head_count(model.config.num_attention_heads)
                writer.add_head_count_kv(model.config.num_key_value_heads)
            tokenizer.add_to(writer, config.vocab_size)
            order = order_of(model) if narrows(candidate) else None
            record = gguf_record.Record(candidate, loaded.fingerprint, order)
            for name, tensor in _tensors(model, architecture, gone):
                stopping.check()
                _add(writer, record, name, tensor)
            record.add_to(writer)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            kind = _TYPES[model.dtype].name
        if not compare:
            return None
        return llama_cpp.check(path, loaded, candidate, kind, tokenizer.probes())


def _add_settings(writer: gguf.GGUFWriter, model: PreTrainedModel, name: str) -> None:
    """Write the settings that llama.cpp reads.

    Args:
        writer: writer of the file.
        model: candidate, in memory.
        name: name of the model in the file.
    """
    config = model.config
    head = head_dim(config)
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[model.dtype])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    # Llama 3's scaling is a tensor in a GGUF file, so only linear scaling is a setting.
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type", "default") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def head_dim(config: PretrainedConfig) -> int:
    """Return the size of a head."""
    stated = getattr(config, "head_dim", None)
    return int(stated or config.hidden_size // config.num_attention_heads)


def _check_settings(model: PreTrainedModel) -> None:
    """Refuse a model of which llama.cpp would compute something else.

    Raises:
        InputError: a setting is not supported.
    """
    config = model.config
    rope = config.rope_parameters
    if rope.get("rope_type", "default") not in ("default", "linear", "llama3"):
        raise InputError(
            f"rotary embeddings of type {rope['rope_type']!r} cannot be written to a GGUF yet"
        )
    if (share := rope.get("partial_rotary_factor", 1.0)) != 1.0:
        raise InputError(
            f"llama.cpp turns whole heads, and this model {share} of each: {llama_cpp.OTHER_WAY}"
        )
    if config.hidden_act not in ("silu", "swish"):
        raise InputError(
            f"llama.cpp's {config.model_type} computes silu, not {config.hidden_act}: export a "
            f"checkpoint"
        )
    if other := {tensor.dtype for tensor in model.state_dict().values()} - set(_TYPES):
        raise InputError(
            f"a GGUF has no weights of {min(map(str, other))}: give `dtype` bfloat16, float16 or "
            f"float32"
        )
    # Some configs give the kind of attention per block, and Mistral's does not.
    types = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" in types or (config.model_type == "mistral" and config.sliding_window):
        raise InputError(
            "llama.cpp's Llama and Qwen have no sliding windows, and this model has: export a "
            "checkpoint"
        )


def _tensors(
    model: PreTrainedModel, architecture: gguf.MODEL_ARCH, gone: Collection[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors in llama.cpp's layout, under their names in GGUF.

    Args:
        model: candidate, in memory.
        architecture: llama.cpp's architecture.
        gone: parameters that the candidate does not have.
    """
    config = model.config
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    written: set[int] = set()
    interleaved = architecture in _INTERLEAVED
    head = head_dim(config)
    rope = config.rope_parameters
    if rope.get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(config)
    for parameter, tensor in model.state_dict().items():
        # A tied tensor is written once. It may be declared tied and still have weights of its own.
        if parameter in gone or (parameter in tied and tensor.data_ptr() in written):
            continue
        written.add(tensor.data_ptr())
        name = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise InputError(f"{parameter} has no place in a GGUF of this architecture")
        if interleaved and (".attn_q." in name or ".attn_k." in name):
            tensor = _interleave(tensor, len(tensor) // head)
        yield name, tensor


def _interleave(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Turn rotary halves into pairs: dimensions i and i + d/2 of each head become neighbours."""
    shape = tensor.shape
    return (
        tensor.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
    )


def _llama3_factors(config: PretrainedConfig) -> torch.Tensor:
    """Return Llama 3.1's rotary scaling as a divisor of each frequency.

    The formula is that of `transformers.modeling_rope_utils`.
    """
    rope, head = config.rope_parameters, config.head_dim
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    old = rope["original_max_position_embeddings"]

    def divisor(frequency: float) -> float:
        # Short wavelengths keep their frequency, long ones are divided, and those between are
        # interpolated.
        length = 2 * math.pi / frequency
        if length < old / high:
            return 1.0
        if length > old / low:
            return float(factor)
        smooth = (old / length - low) / (high - low)
        return float(1 / ((1 - smooth) / factor + smooth))

    return torch.tensor([divisor(rope["rope_theta"] ** (-i / head)) for i in range(0, head, 2)])


def _add(
    writer: gguf.GGUFWriter, record: gguf_record.Record, name: str, tensor: torch.Tensor
) -> None:
    """Add a tensor to the file and to the record."""
    tensor = tensor.detach().cpu().contiguous()
    # llama.cpp expects vectors in float32.
    kind = gguf.GGMLQuantizationType.F32 if tensor.ndim == 1 else _TYPES[tensor.dtype]
    # numpy has no bfloat16, so these tensors are passed as bytes.
    data: np.ndarray[Any, Any]
    if kind == gguf.GGMLQuantizationType.F32:
        data = tensor.float().numpy()
    elif kind == gguf.GGMLQuantizationType.F16:
        data = tensor.numpy()
    else:
        data = tensor.view(torch.uint8).numpy()
    record.see(name, kind.name, data)
    writer.add_tensor(name, data, raw_dtype=kind)
