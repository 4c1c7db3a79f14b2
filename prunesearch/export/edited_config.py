"""Edits of the base model's `config.json` for a candidate.

An export keeps the base's text. It changes only what depends on the blocks: the number of blocks,
lists with one entry per block, and lists of block indices.
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from transformers import CONFIG_MAPPING, PretrainedConfig

from prunesearch.candidate import LayerSubset
from prunesearch.config.names import portable_name
from prunesearch.errors import ModelError
from prunesearch.export.config_file import DTYPES, ConfigFile
from prunesearch.models.config_edits import PERIODS, ConfigValue, edits
from prunesearch.models.guard import guarded
from prunesearch.models.model_configs import settings_of
from prunesearch.models.structure import architecture_of
from prunesearch.runtime.json_values import Json, JsonObject

_OTHER_FILE = "transformers_weights"
"""Key that names a weight file of the base. An export does not have this file."""
_READ_FROM = "_name_or_path"
_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_UNCOMPARED = frozenset(("transformers_version", _READ_FROM, "name_or_path", *DTYPES, *PERIODS))
"""Fields that do not depend on the blocks, or that are checked separately."""


def edited_config(config: PretrainedConfig, candidate: LayerSubset) -> PretrainedConfig:
    """Return a copy of a config without the dropped blocks."""
    copied = deepcopy(config)
    settings = settings_of(copied)
    for name, value in edits(settings, architecture_of(config).count, candidate.kept).items():
        setattr(settings, name, value)
    # Blocks for speculation are stored after the others. They are not read, so an export does not
    # have them.
    if candidate.dropped and getattr(settings, "num_nextn_predict_layers", None):
        settings.num_nextn_predict_layers = 0
    return copied


def edited_file(
    stored: ConfigFile, config: PretrainedConfig, candidate: LayerSubset, dtype: torch.dtype
) -> ConfigFile:
    """Edit the base's config file for a candidate. Keys that do not depend on it keep their values.

    Args:
        stored: config file of the base.
        config: config that transformers reads from this file.
        candidate: candidate of the base model.
        dtype: dtype of the new weights. Fields that name another dtype are changed.

    Raises:
        ModelError: no config can describe the kept blocks.
    """
    values = deepcopy(dict(stored.without(_OTHER_FILE).values))
    if getattr(config, "quantization_config", None) is None:
        # The weights were dequantised when the model was loaded.
        values.pop("quantization_config", None)
    if candidate.dropped:
        _edit_blocks(values, config, candidate)
    _set_dtype(values, dtype)
    # Some programs write the path of the model into its config.
    for part in [values, *_parts(values)]:
        path = part.get(_READ_FROM)
        if isinstance(path, str):
            part[_READ_FROM] = portable_name(path)
    return stored.with_values(values)


def _edit_blocks(values: JsonObject, config: PretrainedConfig, candidate: LayerSubset) -> None:
    """Change the fields that depend on the blocks.

    First the fields in the file are changed under the names that the file uses. Then everything
    that transformers would still read wrongly is set.

    Args:
        values: content of the file; it is changed in place.
        config: config that transformers reads from this file.
        candidate: candidate of the base model.
    """
    base = _parsed(values, config)
    count = architecture_of(config).count
    number = getattr(settings_of(base), count)
    wanted = settings_of(edited_config(base, candidate))

    # Note which periods agree with their lists, before anything changes.
    section = _section(values, base)
    plain = _plain(settings_of(base))
    said_before = {}
    for period in PERIODS:
        said_before[period] = _says(values, base, period, plain)
    # Edit the per-block fields that the file has.
    stored = _AsStored(section, settings_of(base))
    changes = edits(cast(PretrainedConfig, stored), count, candidate.kept)
    for name, value in changes.items():
        if name in section:
            section[name] = _stored(value)
    # Set the number of blocks. transformers reads it under some names, and other programs under
    # others.
    read = _names_of(count, settings_of(base))
    counts = read | set(_COUNTS) if count == "num_hidden_layers" else read
    for name in counts:
        if name in section and (name in read or section[name] == number):
            section[name] = len(candidate.kept)
    # Edit patterns with one letter per block, such as hybrid_override_pattern.
    for name, value in section.items():
        if isinstance(value, str) and "pattern" in name and len(value) == number:
            section[name] = "".join(value[i] for i in candidate.kept)

    # Set fields that transformers derives from other fields or from a default, and gets wrong.
    right, found = _plain(wanted), _plain(settings_of(_parsed(values, base)))
    for name, value in right.items():
        if name not in _UNCOMPARED and name not in counts - read and found.get(name) != value:
            section[_name_in(section, name, wanted)] = value

    # Replace each period that no longer agrees with its list by the list.
    for period, listed in PERIODS.items():
        if period in section and said_before[period] and not _says(values, base, period, right):
            del section[period]
            section[_name_in(section, listed, wanted)] = right[listed]


def _stored(value: ConfigValue) -> Json:
    """Return a value as a file has it. The keys of JSON objects are texts."""
    if isinstance(value, Mapping):
        return {str(key): part for key, part in value.items()}
    return value


class _AsStored:
    """A config with the fields of a file.

    Fields that the file lacks have the values that transformers reads.
    """

    def __init__(self, section: Mapping[str, Json], settings: PretrainedConfig) -> None:
        self._section, self._settings = section, settings

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return self._section[name] if name in self._section else getattr(self._settings, name)

    def to_dict(self) -> JsonObject:
        """Return the fields in the file."""
        return dict(self._section)


def _parsed(values: Mapping[str, Json], like: PretrainedConfig) -> PretrainedConfig:
    """Return the config that transformers reads from the content of a file.

    Args:
        values: content of the file.
        like: config of the model. The file may describe a larger model that this model is a part
            of.

    Raises:
        ModelError: transformers cannot read the content.
    """
    named = values.get("model_type")
    kind: Any = type(like)
    if isinstance(named, str) and named != like.model_type and named in CONFIG_MAPPING:
        kind = CONFIG_MAPPING[named]
    with guarded("the edited config cannot be read"):
        parsed: PretrainedConfig = kind.from_dict(_with_floats(dict(values)))
    return parsed


def _with_floats(value: Json) -> Json:
    """Return a copy in which objects that stand for numbers are numbers.

    transformers writes such an object for infinity, which JSON cannot express.
    """
    if isinstance(value, list):
        return [_with_floats(part) for part in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"__float__"}:
        return float(value["__float__"])
    return {name: _with_floats(part) for name, part in value.items()}


def _section(values: JsonObject, config: PretrainedConfig) -> JsonObject:
    """Return the part of the file that describes the blocks.

    It is added if the file leaves it to defaults.
    """
    if settings_of(config) is config:
        return values
    section = values.get("text_config")
    if not isinstance(section, dict):
        section = values["text_config"] = {}
    return section


def _plain(config: PretrainedConfig) -> JsonObject:
    """Return all fields of a config as JSON values, including defaults."""
    fields: JsonObject = json.loads(config.to_json_string(use_diff=False))
    return fields


def _names_of(count: str, settings: PretrainedConfig) -> set[str]:
    """Return the names under which transformers reads the number of blocks.

    Args:
        count: name of the config attribute with the number of blocks.
        settings: config that describes the blocks.
    """
    aliases = settings.attribute_map
    names = {count, aliases.get(count, count)}
    for name, real in aliases.items():
        if real == count:
            names.add(name)
    return names


def _name_in(section: Mapping[str, Json], name: str, settings: PretrainedConfig) -> str:
    """Return the name under which the file has a field."""
    if name not in section:
        for alias, real in settings.attribute_map.items():
            if real == name and alias in section:
                return str(alias)
    return name


def _says(
    values: Mapping[str, Json], like: PretrainedConfig, period: str, right: Mapping[str, Json]
) -> bool:
    """Return whether transformers derives the right list from a period.

    Args:
        values: content of the file.
        like: config of the model.
        period: name of the field with the period.
        right: all fields as they should be.
    """
    # Read the file without the list that spells the kinds out.
    alone = deepcopy(dict(values))
    section, listed = _section(alone, like), PERIODS[period]
    if section.get(period) is None or right.get(listed) is None:
        return False
    section.pop(_name_in(section, listed, settings_of(like)), None)
    try:
        derived = _plain(settings_of(_parsed(alone, like)))
    except ModelError:
        # The config cannot be read without the list.
        return False
    return bool(derived.get(listed) == right[listed])


def _set_dtype(values: JsonObject, dtype: torch.dtype) -> None:
    """Set every field that names a dtype, unless the file already states this dtype for the
    model.
    """
    name = str(dtype).removeprefix("torch.")
    text = values.get("text_config")
    describing = [values, text] if isinstance(text, dict) else [values]
    # The first statement about the language model counts.
    stated: list[str] = []
    for part in describing:
        stated += [str(part[key]) for key in _dtype_keys(part)]
    if not stated or stated[0].removeprefix("torch.") == name:
        return
    for part in [values, *_parts(values)]:
        part.update(dict.fromkeys(_dtype_keys(part), name))


def _dtype_keys(part: Mapping[str, Json]) -> list[str]:
    """Return the keys of a config under which it names a dtype."""
    return [key for key in DTYPES if _names_a_dtype(part.get(key))]


def _parts(values: Mapping[str, Json]) -> list[JsonObject]:
    """Return the configs of a model's parts."""
    return [part for part in values.values() if isinstance(part, dict)]


def _names_a_dtype(value: object) -> bool:
    return isinstance(value, str) and isinstance(
        getattr(torch, value.removeprefix("torch."), None), torch.dtype
    )
