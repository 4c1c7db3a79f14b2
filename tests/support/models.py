"""Tiny random models and tokenizers, built in milliseconds."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from prunesearch.candidate import LayerSubset
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.layers import ResidentLayers
from prunesearch.models.loading import LoadedModel
from prunesearch.models.structure import blocks_of
from prunesearch.objectives.base import ChunkWork, Objective

N_LAYERS = 6


def byte_tokenizer(*merges: tuple[str, str], ascii_only: bool = False) -> PreTrainedTokenizerFast:
    """One token per byte, and one for each merge; 0 begins and ends texts."""
    letters = [
        letter
        for letter in pre_tokenizers.ByteLevel.alphabet()
        if letter.isascii() or not ascii_only
    ]
    words = [*sorted({*letters, "Ġ"}), *map("".join, merges)]
    tokenizer = Tokenizer(
        models.BPE({"<s>": 0} | {word: i + 1 for i, word in enumerate(words)}, list(merges))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<s>",
        pad_token="<s>",
        model_max_length=512,
    )


_WINDOW = {"sliding_window": 8}
_ALTERNATING = ["sliding_attention", "sliding_attention", "full_attention"] * 2
_EXPERTS = {
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}


_GPT2_NAMES = {"n_embd": 32, "n_inner": 64, "n_layer": N_LAYERS, "n_head": 4, "n_positions": 512}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": _WINDOW,
    "qwen2": {},
    "qwen3": {},
    "gemma2": {**_WINDOW, "layer_types": _ALTERNATING, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_WINDOW, "layer_types": _ALTERNATING, "query_pre_attn_scalar": 8},
    "olmo2": {},
    "cohere2": {**_WINDOW, "layer_types": _ALTERNATING},
    "phi": {},
    "phi3": {
        **_WINDOW,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 1.0,
        },
    },
    "gpt2": _GPT2_NAMES,
    "gpt_neox": {},
    "gptj": {**_GPT2_NAMES, "rotary_dim": 8},
    "falcon": {"multi_query": False},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.3},
    "smollm3": {"no_rope_layers": [1, 1, 0, 1, 1, 0]},
    "mixtral": _EXPERTS,
    "qwen3_moe": {**_EXPERTS, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
    "qwen3_next": {
        **_EXPERTS,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2,
        "shared_expert_intermediate_size": 16,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "lfm2": {"full_attn_idxs": [2, 5], "layer_types": None, "block_auto_adjust_ff_dim": False},
}
"""Model types and what a tiny one needs beside `tiny`'s own settings."""


def tiny(architecture: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:  # noqa: ANN401 (fields of any config class)
    """A random model of six small blocks, whose blocks differ enough that their order matters."""
    config_class = CONFIG_MAPPING[architecture]
    settings = {
        "vocab_size": 264,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "initializer_range": 0.3,
        **ARCHITECTURES[architecture],
        **changes,
    }
    fixed = {name for name in settings if isinstance(getattr(config_class, name, None), property)}
    names = {
        config_class.attribute_map.get(name, name): settings[name]
        for name in settings
        if name not in fixed
    }
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config_class(**names))
    model.eval()
    return model


def resident(model: PreTrainedModel) -> ResidentLayers:
    """A model's blocks, as they are in memory."""
    return ResidentLayers(blocks_of(model))


def results_of(
    loaded: LoadedModel, objective: Objective, *candidates: LayerSubset
) -> list[list[Any]]:
    """Score candidates together, on all chunks.

    Return for each candidate what each chunk gave: its rows, or the error.
    """
    work = [ChunkWork(chunk, candidates) for chunk in objective.chunks]
    scored = {}
    for result in objective.score(work, Forward(loaded.model, loaded.layers)):
        scored[result.chunk.index, result.candidate] = result.error or result.rows
    return [[scored[chunk.index, c] for chunk in objective.chunks] for c in candidates]


def store_head_apart(folder: Path) -> torch.Tensor:
    """Give a model on disk a head of its own, whatever its config says of tying, and return the
    head.
    """
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return weights["lm_head.weight"]


# Llama-3.1-70B's published numbers.
LLAMA_70B = LlamaConfig(
    vocab_size=128256,
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=131072,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    dtype="bfloat16",
)
