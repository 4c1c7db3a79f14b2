"""Layers of different widths, with a bundled modelling file that builds projections of their sizes.

The widths are in the config under ``per_layer_config``, as transformers writes them. The stock
classes of transformers 5.23 do not read it: they would build layers of one width. So such a
checkpoint has a model type of its own.
"""

from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.export.formats.registry import register
from prunesearch.export.formats.with_code import FormatWithCode
from prunesearch.runtime.json_values import JsonObject
from prunesearch.widths.layer_widths import LayerWidths

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from prunesearch.export.config_file import ConfigFile
    from prunesearch.models.architectures import Sublayer

_CODE = "modeling_narrow"
_CHANNELS, _GROUPS, _HEADS = "intermediate_size", "num_key_value_heads", "num_attention_heads"
_BIASES = ("mlp_output_bias", "attention_output_bias")
_BASE_CODE = """class {name}({stock}):
    config_class = {config}

    def __init__(self, config):
        with _uniform(config) as widths:
            super().__init__(config)
            sizes = config.num_key_value_heads, config.intermediate_size
        _narrow(self.get_submodule("{blocks}"), widths, *sizes)
        self.post_init()


"""
"""The class without a head, which vLLM builds."""


class Widths(FormatWithCode):
    """A checkpoint whose layers have the sizes of the candidate."""

    def model_type(self, config: "PretrainedConfig") -> str:
        """Return the model type of the export, which stock transformers does not know."""
        return f"narrow_{config.model_type}"

    def check_model(self, config: "PretrainedConfig", candidate: LayerSubset) -> None:
        """Refuse a model whose config has no one width, or has it under other names."""
        from prunesearch.models.model_configs import settings_of

        super().check_model(config, candidate)
        if settings_of(config) is not config:
            raise InputError(
                f"`export_format` {self.name} is for models of text alone, and this "
                f"{config.model_type} has other parts: use `export_format` zeroed"
            )
        if not isinstance(candidate, LayerWidths):
            return
        # One number in the config stands for all layers, so it must be that of each whole layer.
        shape = candidate.shape
        experts: list[int] = []
        channels: list[int] = []
        for index, count in enumerate(shape.channels):
            (experts if shape.experts_used(index) else channels).append(count)
        for name, counts in (
            (_CHANNELS, channels),
            (_experts_field(config), experts),
            (_GROUPS, shape.groups),
        ):
            if set(counts) - {0, _stated(config, name)}:
                raise InputError(
                    f"`export_format` {self.name} needs {name} in the config, the same for all "
                    f"layers, and this {config.model_type} has {_stated(config, name)}: use "
                    "`export_format` zeroed"
                )

    def write_config(
        self, edited: "ConfigFile", config: "PretrainedConfig", candidate: LayerSubset, out: Path
    ) -> None:
        """Write the config, and the modelling file."""
        from prunesearch.models.model_configs import meta_model

        # Name the classes that the modelling file defines.
        model = meta_model(config)
        classes = {"AutoConfig": "Config", "AutoModelForCausalLM": "ForCausalLM"}
        if _base_class(model) is not None:
            classes["AutoModel"] = "Model"
        stored = {
            **edited.values,
            "model_type": self.model_type(config),
            "architectures": [f"{self.prefix}ForCausalLM"],
            "auto_map": {name: f"{_CODE}.{self.prefix}{kind}" for name, kind in classes.items()},
            # The sizes of narrow layers differ from these.
            _HEADS: config.num_attention_heads,
            _GROUPS: _stated(config, _GROUPS),
            "head_dim": _head_dim(config),
            **dict.fromkeys(_BIASES, False),
            "per_layer_config": _per_layer(config, candidate),
        }
        edited.with_values(stored).write(out)
        (out / f"{_CODE}.py").write_text(self.code(config, model), encoding="utf-8")

    def code(self, config: "PretrainedConfig", model: "PreTrainedModel") -> str:
        """Return the text of the modelling file.

        Args:
            config: config of the dense model.
            model: the dense model; it may be on the meta device.
        """
        from prunesearch.models.structure import architecture_of

        architecture, base = architecture_of(config), _base_class(model)
        assert architecture.attention is not None and architecture.mlp is not None
        # A class without a head is written if the stock model has one.
        base_code, imported = "", [type(config).__name__, type(model).__name__]
        if base is not None:
            imported.append(base)
            blocks = architecture.blocks.removeprefix(f"{model.base_model_prefix}.")
            base_code = _BASE_CODE.format(
                name=f"{self.prefix}Model",
                stock=base,
                config=f"{self.prefix}Config",
                blocks=blocks,
            )
        # Fill in the template.
        template = Template(
            resources.files("prunesearch.export").joinpath(f"{_CODE}.py.txt").read_text()
        )
        return template.substitute(
            config=type(config).__name__,
            model=type(model).__name__,
            imported=", ".join(imported),
            model_type=self.model_type(config),
            stock_type=config.model_type,
            config_class=f"{self.prefix}Config",
            model_class=f"{self.prefix}ForCausalLM",
            base_code=base_code,
            blocks=architecture.blocks,
            attention=repr(_projections(model, architecture.attention)),
            mlp=repr(_projections(model, architecture.mlp)),
        )


def _stated(config: "PretrainedConfig", name: str) -> int | None:
    """Return a size that the config states for all layers; None if it states no such number."""
    stated = getattr(config, name, None)
    if stated is None and name == _GROUPS:
        stated = getattr(config, _HEADS, None)
    return stated if isinstance(stated, int) else None


def _experts_field(config: "PretrainedConfig") -> str:
    """Return the name of the field with the number of experts."""
    if "num_local_experts" in config.to_dict():
        return "num_local_experts"
    return "num_experts"


def _head_dim(config: "PretrainedConfig") -> int:
    """Return the size of a head. It must not follow from the number of heads of a narrow layer."""
    stated = getattr(config, "head_dim", None)
    if isinstance(stated, int):
        return stated
    return int(config.hidden_size // config.num_attention_heads)


def _per_layer(config: "PretrainedConfig", candidate: LayerSubset) -> JsonObject:
    """Return the sizes of the layers that are not whole, by their new numbers."""
    found: JsonObject = {}
    digits = len(str(len(candidate.kept) - 1))
    experts = candidate.fewer_experts if isinstance(candidate, LayerWidths) else ()
    for number, index in enumerate(candidate.kept):
        # Only what differs from the whole layer is written.
        use = candidate.use(index)
        assert use is not None
        sizes: JsonObject = {}
        skipped = [kind for kind in ("attention", "mlp") if not getattr(use, kind)]
        biased = isinstance(candidate, LayerWidths) and candidate.biases
        if skipped:
            sizes["skip"] = list(skipped)
        if use.channels is not None and index in experts:
            sizes[_experts_field(config)] = use.channels
        elif use.channels is not None:
            sizes[_CHANNELS] = use.channels
            sizes["mlp_output_bias"] = biased
        if use.groups is not None:
            groups = _stated(config, _GROUPS)
            assert groups is not None
            sizes[_GROUPS] = use.groups
            sizes[_HEADS] = config.num_attention_heads // groups * use.groups
            sizes["attention_output_bias"] = biased
        if sizes:
            # Numbers of one length are in order in a sorted file.
            found[str(number).zfill(digits)] = sizes
    return found


def _base_class(model: "PreTrainedModel") -> str | None:
    """Return the name of the stock class without a head; None if the blocks are not inside it."""
    from transformers import MODEL_MAPPING

    from prunesearch.models.structure import architecture_of

    stock: Any = MODEL_MAPPING.get(type(model.config), None)
    inside = architecture_of(model.config).blocks.startswith(f"{model.base_model_prefix}.")
    base = getattr(model, model.base_model_prefix, None)
    if not inside or stock is None or type(base) is not stock:
        return None
    return str(stock.__name__)


def _projections(
    model: "PreTrainedModel", sublayer: "Sublayer"
) -> dict[str, tuple[tuple[str, ...], str, int]]:
    """Return for each module of a sublayer: the names of the projections into it, the projection
    out of it (empty: it cannot be narrowed), and the length of the tuple that it returns.
    """
    from prunesearch.models.structure import blocks_of
    from prunesearch.models.width_shape import attention_of, mlp_of

    found: dict[str, tuple[tuple[str, ...], str, int]] = {}
    for name in sublayer.modules:
        found[name] = (), "", sublayer.returns.get(name, 0)
    # Find the projections of each block by identity, because modules name them differently.
    for block in blocks_of(model):
        parts = []
        if (mlp := mlp_of(model, block)) is not None:
            parts.append((mlp.inputs, mlp.output))
        if (attention := attention_of(model, block)) is not None:
            parts.append(((attention.query, attention.key, attention.value), attention.output))
        for name in sublayer.modules:
            module = getattr(block, name, None)
            if module is None:
                continue
            names = {id(part): where for where, part in module.named_modules()}
            for inputs, output in parts:
                if id(output) in names:
                    into = tuple(names[id(part)] for part in inputs)
                    found[name] = into, names[id(output)], found[name][2]
    return found


register(
    Widths(
        "widths",
        "Layers have the widths that the search gave them, so it is smaller and faster. "
        "transformers 5 or newer runs it with trust_remote_code=True and the bundled modelling "
        "file.",
        order=45,
        whole_blocks=False,
        sublayers=True,
        own_code=True,
        streamed=False,
        narrowed=True,
        prefix="Narrow",
    )
)
