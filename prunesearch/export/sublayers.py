"""Export forms for candidates that drop single attention or MLP sublayers.

Stock architectures cannot leave out a sublayer, so there are three forms:

* ``zeroed``: the weights of the sublayers are zeros in the unchanged architecture. The checkpoint
  loads anywhere, but it is neither smaller nor faster than the dense one.
* ``deci``: `block_configs` of DeciLM (nemotron-nas), which vLLM runs. For Llama only.
* ``remote-code``: a bundled modelling file that extends the stock one and leaves the sublayers out.
  For transformers 5.

No form writes transformers' own ``per_layer_config`` with ``skip``. No modelling code of this
version respects it, so a model would silently keep the sublayers.
"""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, ModelError
from prunesearch.export.config_file import ConfigFile
from prunesearch.export.layout import sublayer_parameters
from prunesearch.models.structure import architecture_of
from prunesearch.runtime.json_values import JsonObject

DESCRIPTIONS: Mapping[str, str] = {
    "plain": "An ordinary checkpoint: whatever loads the base model loads it.",
    "zeroed": "Dropped sublayers are there with weights of zero: it loads wherever the base model "
    "does, and is neither "
    "smaller nor faster for them.",
    "deci": "Dropped sublayers are gone. vLLM runs it as DeciLM (nemotron-nas); transformers 5 "
    "or newer with trust_remote_code=True.",
    "remote-code": "Dropped sublayers are gone, and are saved in memory and time. transformers 5 "
    "or newer runs it "
    "with trust_remote_code=True and the bundled modelling file.",
}
_CODE = "modeling_pruned"
_DECI = ("llama",)


def check(config: PretrainedConfig, candidate: LayerSubset, form: str) -> None:
    """Refuse a form that cannot express a model or a candidate.

    Raises:
        InputError: the form does not fit. The message names a form that does.
        ModelError: the sublayers of this model type cannot be dropped one by one.
    """
    architecture = architecture_of(config)
    if trusts(form) and hasattr(config, "auto_map"):
        raise InputError(
            f"--as {form} writes code for stock models, and this one runs code of its own: use "
            f"--as zeroed"
        )
    if candidate.whole_blocks and form != "deci":
        raise InputError(
            f"--as {form} is for dropped sublayers; layers {candidate.text} are whole: leave it out"
        )
    if not candidate.whole_blocks and (architecture.attention is None or architecture.mlp is None):
        raise ModelError(
            f"the sublayers of {config.model_type!r} models cannot be dropped one by one"
        )
    if trusts(form) and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"--as {form} builds on code of transformers, and this model brings its own: use --as "
            f"zeroed"
        )
    if form == "deci":
        _check_deci(config, candidate)


def _check_deci(config: PretrainedConfig, candidate: LayerSubset) -> None:
    """Refuse a model or a candidate that DeciLM, as vLLM runs it, cannot express.

    Raises:
        InputError: the form ``deci`` does not fit.
    """
    if config.model_type not in _DECI:
        raise InputError(
            f"--as deci is for {', '.join(_DECI)}, not {config.model_type}: use --as remote-code "
            f"or zeroed"
        )
    first = candidate.kept[0]
    if first in candidate.attention:
        raise InputError(
            f"--as deci: vLLM needs attention in the first block, and {first}a is dropped: use "
            f"--as remote-code, or "
            f"--protect {first}"
        )
    if config.attention_bias or config.mlp_bias:
        raise InputError(
            "--as deci: DeciLM has no biases, and this model has: use --as remote-code"
        )


def trusts(form: str) -> bool:
    """Return whether a form ships with code that loads it."""
    return form in ("deci", "remote-code")


def zeroed_parameters(model: PreTrainedModel, silent: LayerSubset, form: str) -> set[str]:
    """Return the parameters of the dense model that become zeros."""
    if form != "zeroed":
        return set()
    return sublayer_parameters(model, silent)


def dropped_parameters(model: PreTrainedModel, silent: LayerSubset, form: str) -> set[str]:
    """Return the parameters of the dense model that are left out."""
    if not trusts(form):
        return set()
    # DeciLM has no norm for a sublayer that is gone.
    return sublayer_parameters(model, silent, norms=form == "deci")


def write_config(
    edited: ConfigFile, config: PretrainedConfig, candidate: LayerSubset, form: str, out: Path
) -> None:
    """Write the config of a form, and the code that it needs.

    Args:
        edited: config file without the dropped blocks.
        config: config of the dense model.
        candidate: candidate of the dense model.
        form: one of the forms.
        out: folder to write into.
    """
    if not trusts(form):
        edited.write(out)
        return
    # The code counts the kept blocks.
    number = {old: new for new, old in enumerate(candidate.kept)}
    gone = {
        "attention": [number[i] for i in candidate.attention],
        "mlp": [number[i] for i in candidate.mlp],
    }
    _code_config(edited, config, gone, len(candidate.kept), form).write(out)
    (out / f"{_CODE}.py").write_text(_code(config, form), encoding="utf-8")


def _code_config(
    edited: ConfigFile, config: PretrainedConfig, gone: dict[str, list[int]], number: int, form: str
) -> ConfigFile:
    """Return the config of a form with code.

    Stock transformers does not know its model type. Otherwise it would load the model and ignore
    the code.

    Args:
        edited: config file without the dropped blocks.
        config: config of the dense model.
        gone: new indices of the blocks that lack their ``attention`` or ``mlp``.
        number: number of kept blocks.
        form: one of the forms.
    """
    config_class, model_class = _class_names(form)
    stored = {
        **edited.values,
        "model_type": _model_type(config, form),
        "architectures": [model_class],
        "auto_map": {
            "AutoConfig": f"{_CODE}.{config_class}",
            "AutoModelForCausalLM": f"{_CODE}.{model_class}",
        },
        "dropped_attention": gone["attention"],
        "dropped_mlp": gone["mlp"],
    }
    if form == "deci":
        stored["block_configs"] = _block_configs(config, gone, number)
    return edited.with_values(stored)


def _code(config: PretrainedConfig, form: str) -> str:
    """Return the text of a form's modelling file."""
    architecture = architecture_of(config)
    stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    assert architecture.attention is not None and architecture.mlp is not None
    config_class, model_class = _class_names(form)
    # Norms that go with their sublayers.
    norms = [None, None] if form != "deci" else [architecture.attention.norm, architecture.mlp.norm]
    template = Template(
        resources.files("prunesearch.export").joinpath("modeling_pruned.py.txt").read_text()
    )
    return template.substitute(
        config=type(config).__name__,
        model=stock.__name__,
        model_type=_model_type(config, form),
        stock_type=config.model_type,
        config_class=config_class,
        model_class=model_class,
        blocks=architecture.blocks,
        attention=repr(_lengths(architecture.attention)),
        mlp=repr(_lengths(architecture.mlp)),
        norms=repr(norms),
    )


def _class_names(form: str) -> tuple[str, str]:
    """Return the names of the config class and of the model class."""
    prefix = "DeciLM" if form == "deci" else "Pruned"
    return f"{prefix}Config", f"{prefix}ForCausalLM"


def _model_type(config: PretrainedConfig, form: str) -> str:
    return "nemotron-nas" if form == "deci" else f"pruned_{config.model_type}"


def _lengths(sublayer: Any) -> dict[str, int]:  # noqa: ANN401
    """Return the length of the tuple that each module of a sublayer returns; 0 for a tensor."""
    return {name: sublayer.returns.get(name, 0) for name in sublayer.modules}


def _block_configs(
    config: PretrainedConfig, gone: dict[str, list[int]], number: int
) -> list[JsonObject]:
    """Return the settings of each block that vLLM's `DeciLMForCausalLM` reads.

    Args:
        config: config of the dense model.
        gone: new indices of the blocks that lack their ``attention`` or ``mlp``.
        number: number of kept blocks.
    """
    group = config.num_attention_heads // config.num_key_value_heads
    multiplier = 3 * config.intermediate_size / (2 * config.hidden_size)

    blocks: list[JsonObject] = []
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
        if i in gone["attention"]:
            attention |= {"n_heads_in_group": None, "no_op": True}
        if i in gone["mlp"]:
            ffn |= {"ffn_mult": None, "intermediate_size": None, "no_op": True}
        blocks.append({"attention": attention, "ffn": ffn})
    return blocks
