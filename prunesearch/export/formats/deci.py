"""Block configs of DeciLM (nemotron-nas), which vLLM runs. For Llama only."""

from typing import TYPE_CHECKING

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.export.formats.registry import register
from prunesearch.export.formats.with_code import FormatWithCode, Gone
from prunesearch.runtime.json_values import Json, JsonObject

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_TYPES = ("llama",)


class Deci(FormatWithCode):
    """DeciLM has no norm for a sublayer that is gone."""

    def model_type(self, config: "PretrainedConfig") -> str:
        """Return the model type that vLLM knows."""
        return "nemotron-nas"

    def more_config(self, config: "PretrainedConfig", gone: Gone, blocks: int) -> JsonObject:
        """Return the settings of each block."""
        return {"block_configs": _block_configs(config, gone, blocks)}

    def check_model(self, config: "PretrainedConfig", candidate: LayerSubset) -> None:
        """Refuse a model or a candidate that DeciLM, as vLLM runs it, cannot express."""
        super().check_model(config, candidate)
        if config.model_type not in _TYPES:
            raise InputError(
                f"`export_format` deci is for {', '.join(_TYPES)}, not {config.model_type}: "
                "use `export_format` remote-code or zeroed"
            )
        first = candidate.kept[0]
        if first in candidate.attention:
            raise InputError(
                f"`export_format` deci: vLLM needs attention in the first block, and {first}a is "
                f"dropped: use `export_format` remote-code, or `protect` {first}"
            )
        if config.attention_bias or config.mlp_bias:
            raise InputError(
                "`export_format` deci: DeciLM has no biases, and this model has: "
                "use `export_format` remote-code"
            )


def _block_configs(config: "PretrainedConfig", gone: Gone, number: int) -> list[Json]:
    """Return the settings of each block that vLLM's `DeciLMForCausalLM` reads.

    Args:
        config: config of the dense model.
        gone: kept blocks that lack a sublayer.
        number: number of kept blocks.
    """
    group = config.num_attention_heads // config.num_key_value_heads
    multiplier = 3 * config.intermediate_size / (2 * config.hidden_size)

    blocks: list[Json] = []
    for i in range(number):
        attention: JsonObject = {
            "n_heads_in_group": group,
            "no_op": False,
            "replace_with_linear": False,
        }
        ffn: JsonObject = {
            "ffn_mult": multiplier,
            "intermediate_size": config.intermediate_size,
            "no_op": False,
            "replace_with_linear": False,
        }
        # A sublayer that is gone has no sizes.
        if i in gone.attention:
            attention |= {"n_heads_in_group": None, "no_op": True}
        if i in gone.mlp:
            ffn |= {"ffn_mult": None, "intermediate_size": None, "no_op": True}
        blocks.append({"attention": attention, "ffn": ffn})
    return blocks


register(
    Deci(
        "deci",
        "Dropped sublayers are gone. vLLM runs it as DeciLM (nemotron-nas); transformers 5 or "
        "newer with trust_remote_code=True.",
        order=30,
        sublayers=True,
        own_code=True,
        streamed=False,
        prefix="DeciLM",
        keeps_norms=False,
    )
)
