"""A table of model types: the names of their blocks, their attention and their MLPs.

A new architecture is one row of `ARCHITECTURES`, and nothing else. The row states all facts that
other files ask for.

The structure of a type that is not in `ARCHITECTURES` is inferred (`structure.architecture_of`).
Verification proves the result.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

_PLAIN = "input_layernorm"


@dataclass(frozen=True)
class Sublayer:
    """A part of a block that adds one output to the hidden states.

    Attributes:
        modules: names of its modules in a block. A block need not have all of them: hybrids have
            one of several kinds.
        norm: name of the norm before it, if that norm is used by this sublayer alone.
        norms_after: names of the norms between its output and the sum.
        returns: length of the tuple that a module returns, by the module's name. Modules that are
            not listed return only hidden states.
        bare: classes that return only hidden states although `returns` lists their modules.
    """

    modules: tuple[str, ...]
    norm: str | None = None
    norms_after: tuple[str, ...] = ()
    returns: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    bare: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Return the names of all modules that only this sublayer uses, in the order of
        computation.
        """
        return ((self.norm,) if self.norm else ()) + self.modules + self.norms_after


@dataclass(frozen=True)
class Architecture:
    """The structure of a model type.

    Attributes:
        blocks: path of the `ModuleList` of blocks in the causal LM.
        count: config field with the number of blocks.
        attention: attention of a block; None if it cannot be ablated alone.
        mlp: MLP of a block; None if it cannot be ablated alone.
        returns: length of the tuple that a block returns; 0 if it returns only hidden states.
        per_layer_tensors: parameters next to the list of blocks that have a part for each block.
            The value is the axis that consists of these parts.
        refused: reason why models of this type cannot be pruned; None if they can.
        known: True if the model is known to apply its blocks one after the other and do nothing
            else. For other types this is tested before they are scored.
        last_kind: kind that the type's code gives the last block, whatever ``layer_types`` says;
            None if it keeps the kind of the config.
        first_block: reason why the first block cannot be dropped; None if it can.
    """

    blocks: str = "model.layers"
    count: str = "num_hidden_layers"
    attention: Sublayer | None = None
    mlp: Sublayer | None = None
    returns: int = 0
    per_layer_tensors: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    refused: str | None = None
    known: bool = True
    last_kind: str | None = None
    first_block: str | None = None


_SELF = Sublayer(("self_attn",), _PLAIN, returns={"self_attn": 2})
_MLP = Sublayer(("mlp",), "post_attention_layernorm")
_PRE = Architecture(attention=_SELF, mlp=_MLP)
"""Norm, attention, add; norm, MLP, add."""

# Both sublayers read the same norm, which counts as the MLP's.
_PARALLEL = Architecture(attention=replace(_SELF, norm=None), mlp=replace(_MLP, norm=_PLAIN))
# One norm before each sublayer, and one after it.
_SANDWICH = Architecture(
    attention=replace(_SELF, norms_after=("post_attention_layernorm",)),
    mlp=replace(
        _MLP, norm="pre_feedforward_layernorm", norms_after=("post_feedforward_layernorm",)
    ),
)
# Norms only after the sublayers.
_POST = Architecture(
    attention=replace(_SELF, norm=None, norms_after=("post_attention_layernorm",)),
    mlp=replace(_MLP, norm=None, norms_after=("post_feedforward_layernorm",)),
)
_LINEAR = Architecture(attention=replace(_SELF, modules=("self_attn", "linear_attn")), mlp=_MLP)
_MOE = replace(_MLP, modules=("block_sparse_moe", "shared_mlp"))
_GPT2 = Architecture(
    "transformer.h",
    attention=Sublayer(("attn",), "ln_1", returns={"attn": 2}),
    mlp=Sublayer(("mlp",), "ln_2"),
)
_GPTJ = replace(_GPT2, attention=Sublayer(("attn",), returns={"attn": 2}), returns=2)
_GPTJ = replace(_GPTJ, mlp=Sublayer(("mlp",), "ln_1"))
_NEOX = Architecture(
    "gpt_neox.layers",
    attention=Sublayer(("attention",), _PLAIN, returns={"attention": 2}),
    mlp=_MLP,
)
_OPT = Architecture(
    "model.decoder.layers",
    attention=Sublayer(("self_attn",), "self_attn_layer_norm", returns={"self_attn": 2}),
    mlp=Sublayer(("fc1", "fc2"), "final_layer_norm"),
)
_LFM = Architecture(
    attention=Sublayer(
        ("self_attn", "conv", "short_conv"), "operator_norm", returns={"self_attn": 2}
    ),
    mlp=Sublayer(("feed_forward",), "ffn_norm"),
)
_PER_LAYER = {"embed_tokens_per_layer.weight": 1, "per_layer_model_projection.weight": 0}
_POSITION = "its blocks compute with their own number"

ARCHITECTURES: Mapping[str, Architecture] = {
    **dict.fromkeys(
        """arcee aria_text bitnet cwm deepseek_v2 deepseek_v3 deepseek_v32 dots1 ernie4_5
        ernie4_5_moe exaone_moe flint gemma glm glm4_moe glm4_moe_lite granite helium
        hunyuan_v1_dense hunyuan_v1_moe hy_v3 internlm3 iquestcoder jais2 laguna llama mellum
        mimo_v2_flash minicpm3 minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral
        moshi nanochat nemotron olmo olmoe phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss
        smollm3 solar_open starcoder2 youtu""".split(),
        _PRE,
    ),
    **dict.fromkeys("gemma2 gemma3_text".split(), _SANDWICH),
    **dict.fromkeys("olmo2 olmo3 exaone4 flex_olmo".split(), _POST),
    **dict.fromkeys("cohere cohere2 cohere2_moe phi".split(), _PARALLEL),
    **dict.fromkeys("qwen3_next qwen3_5_text qwen3_5_moe_text olmo_hybrid".split(), _LINEAR),
    **dict.fromkeys("granitemoe granitemoeshared granitemoe_swa".split(), replace(_PRE, mlp=_MOE)),
    **dict.fromkeys("lfm2 lfm2_moe lfm3".split(), _LFM),
    **dict.fromkeys("gpt2 gpt-sw3 gpt_bigcode".split(), _GPT2),
    "gpt_neo": replace(_GPT2, returns=2),
    **dict.fromkeys("gptj codegen".split(), _GPTJ),
    "afmoe": replace(
        _PRE,
        attention=replace(_SELF, norms_after=("post_attention_layernorm",)),
        mlp=replace(_MLP, norm="pre_mlp_layernorm", norms_after=("post_mlp_layernorm",)),
    ),
    "apertus": replace(
        _PRE,
        attention=replace(_SELF, norm="attention_layernorm"),
        mlp=replace(_MLP, norm="feedforward_layernorm"),
    ),
    # Bloom's sublayers add the residual themselves, so they cannot be ablated.
    "bloom": Architecture("transformer.h", returns=2),
    "falcon": Architecture(
        "transformer.h",
        attention=Sublayer(("self_attention",), returns={"self_attention": 2}),
        mlp=replace(_MLP, norm=_PLAIN),
        returns=2,
    ),
    "gemma3n_text": Architecture(per_layer_tensors=_PER_LAYER, known=False),
    "gemma4_text": Architecture(per_layer_tensors=_PER_LAYER, last_kind="full_attention"),
    "gemma4_unified_text": Architecture(known=False, last_kind="full_attention"),
    "glm4": replace(
        _PRE,
        attention=replace(_SELF, norms_after=("post_self_attn_layernorm",)),
        mlp=replace(_MLP, norm="post_attention_layernorm", norms_after=("post_mlp_layernorm",)),
    ),
    "glm_moe_dsa": replace(_PRE, attention=replace(_SELF, returns={"self_attn": 3}), known=False),
    "gpt_neox": _NEOX,
    "gpt_oss": replace(_PRE, mlp=replace(_MLP, returns={"mlp": 2})),
    "llama4_text": replace(
        _PRE, mlp=replace(_MLP, modules=("feed_forward",), returns={"feed_forward": 2})
    ),
    "modernbert-decoder": Architecture(
        known=False, first_block="it alone has no norm before its attention"
    ),
    # MPT's MLP adds the residual itself, so it cannot be ablated.
    "mpt": Architecture(
        "transformer.blocks",
        attention=Sublayer(("attn",), "norm_1", returns={"attn": 2}),
        returns=2,
    ),
    "opt": _OPT,
    "persimmon": _PRE,
    "stablelm": _PRE,
    "vaultgemma": replace(_PRE, mlp=replace(_MLP, norm="pre_feedforward_layernorm")),
    "xglm": replace(_OPT, blocks="model.layers"),
    "biogpt": replace(_OPT, blocks="biogpt.layers"),
    **dict.fromkeys(
        """bart bigbird_pegasus blenderbot blenderbot-small marian mbart pegasus plbart
        whisper""".split(),
        Architecture("model.decoder.layers", "decoder_layers"),
    ),
    **dict.fromkeys(
        "mvp trocr".split(), Architecture("model.decoder.layers", "decoder_layers", returns=1)
    ),
    "bamba": Architecture(returns=2),
    "falcon_h1": Architecture(returns=1),
    **dict.fromkeys("falcon_mamba mamba mamba2".split(), Architecture("backbone.layers")),
    "diffllama": Architecture(refused=f"{_POSITION} (lambda_init)"),
    "beam": Architecture(refused=f"{_POSITION} (attn_residual_add_idx)"),
    "zaya": Architecture(
        refused="its blocks hand on their routers' states, which its first block begins"
    ),
    "openai-gpt": Architecture("transformer.h", returns=1),
    "prophetnet": Architecture(
        refused="what was left of it did not compute what was scored when this was tried"
    ),
    "rwkv": Architecture(refused=f"{_POSITION} (rescale_every)"),
    "minimax": Architecture(refused=f"{_POSITION} (slopes of lightning attention)"),
    "xlm": Architecture(refused="its blocks are spread over four lists of parts"),
    "zamba": Architecture(refused="its blocks share weights with each other"),
    "zamba2": Architecture(refused="its blocks share weights with each other"),
    "jamba": Architecture(
        refused="its kinds of blocks follow from a period that its config cannot change block by "
        "block"
    ),
    "gpt_neox_japanese": Architecture(refused="its last block alone has a bias"),
}
