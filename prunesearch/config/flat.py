"""The flat form of a recipe: earlier recipes, and the identity of a study, have no sections.

`PLACES` maps each name of the flat form to a section and a field. The names of the identity
are the earlier ones, so that earlier studies are resumed.
"""

from collections.abc import Mapping
from typing import TypeVar

from prunesearch.config.data import DataSection
from prunesearch.config.llm import LLMSection
from prunesearch.config.model import ModelSection
from prunesearch.config.objective import ObjectiveSection
from prunesearch.config.search import SearchSection
from prunesearch.config.settings import Settings, SettingValue, merge_renamed

Value = TypeVar("Value")
SECTIONS: Mapping[str, type[Settings]] = {
    "model": ModelSection,
    "data": DataSection,
    "objective": ObjectiveSection,
    "search": SearchSection,
    "llm": LLMSection,
}
PREFIXED = "llm"
"""Section whose flat names begin with its own name, such as ``llm_model``."""
_STORED_NAMES = {
    ("model", "path"): "model",
    ("objective", "name"): "objective",
    ("objective", "score_weights"): "weights",
    ("search", "encoding"): "form",
}
"""Fields whose name in the flat form differs from that in the section."""

SHORTHANDS = {"model": "path", "objective": "name"}
"""Sections that may be written as one text, and the field that it stands for."""


def stored_name(section: str, field: str) -> str:
    """Return the name of a field in the flat form and in identities."""
    if section == PREFIXED:
        return f"{section}_{field}"
    return _STORED_NAMES.get((section, field), field)


def _places() -> dict[str, tuple[str, str]]:
    """Return the section and the field of each name, by its earlier and by its present name."""
    found = {}
    for section, settings in SECTIONS.items():
        for field in settings.model_fields:
            found[stored_name(section, field)] = (section, field)
            if field not in SHORTHANDS.values() and section != PREFIXED:
                found[field] = (section, field)
    return found


PLACES: Mapping[str, tuple[str, str]] = _places()
"""Section and field of each flat name, such as ``drop`` or ``form``."""


EARLIER_NAMES = {"weights": "score_weights", "form": "encoding"}
"""Names of earlier versions, and the present ones."""


def is_flat(values: Mapping[str, SettingValue]) -> bool:
    """Return whether the values of a recipe are in the flat form."""
    if any(name in SECTIONS and name not in SHORTHANDS for name in values):
        return False
    for name in SHORTHANDS:
        if isinstance(values.get(name), Mapping | Settings):
            return False
    return any(name in PLACES and name not in SHORTHANDS for name in values)


def sectioned(values: Mapping[str, Value]) -> dict[str, Value | dict[str, Value]]:
    """Sort the values of a flat recipe into sections. Names that are not known are unchanged.

    Raises:
        InputError: the earlier and the present name of a setting are given different values.
    """
    sections: dict[str, dict[str, Value]] = {}
    others: dict[str, Value] = {}
    merged = dict(values)
    for earlier, present in EARLIER_NAMES.items():
        merge_renamed(merged, earlier, present)
    for name, value in merged.items():
        if name in PLACES:
            section, field = PLACES[name]
            sections.setdefault(section, {})[field] = value
        else:
            others[name] = value
    return {**sections, **others}
