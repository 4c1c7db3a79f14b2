"""Writing a GGUF of a pruned Llama, Mistral, Qwen2 or Qwen3 checkpoint, in the precision that it is stored in.

Names of tensors and metadata are the `gguf` package's; what must be known besides is how llama.cpp orders rotary
dimensions (Llama's queries and keys are stored interleaved). Its tokenisers are in `gguf_tokenizer`.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from prunesearch import stopping
from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.export import gguf_edit, gguf_record, gguf_tokenizer, llama_cpp
from prunesearch.export.atomic import new_file
from prunesearch.model.loading import LoadedModel
from prunesearch.model.surgery import pruned

_ARCHITECTURES: Mapping[str, Any] = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
_TYPES: Mapping[torch.dtype, Any] = {
    torch.float32: gguf.GGMLQuantizationType.F32,
    torch.float16: gguf.GGMLQuantizationType.F16,
    torch.bfloat16: gguf.GGMLQuantizationType.BF16,
}
_FILE_TYPES: Mapping[torch.dtype, Any] = {
    torch.float32: gguf.LlamaFileType.ALL_F32,
    torch.float16: gguf.LlamaFileType.MOSTLY_F16,
    torch.bfloat16: gguf.LlamaFileType.MOSTLY_BF16,
}


def write(loaded: LoadedModel, candidate: LayerSubset, out: Path, *, compare: bool) -> llama_cpp.LlamaCppCheck | None:
    """Write the candidate as one GGUF file.

    Args:
        compare: load it in llama.cpp and compare what it predicts, before it takes its name.

    Raises:
        InputError: not a model type, setting or tokeniser that can be written.
        VerificationError: llama.cpp predicts something else.
        StorageError: `out` cannot be written.
    """
    config = loaded.model.config
    if config.model_type not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise InputError(
            f"a GGUF can be written of {known} checkpoints, not of {config.model_type}: give the model as .gguf, or "
            f"{llama_cpp.OTHER_WAY}"
        )
    if loaded.layers.one_pass:
        raise InputError("a GGUF is written from weights in memory: leave out --weights")
    architecture = _ARCHITECTURES[config.model_type]
    gguf_edit.check_architecture(gguf.MODEL_ARCH_NAMES[architecture], candidate)
    _check_settings(loaded.model)
    tokenizer = gguf_tokenizer.read(loaded.tokenizer, config.vocab_size)
    with new_file(out) as path:
        with pruned(loaded.model, candidate) as model:
            writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
            _add_settings(writer, model, out.stem)
            tokenizer.add_to(writer, config.vocab_size)
            record = gguf_record.Record(candidate, loaded.fingerprint)
            for name, tensor in _tensors(model, architecture):
                stopping.check()
                _add(writer, record, name, tensor)
            record.add_to(writer)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            kind = _TYPES[model.dtype].name
        return llama_cpp.check(path, loaded, candidate, kind, tokenizer.probes()) if compare else None


def _add_settings(writer: Any, model: PreTrainedModel, name: str) -> None:  # noqa: ANN401
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[model.dtype])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type", "default") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _check_settings(model: PreTrainedModel) -> None:
    """Refuse what llama.cpp would compute otherwise.

    Raises:
        InputError: there is such a setting.
    """
    config = model.config
    rope = config.rope_parameters
    if rope.get("rope_type", "default") not in ("default", "linear", "llama3"):
        raise InputError(f"rotary embeddings of type {rope['rope_type']!r} cannot be written to a GGUF yet")
    if (share := rope.get("partial_rotary_factor", 1.0)) != 1.0:
        raise InputError(f"llama.cpp turns whole heads, and this model {share} of each: {llama_cpp.OTHER_WAY}")
    if config.hidden_act not in ("silu", "swish"):
        raise InputError(f"llama.cpp's {config.model_type} computes silu, not {config.hidden_act}: export a checkpoint")
    if other := {tensor.dtype for tensor in model.state_dict().values()} - set(_TYPES):
        raise InputError(f"a GGUF has no weights of {min(map(str, other))}: give --dtype bfloat16, float16 or float32")
    types = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" in types or (config.model_type == "mistral" and config.sliding_window):
        raise InputError("llama.cpp's Llama and Qwen have no sliding windows, and this model has: export a checkpoint")


def _tensors(model: PreTrainedModel, architecture: Any) -> Iterator[tuple[str, torch.Tensor]]:  # noqa: ANN401
    """The tensors by their names in GGUF, as llama.cpp wants them."""
    config = model.config
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    written: set[int] = set()
    interleaved = architecture == gguf.MODEL_ARCH.LLAMA
    rope = config.rope_parameters
    if rope.get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(config)
    for parameter, tensor in model.state_dict().items():
        if parameter in tied and tensor.data_ptr() in written:
            continue  # it is the very tensor; one that is only said to be may hold other weights
        written.add(tensor.data_ptr())
        name = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise InputError(f"{parameter} has no place in a GGUF of this architecture")
        if interleaved and ".attn_q." in name:
            tensor = _interleave(tensor, config.num_attention_heads)
        if interleaved and ".attn_k." in name:
            tensor = _interleave(tensor, config.num_key_value_heads)
        yield name, tensor


def _interleave(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Turn rotary halves into pairs: dimension i and i + d/2 of each head become neighbours."""
    shape = tensor.shape
    return tensor.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _llama3_factors(config: PretrainedConfig) -> torch.Tensor:
    """Llama 3.1's rotary scaling as a divisor of each frequency (`transformers.modeling_rope_utils`)."""
    rope, head = config.rope_parameters, config.head_dim
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    old = rope["original_max_position_embeddings"]

    def divisor(frequency: float) -> float:
        length = 2 * math.pi / frequency
        if length < old / high:
            return 1.0
        if length > old / low:
            return float(factor)
        smooth = (old / length - low) / (high - low)
        return float(1 / ((1 - smooth) / factor + smooth))

    return torch.tensor([divisor(rope["rope_theta"] ** (-i / head)) for i in range(0, head, 2)])


def _add(writer: Any, record: gguf_record.Record, name: str, tensor: torch.Tensor) -> None:  # noqa: ANN401
    """Add a tensor; vectors are float32, as llama.cpp wants them."""
    tensor = tensor.detach().cpu().contiguous()
    kind = gguf.GGMLQuantizationType.F32 if tensor.ndim == 1 else _TYPES[tensor.dtype]
    data: np.ndarray[Any, Any]
    if kind == gguf.GGMLQuantizationType.F32:
        data = tensor.float().numpy()
    elif kind == gguf.GGMLQuantizationType.F16:
        data = tensor.numpy()
    else:
        data = tensor.view(torch.uint8).numpy()
    record.see(name, kind.name, data)
    writer.add_tensor(name, data, raw_dtype=kind)
