"""Base class of all settings, and the messages of values that it refuses."""

import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from prunesearch.errors import InputError, UnknownNameError
from prunesearch.runtime.json_values import Json


class Settings(BaseModel):
    """Base class of validated settings. Settings cannot be changed, and unknown keys are refused.

    A bad value raises an `InputError` that names the field. Messages put the names of other fields
    in backticks, as in "`task_data` goes with `task`". The command line replaces these names by
    its flags.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    title: ClassVar[str] = "settings"
    """What an error message calls these settings."""
    section: ClassVar[str] = ""
    """Section of a recipe that has these settings, or an empty text."""

    def __init__(self, **values: Any) -> None:  # noqa: ANN401 (pydantic checks them)
        for name, value in values.items():
            if isinstance(value, str) and not is_text(value):
                raise InputError(
                    f"{name} {value!r} holds a character that no database or file takes: leave it "
                    f"out"
                )
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise complaint(type(self), error) from error

    @classmethod
    def of(cls, values: "Mapping[str, SettingValue]") -> Self:
        """Build the settings from values by the names of their fields, such as those of a file."""
        make: Callable[..., Self] = cls
        return make(**values)

    @classmethod
    def unknown_key(cls, key: str) -> InputError:
        """Return the error of a key that these settings do not have."""
        return UnknownNameError(f"{cls.title} key", key, cls.model_fields)


SettingValue: TypeAlias = Json | Settings | Mapping[str, "SettingValue"]
"""Value of a setting, or of a whole section, before it is validated."""


Value = TypeVar("Value")


def merge_renamed(
    values: dict[str, Value], earlier: str, present: str, words: Mapping[str, Value] | None = None
) -> None:
    """Move the value of an earlier name to the present one.

    Args:
        values: values by name. They are changed.
        earlier: earlier name. It need not be there.
        present: present name.
        words: earlier values, and the present ones.

    Raises:
        InputError: both names are there, and their values differ.
    """
    if earlier not in values:
        return
    typed = values.pop(earlier)
    value = typed
    if isinstance(typed, str) and words is not None:
        value = words.get(typed, typed)
    if values.setdefault(present, value) != value:
        raise contradiction(f"{earlier} {typed}", f"{present} {values[present]}", present)


def contradiction(earlier: str, present: str, only: str) -> InputError:
    """Return the error of one setting that is given twice, with different values."""
    return InputError(f"{earlier} and {present} contradict each other: give {only} only")


def is_text(value: str) -> bool:
    """Return whether a text can be stored: it has neither NUL nor bytes that could not be
    decoded.
    """
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def complaint(model: type[Settings], error: ValidationError) -> InputError:
    """Turn the first error of a pydantic validation into one line that names the field."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return cause
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return model.unknown_key(str(first["loc"][-1]))
    if first["type"] == "missing":
        place = f" in section {model.section}" if model.section else ""
        return InputError(f"{name} is missing{place}: every {model.title} needs it")
    if first["type"] == "model_type":
        return InputError(
            f"{name} = {reprlib.repr(first['input'])} is not a section: write its settings below "
            f"it, one per line"
        )
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        choices = re.findall(r"'([^']+)'", first.get("ctx", {}).get("expected", ""))
        return UnknownNameError(name, first["input"], choices)
    message = first["msg"].removeprefix("Value error, ")
    for theirs, ours in _PLAINER.items():
        message = message.replace(theirs, ours)
    return InputError(f"{name} = {reprlib.repr(first['input'])}: {message}" if name else message)


_PLAINER = {
    "Input should be greater than or equal to": "it must be at least",
    "Input should be less than or equal to": "it must be at most",
    "Input should be greater than": "it must be more than",
    "Input should be less than": "it must be less than",
    "Input should be": "it must be",
}
"""Pydantic's words and ours, the longer ones first."""
