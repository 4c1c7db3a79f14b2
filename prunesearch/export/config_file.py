"""The base model's `config.json`, edited instead of written anew.

Programs read different keys of one file: transformers 4 reads ``rope_theta``, transformers 5 makes ``rope_parameters``
of it, and a maker adds keys of its own. So an export keeps the base's text. Only what the removal of blocks changes is
changed: the number of blocks, lists with an entry for each block, and lists of block numbers.
"""

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
from transformers import CONFIG_MAPPING, PretrainedConfig

from prunesearch.candidate import LayerSubset
from prunesearch.errors import ModelError, one_line
from prunesearch.model.anatomy import family_of, settings_of
from prunesearch.model.fields import PERIODS, edits
from prunesearch.model.guard import guarded
from prunesearch.recipe import portable_name

NAME = "config.json"
_OTHER_FILE = "transformers_weights"
"""Names a weight file of the base, which an export does not have."""
_READ_FROM = "_name_or_path"
_DTYPES = ("dtype", "torch_dtype")
_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_UNCOMPARED = frozenset(("transformers_version", _READ_FROM, "name_or_path", *_DTYPES, *PERIODS))
"""Fields that say nothing of blocks, or that are looked at by themselves."""


@dataclass(frozen=True)
class ConfigFile:
    """A config as it is stored.

    Attributes:
        values: the content; it is not changed.
        text: as it was read.
    """

    values: Mapping[str, Any]
    text: str

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a checkpoint's config.

        Raises:
            ModelError: there is none, or it cannot be read.
        """
        try:
            text = (folder / NAME).read_text(encoding="utf-8")
            values = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"cannot read {str(folder / NAME)!r}: {one_line(error)}; get it again") from None
        if not isinstance(values, dict):
            raise ModelError(f"{str(folder / NAME)!r} is no config: it holds no JSON object; get it again")
        return cls(values, text)

    @classmethod
    def of(cls, config: PretrainedConfig) -> Self:
        """The config of a model that has no file, such as a GGUF, in words that older programs know too."""
        values = _with_older_names(json.loads(config.to_json_string()))
        return cls(values, json.dumps(values, indent=2) + "\n")

    def of_part(self, config: PretrainedConfig, architecture: str) -> Self:
        """The config of the language model alone, where the file is of a larger model."""
        section = self.values.get("text_config")
        if self.values.get("model_type") in (None, config.model_type) or not isinstance(section, dict):
            return self
        kept = {name: self.values[name] for name in ("transformers_version", *_DTYPES) if name in self.values}
        alone = {"model_type": config.model_type, "architectures": [architecture]}
        return self.with_values({**kept, **section, **alone})

    def without(self, name: str) -> Self:
        """The same without a key."""
        return self.with_values({key: value for key, value in self.values.items() if key != name})

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """Another content in the same style: indentation, order of keys, last line."""
        if values == self.values:
            return self
        indent = re.search(r'\n([ \t]+)"', self.text)
        text = json_text(values, indent[1] if indent else None, ascii_only=self.text.isascii())
        return type(self)(values, text + "\n" * self.text.endswith("\n"))

    def write(self, folder: Path) -> None:
        """Write it, as ``config.json``."""
        (folder / NAME).write_text(self.text, encoding="utf-8")


def json_text(values: Any, indent: int | str | None, *, ascii_only: bool = False) -> str:  # noqa: ANN401
    """JSON that can be written to a file; half of a surrogate pair, which JSON can spell, stays spelled out."""
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return json.dumps(values, indent=indent)
    return text


def edited_config(config: PretrainedConfig, candidate: LayerSubset) -> PretrainedConfig:
    """The config without the dropped blocks, a copy."""
    copied = deepcopy(config)
    settings = settings_of(copied)
    for name, value in edits(settings, family_of(config).count, candidate.kept).items():
        setattr(settings, name, value)
    if candidate.dropped and getattr(settings, "num_nextn_predict_layers", None):
        settings.num_nextn_predict_layers = 0  # blocks for speculation, stored behind the others and not read
    return copied


def edited_file(stored: ConfigFile, config: PretrainedConfig, candidate: LayerSubset, dtype: torch.dtype) -> ConfigFile:
    """The base's config file without the dropped blocks; every other key keeps its value.

    Args:
        config: what transformers reads of the file.
        dtype: of the weights that are written; fields that name another follow.

    Raises:
        ModelError: no config says what would be left.
    """
    values = deepcopy(dict(stored.without(_OTHER_FILE).values))
    if getattr(config, "quantization_config", None) is None:
        values.pop("quantization_config", None)  # the weights were dequantised
    if candidate.dropped:
        _edit_blocks(values, config, candidate)
    _set_dtype(values, dtype)
    for part in [values, *_parts(values)]:  # some programs write where they read the model
        if isinstance(part.get(_READ_FROM), str):
            part[_READ_FROM] = portable_name(part[_READ_FROM])
    return stored.with_values(values)


def _edit_blocks(values: dict[str, Any], config: PretrainedConfig, candidate: LayerSubset) -> None:
    """Change what is said of blocks, first by the names in the file, then whatever transformers still reads wrongly."""
    base = _parsed(values, config)
    count = family_of(config).count
    number = getattr(settings_of(base), count)
    wanted = settings_of(edited_config(base, candidate))

    # The names in the file.
    section = _section(values, base)
    said_before = {period: _says(values, base, period, _plain(settings_of(base))) for period in PERIODS}
    stored = _AsStored(section, settings_of(base))
    changes = edits(cast(PretrainedConfig, stored), count, candidate.kept)
    section.update({name: value for name, value in changes.items() if name in section})
    read = _names_of(count, settings_of(base))  # by transformers; other programs have other names
    counts = read | set(_COUNTS) if count == "num_hidden_layers" else read
    for name in counts:
        if name in section and (name in read or section[name] == number):
            section[name] = len(candidate.kept)
    for name, value in section.items():  # one letter a block, as hybrid_override_pattern
        if isinstance(value, str) and "pattern" in name and len(value) == number:
            section[name] = "".join(value[i] for i in candidate.kept)

    # What is derived from other fields, or has a default, and is not what it should be.
    right, found = _plain(wanted), _plain(settings_of(_parsed(values, base)))
    for name, value in right.items():
        if name not in _UNCOMPARED and name not in counts - read and found.get(name) != value:
            section[_name_in(section, name, wanted)] = value

    # Periods that no longer tell what the lists tell.
    for period, listed in PERIODS.items():
        if period in section and said_before[period] and not _says(values, base, period, right):
            del section[period]
            section[_name_in(section, listed, wanted)] = right[listed]


class _AsStored:
    """A config whose fields are those of a file; what the file leaves out is what transformers makes of it."""

    def __init__(self, section: Mapping[str, Any], settings: PretrainedConfig) -> None:
        self._section, self._settings = section, settings

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return self._section[name] if name in self._section else getattr(self._settings, name)

    def to_dict(self) -> dict[str, Any]:
        """The fields in the file."""
        return dict(self._section)


def _parsed(values: Mapping[str, Any], like: PretrainedConfig) -> PretrainedConfig:
    """What transformers reads of the values.

    Args:
        like: a config of the model; the file's may be of a larger model that it is a part of.

    Raises:
        ModelError: it cannot read them.
    """
    named = values.get("model_type")
    kind: Any = type(like)
    if named not in (None, like.model_type) and named in CONFIG_MAPPING:
        kind = CONFIG_MAPPING[named]
    with guarded("the edited config cannot be read"):
        parsed: PretrainedConfig = kind.from_dict(_with_floats(dict(values)))
    return parsed


def _with_floats(value: Any) -> Any:  # noqa: ANN401 (any JSON value)
    """A copy with the numbers that transformers writes as objects, since JSON has no infinity."""
    if isinstance(value, list):
        return [_with_floats(part) for part in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"__float__"}:
        return float(value["__float__"])
    return {name: _with_floats(part) for name, part in value.items()}


def _section(values: dict[str, Any], config: PretrainedConfig) -> dict[str, Any]:
    """The part of the file that describes the blocks; it is made where the file leaves it to defaults."""
    if settings_of(config) is config:
        return values
    section = values.get("text_config")
    if not isinstance(section, dict):
        section = values["text_config"] = {}
    return section


def _plain(config: PretrainedConfig) -> dict[str, Any]:
    """All fields as JSON values."""
    fields: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return fields


def _names_of(count: str, settings: PretrainedConfig) -> set[str]:
    """Under which names transformers reads the number of blocks."""
    aliases = settings.attribute_map
    return {count, aliases.get(count, count), *(name for name, real in aliases.items() if real == count)}


def _name_in(section: Mapping[str, Any], name: str, settings: PretrainedConfig) -> str:
    """The name that the file has for a field."""
    aliases = [alias for alias, real in settings.attribute_map.items() if real == name and alias in section]
    return aliases[0] if aliases and name not in section else name


def _says(values: Mapping[str, Any], like: PretrainedConfig, period: str, right: Mapping[str, Any]) -> bool:
    """Whether a period, without the list that spells it out, is read as that list."""
    alone = deepcopy(dict(values))
    section, listed = _section(alone, like), PERIODS[period]
    if section.get(period) is None or right.get(listed) is None:
        return False
    section.pop(_name_in(section, listed, settings_of(like)), None)
    try:
        derived = _plain(settings_of(_parsed(alone, like)))
    except ModelError:  # the list is needed
        return False
    return bool(derived.get(listed) == right[listed])


def _set_dtype(values: dict[str, Any], dtype: torch.dtype) -> None:
    """Let every field that names the precision name this one, unless the model is said to have it already."""
    name = str(dtype).removeprefix("torch.")
    text = values.get("text_config")
    describing = [values, text] if isinstance(text, dict) else [values]
    stated = [part[key] for part in describing for key in _DTYPES if _names_a_dtype(part.get(key))]
    if not stated or stated[0].removeprefix("torch.") == name:
        return
    for part in [values, *_parts(values)]:
        part.update({key: name for key in _DTYPES if _names_a_dtype(part.get(key))})


def _parts(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The configs of a model's parts."""
    return [part for part in values.values() if isinstance(part, dict)]


def _names_a_dtype(value: object) -> bool:
    return isinstance(value, str) and isinstance(getattr(torch, value.removeprefix("torch."), None), torch.dtype)


def _with_older_names(values: dict[str, Any]) -> dict[str, Any]:
    """Add to a config of transformers 5 the names by which transformers 4 reads rotary embeddings and precision."""
    values = dict(values)
    if values.get("dtype") is not None:
        values.setdefault("torch_dtype", values["dtype"])
    rope = values.get("rope_parameters")
    if not isinstance(rope, dict):
        return values
    by_kind = {kind: part for kind, part in rope.items() if isinstance(part, dict)}
    if "sliding_attention" in by_kind and "rope_theta" in by_kind["sliding_attention"]:
        values.setdefault("rope_local_base_freq", by_kind["sliding_attention"]["rope_theta"])
    whole = by_kind.get("full_attention", rope)
    scaling = {name: value for name, value in whole.items() if name not in ("rope_theta", "partial_rotary_factor")}
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in whole:
            values.setdefault(name, whole[name])
    values.setdefault("rope_scaling", None if scaling.get("rope_type", "default") == "default" else scaling)
    return values
