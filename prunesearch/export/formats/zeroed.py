"""Dropped sublayers and parts with weights of zero, in the unchanged architecture.

A bias that stands for removed parts needs a place. Some configs have settings that give all
projections of a kind a bias. Those that stand for nothing are zero.
"""

from copy import deepcopy
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.export.formats.registry import ExportFormat, narrows, register
from prunesearch.widths.layer_widths import LayerWidths

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from prunesearch.export.config_file import ConfigFile

_SETTINGS = ("attention_bias", "mlp_bias")


class _Place(NamedTuple):
    """What gives a stock model the biases of a candidate.

    Attributes:
        settings: settings of the config that become true.
        shapes: shape of each bias that the model has then and did not have before.
    """

    settings: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]


class Zeroed(ExportFormat):
    """The checkpoint loads anywhere, but it is neither smaller nor faster than the dense one."""

    def check_model(self, config: "PretrainedConfig", candidate: LayerSubset) -> None:
        """Refuse removed experts, and biases that the architecture has no place for."""
        if isinstance(candidate, LayerWidths) and candidate.fewer_experts:
            raise InputError(
                f"{self.field} cannot leave out experts, as routers would choose experts with "
                "weights of zero: use `export_format` widths"
            )
        _place_of_biases(self, config, candidate)

    def zeroed_parameters(self, model: "PreTrainedModel", dropped: LayerSubset) -> set[str]:
        """Return the parameters of the dropped sublayers."""
        from prunesearch.export.layout import sublayer_parameters

        return sublayer_parameters(model, dropped)

    def empty_biases(
        self, config: "PretrainedConfig", candidate: LayerSubset
    ) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the biases that the config gives projections."""
        return _place_of_biases(self, config, candidate).shapes

    def write_config(
        self, edited: "ConfigFile", config: "PretrainedConfig", candidate: LayerSubset, out: Path
    ) -> None:
        """Write the config, with a place for biases if the candidate has some."""
        settings = dict.fromkeys(_place_of_biases(self, config, candidate).settings, True)
        edited.with_values({**edited.values, **settings}).write(out)


def _place_of_biases(
    export_format: ExportFormat, config: "PretrainedConfig", candidate: LayerSubset
) -> _Place:
    """Return what gives a stock model the biases of a candidate.

    Raises:
        InputError: nothing does.
    """
    from prunesearch.models.model_configs import meta_model, settings_of

    if not isinstance(candidate, LayerWidths) or not candidate.biases or not narrows(candidate):
        return _Place((), {})
    model = meta_model(config)
    missing = _missing_biases(model, candidate)
    if not missing:
        return _Place((), {})
    # Try the settings alone and together. A config of a larger model has them in a section.
    known = []
    for name in _SETTINGS:
        if getattr(config, name, None) is False and settings_of(config) is config:
            known.append(name)
    before = set(dict(model.named_parameters()))
    for number in range(1, len(known) + 1):
        for settings in combinations(known, number):
            changed = deepcopy(config)
            for name in settings:
                setattr(changed, name, True)
            shapes: dict[str, tuple[int, ...]] = {}
            for name, parameter in meta_model(changed).named_parameters():
                if name not in before:
                    shapes[name] = tuple(parameter.shape)
            if missing <= shapes.keys():
                return _Place(settings, shapes)
    raise InputError(
        f"{export_format.field}: {config.model_type} models have no place for the biases that "
        f"stand for what was removed, such as {min(missing)}: use `export_format` widths, or a "
        "criterion without biases"
    )


def _missing_biases(model: "PreTrainedModel", candidate: LayerWidths) -> set[str]:
    """Return the biases of narrow sublayers that a stock model does not have."""
    from prunesearch.models.structure import blocks_of
    from prunesearch.models.width_shape import attention_of, mlp_of

    names = {id(module): name for name, module in model.named_modules()}
    missing: set[str] = set()
    for index, block in enumerate(blocks_of(model)):
        use = candidate.use(index)
        if use is None:
            continue
        mlp, attention = mlp_of(model, block), attention_of(model, block)
        for part, narrower in ((mlp, use.channels), (attention, use.groups)):
            if narrower is not None and part is not None and part.output.bias is None:
                missing.add(f"{names[id(part.output)]}.bias")
    return missing


register(
    Zeroed(
        "zeroed",
        "What is dropped is there with weights of zero: it loads wherever the base model does, "
        "and is neither smaller nor faster for that.",
        order=20,
        whole_blocks=False,
        sublayers=True,
        narrowed=True,
        filled=True,
    )
)
