"""Base of the formats that leave out single sublayers, and ship with code that loads them.

Stock architectures cannot leave out a sublayer. So such a checkpoint has a model type of its own,
and a modelling file that extends the stock one.

No format writes transformers' own ``per_layer_config`` with ``skip``. No modelling code of this
version respects it, so a model would silently keep the sublayers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.export.formats.registry import ExportFormat
from prunesearch.runtime.json_values import JsonObject

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from prunesearch.export.config_file import ConfigFile
    from prunesearch.models.architectures import Sublayer

_CODE = "modeling_pruned"


@dataclass(frozen=True)
class Gone:
    """New indices of the kept blocks that lack a sublayer."""

    attention: tuple[int, ...]
    mlp: tuple[int, ...]


@dataclass(frozen=True)
class FormatWithCode(ExportFormat):
    """A format that ships with a modelling file.

    Attributes:
        prefix: beginning of the names of its classes.
        keeps_norms: whether the norm of a sublayer that is gone stays.
    """

    prefix: str = "Pruned"
    keeps_norms: bool = True

    def model_type(self, config: "PretrainedConfig") -> str:
        """Return the model type of the export, which stock transformers does not know."""
        return f"pruned_{config.model_type}"

    def more_config(self, config: "PretrainedConfig", gone: Gone, blocks: int) -> JsonObject:
        """Return further fields of the config.

        Args:
            config: config of the dense model.
            gone: kept blocks that lack a sublayer.
            blocks: number of kept blocks.
        """
        return {}

    def check_model(self, config: "PretrainedConfig", candidate: LayerSubset) -> None:
        """Refuse a model that transformers has no code for."""
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise InputError(
                f"`export_format` {self.name} builds on code of transformers, and this model "
                "brings its own: use `export_format` zeroed"
            )

    def left_out_parameters(self, model: "PreTrainedModel", dropped: LayerSubset) -> set[str]:
        """Return the parameters of the dropped sublayers."""
        from prunesearch.export.layout import sublayer_parameters

        return sublayer_parameters(model, dropped, norms=not self.keeps_norms)

    def write_config(
        self, edited: "ConfigFile", config: "PretrainedConfig", candidate: LayerSubset, out: Path
    ) -> None:
        """Write the config, and the modelling file."""
        # The code counts the kept blocks.
        number = {old: new for new, old in enumerate(candidate.kept)}
        gone = Gone(
            tuple(number[i] for i in candidate.attention), tuple(number[i] for i in candidate.mlp)
        )
        stored = {
            **edited.values,
            # Stock transformers does not know this model type. Otherwise it would load the model
            # and ignore the code.
            "model_type": self.model_type(config),
            "architectures": [f"{self.prefix}ForCausalLM"],
            "auto_map": {
                "AutoConfig": f"{_CODE}.{self.prefix}Config",
                "AutoModelForCausalLM": f"{_CODE}.{self.prefix}ForCausalLM",
            },
            "dropped_attention": list(gone.attention),
            "dropped_mlp": list(gone.mlp),
            **self.more_config(config, gone, len(candidate.kept)),
        }
        edited.with_values(stored).write(out)
        (out / f"{_CODE}.py").write_text(self._code(config), encoding="utf-8")

    def _code(self, config: "PretrainedConfig") -> str:
        """Return the text of the modelling file."""
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

        from prunesearch.models.structure import architecture_of

        architecture = architecture_of(config)
        stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        assert architecture.attention is not None and architecture.mlp is not None
        # Norms that go with their sublayers.
        norms: list[str | None] = [None, None]
        if not self.keeps_norms:
            norms = [architecture.attention.norm, architecture.mlp.norm]
        template = Template(
            resources.files("prunesearch.export").joinpath("modeling_pruned.py.txt").read_text()
        )
        return template.substitute(
            config=type(config).__name__,
            model=stock.__name__,
            model_type=self.model_type(config),
            stock_type=config.model_type,
            config_class=f"{self.prefix}Config",
            model_class=f"{self.prefix}ForCausalLM",
            blocks=architecture.blocks,
            attention=repr(_lengths(architecture.attention)),
            mlp=repr(_lengths(architecture.mlp)),
            norms=repr(norms),
        )


def _lengths(sublayer: "Sublayer") -> Mapping[str, int]:
    """Return the length of the tuple that each module of a sublayer returns; 0 for a tensor."""
    return {name: sublayer.returns.get(name, 0) for name in sublayer.modules}
