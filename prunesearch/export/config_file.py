"""The base model's `config.json` as it is stored.

Programs read different keys of this file: transformers 4 reads ``rope_theta``, transformers 5 reads
``rope_parameters``, and publishers add keys of their own. So an export keeps the base's text (see
`edited_config`).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from transformers import PretrainedConfig

from prunesearch.errors import ModelError, one_line
from prunesearch.runtime.json_values import Json, JsonObject

NAME = "config.json"
DTYPES = ("dtype", "torch_dtype")


@dataclass(frozen=True)
class ConfigFile:
    """A config as it is stored.

    Attributes:
        values: content of the file; it is never changed in place.
        text: text of the file.
    """

    values: Mapping[str, Json]
    text: str

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a checkpoint's config.

        Raises:
            ModelError: the config is missing or cannot be read.
        """
        try:
            text = (folder / NAME).read_text(encoding="utf-8")
            values = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(
                f"cannot read {str(folder / NAME)!r}: {one_line(error)}; get it again"
            ) from None
        if not isinstance(values, dict):
            raise ModelError(
                f"{str(folder / NAME)!r} is not a config: it holds no JSON object; get it again"
            )
        return cls(values, text)

    @classmethod
    def of(cls, config: PretrainedConfig) -> Self:
        """Make the config of a model without a config file, such as a GGUF.

        It includes the names that older programs read.
        """
        values = _with_older_names(json.loads(config.to_json_string()))
        return cls(values, json.dumps(values, indent=2) + "\n")

    def of_part(self, config: PretrainedConfig, architecture: str) -> Self:
        """Return the config of the language model alone, if the file describes a larger model.

        Args:
            config: config of the language model.
            architecture: name of its class.
        """
        section = self.values.get("text_config")
        if self.values.get("model_type") in (None, config.model_type) or not isinstance(
            section, dict
        ):
            return self
        # Some facts are stated once for the larger model.
        kept = {}
        for name in ("transformers_version", *DTYPES):
            if name in self.values:
                kept[name] = self.values[name]
        alone = {"model_type": config.model_type, "architectures": [architecture]}
        return self.with_values({**kept, **section, **alone})

    def without(self, name: str) -> Self:
        """Return the config without a key."""
        values = dict(self.values)
        values.pop(name, None)
        return self.with_values(values)

    def with_values(self, values: Mapping[str, Json]) -> Self:
        """Return a config with other content in the same style: indentation, escapes and last line
        break.
        """
        if values == self.values:
            return self
        indent = re.search(r'\n([ \t]+)"', self.text)
        text = json_text(values, indent[1] if indent else None, ascii_only=self.text.isascii())
        return type(self)(values, text + "\n" * self.text.endswith("\n"))

    def write(self, folder: Path) -> None:
        """Write the config as ``config.json``."""
        (folder / NAME).write_text(self.text, encoding="utf-8")


def json_text(values: Json, indent: int | str | None, *, ascii_only: bool = False) -> str:
    """Return JSON text that can be written to a file.

    JSON can express half of a surrogate pair, but UTF-8 cannot. Text that contains one is escaped.

    Args:
        values: JSON values.
        indent: indentation, as `json.dumps` takes it.
        ascii_only: escape everything that is not ASCII.
    """
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return json.dumps(values, indent=indent)
    return text


def _with_older_names(values: JsonObject) -> JsonObject:
    """Add the names that transformers 4 reads to a config of transformers 5.

    The two versions have different names for the dtype and for rotary embeddings.
    """
    values = dict(values)
    if values.get("dtype") is not None:
        values.setdefault("torch_dtype", values["dtype"])
    rope = values.get("rope_parameters")
    if not isinstance(rope, dict):
        return values
    # A model may have different embeddings for each kind of attention.
    by_kind = {kind: part for kind, part in rope.items() if isinstance(part, dict)}
    if "sliding_attention" in by_kind and "rope_theta" in by_kind["sliding_attention"]:
        values.setdefault("rope_local_base_freq", by_kind["sliding_attention"]["rope_theta"])
    whole = by_kind.get("full_attention", rope)
    # transformers 4 has two settings at the top, and the others in ``rope_scaling``.
    scaling = dict(whole)
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in whole:
            values.setdefault(name, whole[name])
            scaling.pop(name)
    if scaling.get("rope_type", "default") == "default":
        values.setdefault("rope_scaling", None)
    else:
        values.setdefault("rope_scaling", scaling)
    return values
