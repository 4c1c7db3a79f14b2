"""A tiny random model of every causal-LM type that the installed transformers can build from its
config.
"""

import inspect
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TYPES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
"""All causal-LM model types of the installed transformers."""
SAMPLE = (
    "afmoe big_bird cohere2_moe doge falcon_h1 gpt-sw3 granitemoehybrid iquestcoder llama4_text "
    "minimax_m3_vl_text mvp persimmon qwen3_5_moe_text roformer xlm-roberta"
).split()
"""Every twelfth type, for tests; the benchmark of exports tries all."""
N_LAYERS = 6
_MOST_PARAMS = 20_000_000

# By the names that config classes share; a class takes what it has.
_SMALL: dict[str, Any] = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "shared_intermediate_size": 64,
    "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "num_shared_experts": 1,
    "ffn_dim": 64, "word_embed_proj_dim": 32, "rotary_dim": 8, "n_inner": 64, "embedding_size": 32, "d_model": 32,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "qk_head_dim": 16,
    "v_head_dim": 8, "sliding_window": 8, "attention_window": 8, "attention_window_size": 8, "lru_width": 32,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8,
    "mamba_d_ssm": 64, "state_size": 8, "n_groups": 1, "chunk_size": 8, "type_vocab_size": 2,
    "encoder_layers": N_LAYERS, "decoder_layers": N_LAYERS, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 264, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
# Fields that are None by default and have to be small all the same.
_FILLED = ("head_dim", "num_key_value_heads", "intermediate_size", "pad_token_id")
# What a type needs beside: latent attention has no grouped heads, hybrids have both kinds of blocks
# among six.
_LATENT = """axk1 axk2 bailing_hybrid deepseek_v2 deepseek_v3 deepseek_v32 dots3_note dots3_note_text glm4_moe_lite
    glm_moe_dsa kimi_linear longcat_flash minicpm3 youtu""".split()
_ENCODERS = "reformer bert bert-generation big_bird electra ernie megatron-bert roberta".split()
_SHARED_KV = ["sliding_attention", "full_attention"] * 3
_SPECIAL: dict[str, dict[str, Any]] = {
    **{name: {"num_key_value_heads": 4} for name in _LATENT},
    "bamba": {"attn_layer_indices": [2, 5]},
    "deepseek_v2": {
        "num_key_value_heads": 4,
        "topk_group": 1,
        "n_group": 1,
        "num_experts_per_tok": 2,
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "gemma3n_text": {"layer_types": _SHARED_KV, "num_kv_shared_layers": 2},
    "gemma4_text": {"layer_types": _SHARED_KV, "num_kv_shared_layers": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 3]]},
    "granitemoehybrid": {"layer_types": ["mamba", "mamba", "attention"] * 2},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention"] * 2},
    "longcat_flash": {"num_layers": 6, "num_key_value_heads": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "nemotron_h": {"layers_block_type": ["mamba", "moe", "full_attention"] * 2},
    "xlstm": {"num_heads": 4},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    **{name: {"is_decoder": True} for name in _ENCODERS},
}


def tiny_config(model_type: str, **changes: object) -> PretrainedConfig:
    """The type's default config with everything made small.

    Raises:
        Exception: the config class does not accept it; there are as many kinds as classes.
    """
    return _shrunk(CONFIG_MAPPING[model_type], {**_SPECIAL.get(model_type, {}), **changes})


def tiny_model(model_type: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random model of the type, of six small blocks.

    Raises:
        Exception: transformers cannot build it from its config, or not small.
    """
    config = tiny_config(model_type, **changes)
    with torch.device("meta"):
        params = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if params > _MOST_PARAMS:
        raise ValueError(f"{params:,} parameters are not tiny")
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.eval()
    return model


def _shrunk(config_class: type[PretrainedConfig], changes: dict[str, Any]) -> PretrainedConfig:
    default = config_class()
    stored = default.to_dict()
    settings: dict[str, Any] = {}
    for name, value in _SMALL.items():
        own = config_class.attribute_map.get(name, name)
        fixed = isinstance(inspect.getattr_static(config_class, own, None), property)
        if own not in stored or fixed or isinstance(stored[own], list | dict):
            continue
        if stored[own] is not None or name in _FILLED:
            settings[own] = value
    for name in config_class.sub_configs:
        part = getattr(default, name, None)
        if isinstance(part, PretrainedConfig):
            inner = changes.pop(name, {})
            settings[name] = _shrunk(
                type(part), {**_SPECIAL.get(type(part).model_type, {}), **inner}
            )
    return config_class(**{**settings, **changes})
