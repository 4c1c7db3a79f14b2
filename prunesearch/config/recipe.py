"""`Recipe`: everything that identifies a result, in sections.

A recipe's identity (`Recipe.identity`) contains every choice that changes the sequence of trials or
their values. It does not contain paths: the pipeline adds digests of the model and the data.
"""

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from prunesearch.algorithms.registry import REGISTRY
from prunesearch.config.data import DataSection
from prunesearch.config.flat import (
    EARLIER_NAMES,
    PLACES,
    PREFIXED,
    SECTIONS,
    SHORTHANDS,
    is_flat,
    sectioned,
    stored_name,
)
from prunesearch.config.llm import LLMSection
from prunesearch.config.model import ModelSection
from prunesearch.config.names import portable_name
from prunesearch.config.objective import ObjectiveSection
from prunesearch.config.recovery import Recovery
from prunesearch.config.run_options import RunOptions
from prunesearch.config.search import SearchSection
from prunesearch.config.settings import Settings, SettingValue
from prunesearch.errors import InputError, UnknownNameError
from prunesearch.runtime.json_values import JsonObject
from prunesearch.space import split_drop

PATHS = ("model", "calibration", "task_data", "include_path")
"""Flat names of the settings that may be paths."""
_LOCAL_ONLY = ("task_data", "include_path")
# Settings that only locate model and data. The identity has digests of their content instead.
_LOCATIONS = (*PATHS, "revision", "trust_remote_code")


class Recipe(Settings):
    """Complete description of a search and of what follows it.

    The sections can be given as mappings or as objects. A section `model` or `objective` may be
    one text, its path or its name::

        Recipe(model="Qwen/Qwen3-0.6B", search={"drop": "25%"}, objective="perplexity")

    As a shorthand, the settings of all sections can be given without sections::

        Recipe(model="Qwen/Qwen3-0.6B", drop="25%", objective="perplexity")

    Raises:
        InputError: a key is not known, or stands in another section than its own; a value is not
            accepted; or settings contradict each other.
    """

    title: ClassVar[str] = "recipe"

    model: ModelSection
    data: DataSection = DataSection()
    objective: ObjectiveSection = ObjectiveSection()
    search: SearchSection
    llm: LLMSection = Field(default=LLMSection(), exclude_if=lambda given: given == LLMSection())
    """The language model of the sampler `llm`."""
    recover: Recovery | None = Field(default=None, exclude_if=lambda given: given is None)
    """What is done with the best candidates; None exports the best one as it is."""

    def __init__(self, **values: Any) -> None:  # noqa: ANN401 (sections, or settings without them)
        for earlier, present in EARLIER_NAMES.items():
            if earlier not in values:
                continue
            said = f"{earlier} is called {present} now: give {present}=..."
            warnings.warn(said, DeprecationWarning, stacklevel=2)
        super().__init__(**values)

    @classmethod
    def of_stored(cls, values: Mapping[str, SettingValue]) -> Self:
        """Build the recipe from a stored document, which an earlier version may have written."""
        return cls.of(sectioned(values) if is_flat(values) else values)

    @model_validator(mode="before")
    @classmethod
    def _read_sections(cls, values: object) -> object:
        """Accept the flat form and the shorthands, and refuse keys of another section."""
        if not isinstance(values, Mapping):
            return values
        if is_flat(values):
            values = sectioned(values)
        else:
            for key in values:
                if key in PLACES and key not in SHORTHANDS:
                    raise cls.unknown_key(key)
        sections: dict[str, SettingValue] = {"search": {}, **values}
        for name, section in list(sections.items()):
            if name in SECTIONS and section is None:
                sections[name] = {}
            elif name in SHORTHANDS and isinstance(section, str):
                sections[name] = {SHORTHANDS[name]: section}
            elif name in SECTIONS and isinstance(section, Mapping):
                _check_keys(name, section)
        return sections

    @model_validator(mode="after")
    def _sections_go_together(self) -> Self:
        self.objective.check_data(self.data)
        self._check_llm()
        drop, weighted = self.search.drop, self.objective.weighs_savings
        if self.search.is_pareto and weighted:
            raise ValueError(
                f"`score_weights` go with one objective; `drop` {drop} weighs quality against "
                f"{self.search.against}"
            )
        up_to = split_drop(drop)[0] == "up to"
        if up_to and not weighted and self.objective.name in self.objective.calibrated:
            raise ValueError(
                f"`drop` {drop} would drop a single layer, which harms least: say what a saving is "
                f"worth with `score_weights` quality=1,size=2, or use `drop` pareto"
            )
        if self.recover is not None and (self.search.units != "blocks" or self.search.is_pareto):
            raise ValueError(
                "`recover` goes with whole blocks and one best candidate: leave out units and "
                "pareto"
            )
        return self

    def _check_llm(self) -> None:
        """Refuse a sampler without the language model that it asks, and the other way round.

        Raises:
            ValueError: one of them is missing.
        """
        sampler = self.search.sampler
        needed = REGISTRY.get(sampler).needs_llm
        if needed and self.llm.model is None:
            raise ValueError(
                f"`sampler` {sampler} asks a language model: give `llm_url` and `llm_model`, or "
                f"`llm_model` with a .gguf file or a folder"
            )

    @classmethod
    def unknown_key(cls, key: str) -> InputError:
        """Return the error of a key that a recipe does not have."""
        if key in RunOptions.model_fields:
            return InputError(
                f"{key!r} is not part of a Recipe: give it as run(recipe, RunOptions({key}=...))"
            )
        if key in PLACES:
            section, field = PLACES[key]
            return InputError(f"`{key}` belongs to section {section}: write {section}: {field}")
        known = {*cls.model_fields, *PLACES} - EARLIER_NAMES.keys()
        return UnknownNameError("recipe key", key, known)

    def with_changes(self, **changes: SettingValue) -> Self:
        """Return the recipe with other settings, which are given by their flat names.

        Raises:
            InputError: the settings do not go together.
        """
        values: dict[str, SettingValue] = dict(self)
        for section, settings in sectioned(changes).items():
            if section in SECTIONS and isinstance(settings, Mapping):
                values[section] = SECTIONS[section](**{**dict(getattr(self, section)), **settings})
            else:
                values[section] = settings
        return type(self)(**values)

    def identity(self) -> JsonObject:
        """Return every choice that determines the trials, except locations of model and data, as
        JSON values.

        The names are those of the flat form, by which earlier studies are compared. The recovery
        is not part of it, because it does not change the trials.
        """
        values = {}
        for section in SECTIONS:
            # The sampler stores what decides its proposals, with the content of a local model.
            if section == PREFIXED:
                continue
            for field, value in getattr(self, section).model_dump(mode="json").items():
                name = stored_name(section, field)
                if name not in _LOCATIONS:
                    values[name] = value
        return values

    def portable(self) -> Self:
        """Return the recipe without the folders of this machine, to be stored with a model."""
        named = {}
        for name in PATHS:
            section, field = PLACES[name]
            path = getattr(getattr(self, section), field)
            if path is not None:
                named[name] = portable_name(path, always=name in _LOCAL_ONLY)
        recover = None if self.recover is None else self.recover.portable()
        changed = self.with_changes(**named, recover=recover)
        return changed.model_copy(update={"llm": self.llm.portable()})

    def search_only(self) -> Self:
        """Return the recipe of the search alone. A study is made with it."""
        return self.model_copy(update={"recover": None})

    def document(self) -> JsonObject:
        """Return the recipe as JSON values, as it is stored."""
        return self.model_dump(mode="json")

    def chosen(self) -> JsonObject:
        """Return the settings that differ from their defaults, as a recipe file has them."""
        values: JsonObject = self.model_dump(mode="json", exclude_defaults=True)
        for section, field in SHORTHANDS.items():
            settings = values.get(section)
            if isinstance(settings, dict) and list(settings) == [field]:
                values[section] = settings[field]
        return values


def _check_keys(section: str, values: Mapping[str, SettingValue]) -> None:
    """Refuse keys of a section that it does not have.

    Raises:
        InputError: the key belongs to another section, or is not known. The nearest known key is
            suggested.
    """
    for key in values:
        # A file may have numbers as keys.
        if not isinstance(key, str):
            raise InputError(f"unknown key {key!r} in section {section}: keys are names")
        if key in SECTIONS[section].model_fields:
            continue
        if key in PLACES and PLACES[key][0] != section:
            raise InputError(f"`{key}` belongs to section {PLACES[key][0]}, not {section}")
        if key in PLACES:
            raise InputError(f"`{key}` is now called {PLACES[key][1]} in section {section}")
        raise UnknownNameError(f"key of section {section}", key, SECTIONS[section].model_fields)
