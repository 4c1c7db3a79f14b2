"""The registry of export formats.

A file in this folder that calls `register` adds a format to the command line and to the exports.
The entry states all facts that other files ask for. What a format does differently from a plain
checkpoint, it overrides.

The files of this folder import torch and transformers only inside functions, because help texts
list the formats.

The values of ``--as`` are the formats that write a checkpoint folder. A format that writes a single
file (`ExportFormat.suffix`) has a flag of its own (`ExportFormat.option`), because ``--out`` names
a file then. Such a format needs two lines outside of this folder: the flag in ``cli/export.py``,
and the entry that it selects in `pipeline.export_request`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunesearch.candidate import LayerSubset, named_layers
from prunesearch.errors import InputError, ModelError, UnknownNameError, either
from prunesearch.runtime.registry import Registry
from prunesearch.widths.layer_widths import LayerWidths

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from prunesearch.export.config_file import ConfigFile
    from prunesearch.export.results import ExportedGguf
    from prunesearch.models.loading import LoadedModel


@dataclass(frozen=True)
class ExportFormat:
    """Facts about one export format, and what it does.

    The defaults are those of a plain checkpoint.

    Attributes:
        name: name of the format, as `export_format` takes it.
        description: one or two sentences about what loads the result, for the model card.
        order: position in lists.
        option: option that selects the format. None for ``--as NAME``.
        whole_blocks: whether it can write a candidate that drops whole blocks only.
        sublayers: whether it can write a candidate that drops single attention or MLP sublayers.
        narrowed: whether it can write a candidate that narrows layers.
        filled: whether it keeps the shapes of narrow layers, and sets what is removed to zero.
        own_code: whether it ships with code that loads it.
        other_program: whether another program than transformers reads it. That program does not
            know a model with code of its own.
        suffix: suffix of the file that it writes; None if it writes a folder.
        hub: whether it can be uploaded to the hub.
        shards: whether it can be split into several weight files.
        streamed: whether it can be verified while the weights are streamed from disk.
    """

    name: str
    description: str
    order: int = 50
    option: str | None = None
    whole_blocks: bool = True
    sublayers: bool = False
    narrowed: bool = False
    filled: bool = False
    own_code: bool = False
    other_program: bool = False
    suffix: str | None = None
    hub: bool = True
    shards: bool = True
    streamed: bool = True

    @property
    def selected_by(self) -> str:
        """Option on the command line that selects the format."""
        return self.option or f"--as {self.name}"

    @property
    def field(self) -> str:
        """Setting that selects the format, as error messages name it."""
        if self.option is None:
            return f"`export_format` {self.name}"
        return f"`{self.option.removeprefix('--')}`"

    def check(self, config: "PretrainedConfig", candidate: LayerSubset) -> None:
        """Refuse a model or a candidate that the format cannot express.

        Raises:
            InputError: the format does not fit. The message names a format that does.
            ModelError: the sublayers of this model type cannot be dropped one by one.
        """
        from prunesearch.models.structure import architecture_of
        from prunesearch.models.surgery import check_removable

        if narrows(candidate) and not self.narrowed:
            raise InputError(
                f"{self.field} cannot hold layers of different widths, as {candidate.text} asks "
                f"for: use `export_format` {_for_widths()}"
            )
        if not self.sublayers:
            check_removable(candidate)
            return
        architecture = architecture_of(config)
        if self.own_code and hasattr(config, "auto_map"):
            raise InputError(
                f"`export_format` {self.name} writes code for stock models, and this one runs code "
                f"of its own: use `export_format` {_for_any_code()}"
            )
        if candidate.whole_blocks and not self.whole_blocks:
            raise InputError(
                f"`export_format` {self.name} is for dropped sublayers; "
                f"{named_layers(candidate.text, 'is', 'are')} whole: leave it out"
            )
        has_sublayers = architecture.attention is not None and architecture.mlp is not None
        if not candidate.whole_blocks and not has_sublayers:
            raise ModelError(
                f"the sublayers of {config.model_type!r} models cannot be dropped one by one"
            )
        self.check_model(config, candidate)

    def check_model(self, config: "PretrainedConfig", candidate: LayerSubset) -> None:
        """Refuse what only this format cannot express."""

    def zeroed_parameters(self, model: "PreTrainedModel", dropped: LayerSubset) -> set[str]:
        """Return the parameters of the dense model that become zeros.

        Args:
            model: dense model.
            dropped: the single sublayers that the candidate drops from kept blocks.
        """
        return set()

    def left_out_parameters(self, model: "PreTrainedModel", dropped: LayerSubset) -> set[str]:
        """Return the parameters of the dense model that are left out. The arguments are those of
        `zeroed_parameters`.
        """
        return set()

    def empty_biases(
        self, config: "PretrainedConfig", candidate: LayerSubset
    ) -> dict[str, tuple[int, ...]]:
        """Return the shapes of biases that the checkpoint has and the dense model has not.

        They are zero where no bias stands for a removed part.
        """
        return {}

    def write_config(
        self, edited: "ConfigFile", config: "PretrainedConfig", candidate: LayerSubset, out: Path
    ) -> None:
        """Write the config, and the code that the format needs.

        Args:
            edited: config file without the dropped blocks.
            config: config of the dense model.
            candidate: candidate of the dense model.
            out: folder to write into.
        """
        edited.write(out)

    def write_file(
        self, loaded: "LoadedModel", candidate: LayerSubset, out: Path
    ) -> "ExportedGguf":
        """Write and verify a candidate as one file. Only formats with a `suffix` have this."""
        raise NotImplementedError(f"the format {self.name} writes a folder")


def narrows(candidate: LayerSubset) -> bool:
    """Return whether a candidate has narrow layers."""
    return isinstance(candidate, LayerWidths) and any(candidate.narrowed)


def _for_widths() -> str:
    """Return the formats that hold narrow layers."""
    return either([e.name for e in REGISTRY.entries() if e.narrowed and e.suffix is None])


def _for_any_code() -> str:
    """Return the formats that hold sublayers and need no code of their own."""
    names = []
    for entry in REGISTRY.entries():
        if entry.sublayers and not entry.own_code:
            names.append(entry.name)
    return either(names)


REGISTRY: Registry[ExportFormat] = Registry(
    "prunesearch.export.formats", lambda name, known: UnknownNameError("export format", name, known)
)
register = REGISTRY.register


def checkpoint_formats() -> list[str]:
    """Return the names of the formats that write a checkpoint folder: values of `export_format`."""
    return [entry.name for entry in REGISTRY.entries() if entry.suffix is None]


def default_format(candidate: LayerSubset) -> ExportFormat:
    """Return the format that a candidate is written in if none is asked for."""
    for entry in REGISTRY.entries():
        if narrows(candidate) and entry.narrowed and not entry.filled:
            return entry
    return REGISTRY.get("plain")


def checkpoint_format(name: str) -> ExportFormat:
    """Return a format that writes a checkpoint folder.

    Raises:
        UnknownNameError: no such format.
    """
    if name not in checkpoint_formats():
        raise UnknownNameError("export format", name, checkpoint_formats())
    return REGISTRY.get(name)
