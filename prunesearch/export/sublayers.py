"""How a candidate without some attention and MLP sublayers is written; stock architectures have no place for that.

* ``zeroed``: the sublayers' weights are zeros in the unchanged architecture. Loads anywhere and computes the same, as
  much of it and as slowly as before.
* ``deci``: `block_configs` of DeciLM (nemotron-nas), which vLLM runs; for Llama.
* ``remote-code``: a bundled modelling file on top of the stock one that has no such sublayers.

transformers' own ``per_layer_config`` with ``skip`` is written by none: no modelling code of this version honours it,
and a model would silently keep the sublayers.
"""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, ModelError
from prunesearch.export.layout import sublayer_parameters
from prunesearch.model.anatomy import family_of

PROMISES: Mapping[str, str] = {
    "plain": "An ordinary checkpoint: whatever loads the base model loads it.",
    "zeroed": "Dropped sublayers are there with weights of zero: it loads wherever the base model does, and is neither "
    "smaller nor faster for them.",
    "deci": "Dropped sublayers are gone. vLLM runs it as DeciLM (nemotron-nas); transformers with "
    "trust_remote_code=True.",
    "remote-code": "Dropped sublayers are gone, and are saved in memory and time. transformers runs it with "
    "trust_remote_code=True and the bundled modelling file.",
}
_CODE = "modeling_pruned.py"
_DECI = ("llama",)


def check(config: PretrainedConfig, candidate: LayerSubset, form: str) -> None:
    """Refuse a form for a model or candidate that it cannot say.

    Raises:
        InputError: says which form can.
        ModelError: the model type's sublayers cannot be dropped one by one.
    """
    family = family_of(config)
    if candidate.whole_blocks and form != "deci":
        raise InputError(f"--as {form} is for dropped sublayers; layers {candidate.text} are whole: leave it out")
    if not candidate.whole_blocks and (family.attention is None or family.mlp is None):
        raise ModelError(f"the sublayers of {config.model_type!r} models cannot be dropped one by one")
    if form == "deci":
        _check_deci(config, candidate)


def _check_deci(config: PretrainedConfig, candidate: LayerSubset) -> None:
    if config.model_type not in _DECI:
        raise InputError(
            f"--as deci is for {', '.join(_DECI)}, not {config.model_type}: use --as remote-code or zeroed"
        )
    first = candidate.kept[0]
    if first in candidate.attention:
        raise InputError(
            f"--as deci: vLLM needs attention in the first block, and {first}a is dropped: use --as remote-code, or "
            f"--protect {first}"
        )
    if config.attention_bias or config.mlp_bias:
        raise InputError("--as deci: DeciLM has no biases, and this model has: use --as remote-code")


def trusts(form: str) -> bool:
    """Whether a form is loaded with code that it brings along."""
    return form in ("deci", "remote-code")


def zeroed_parameters(model: PreTrainedModel, silent: LayerSubset, form: str) -> set[str]:
    """Parameters of the dense model that become zeros."""
    return sublayer_parameters(model, silent) if form == "zeroed" else set()


def dropped_parameters(model: PreTrainedModel, silent: LayerSubset, form: str) -> set[str]:
    """Parameters of the dense model that are left out; their norms too where the architecture has none then."""
    return sublayer_parameters(model, silent, norms=form == "deci") if trusts(form) else set()


def write_config(edited: PretrainedConfig, candidate: LayerSubset, form: str, out: Path) -> None:
    """Write the config of a form, and the code it needs."""
    if trusts(form):
        number = {old: new for new, old in enumerate(candidate.kept)}
        gone = {
            "attention": [number[i] for i in candidate.attention],
            "mlp": [number[i] for i in candidate.mlp],
        }
        _write_code(edited, gone, form, out)
    else:
        edited.save_pretrained(out)


def _write_code(edited: PretrainedConfig, gone: dict[str, list[int]], form: str, out: Path) -> None:
    """Write config and modelling file; the model type is one that stock transformers refuses, lest it ignore them."""
    family = family_of(edited)
    stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(edited)]
    assert family.attention is not None and family.mlp is not None
    model_type = "nemotron-nas" if form == "deci" else f"pruned_{edited.model_type}"
    fill = {
        "config": type(edited).__name__,
        "model": stock.__name__,
        "model_type": model_type,
        "stock_type": edited.model_type,
        "config_class": "DeciLMConfig" if form == "deci" else "PrunedConfig",
        "model_class": "DeciLMForCausalLM" if form == "deci" else "PrunedForCausalLM",
        "blocks": family.blocks,
        "attention": repr(_lengths(family.attention)),
        "mlp": repr(_lengths(family.mlp)),
        "norms": repr([family.attention.norm, family.mlp.norm] if form == "deci" else [None, None]),
    }
    template = Template(resources.files("prunesearch.export").joinpath("modeling_pruned.py.txt").read_text())
    (out / _CODE).write_text(template.substitute(fill))
    stored: dict[str, Any] = json.loads(edited.to_json_string())
    stored |= {
        "model_type": model_type,
        "architectures": [fill["model_class"]],
        "auto_map": {
            "AutoConfig": f"modeling_pruned.{fill['config_class']}",
            "AutoModelForCausalLM": f"modeling_pruned.{fill['model_class']}",
        },
        "dropped_attention": gone["attention"],
        "dropped_mlp": gone["mlp"],
    }
    if form == "deci":
        stored["block_configs"] = _block_configs(edited, gone)
    (out / "config.json").write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")


def _lengths(sublayer: Any) -> dict[str, int]:  # noqa: ANN401
    returns = dict(sublayer.returns)
    return {name: returns.get(name, 0) for name in sublayer.modules}


def _block_configs(config: PretrainedConfig, gone: dict[str, list[int]]) -> list[dict[str, Any]]:
    """What vLLM's `DeciLMForCausalLM` reads of each block."""
    group = config.num_attention_heads // config.num_key_value_heads
    multiplier = 3 * config.intermediate_size / (2 * config.hidden_size)

    def block(number: int) -> dict[str, Any]:
        no_attention, no_mlp = number in gone["attention"], number in gone["mlp"]
        return {
            "attention": {
                "n_heads_in_group": None if no_attention else group,
                "no_op": no_attention,
                "replace_with_linear": False,
            },
            "ffn": {
                "ffn_mult": None if no_mlp else multiplier,
                "intermediate_size": None if no_mlp else config.intermediate_size,
                "no_op": no_mlp,
                "replace_with_linear": False,
            },
        }

    return [block(number) for number in range(config.num_hidden_layers)]
