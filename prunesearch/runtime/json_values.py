"""JSON values: their type, their conversion from results, and their narrowing.

Results are dataclasses. `to_json` turns them into JSON values, by the names of their fields. Values
that come from a file are of the type `Json`, and the functions `as_text`, `as_object` and so on
narrow them. `as_text(config["model_type"], "model_type")` is a text, or raises one clear line.
"""

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from functools import singledispatch
from typing import Protocol, TypeAlias, runtime_checkable

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
"""Any JSON value. Lists and objects are read-only; narrow them to change them."""
JsonObject: TypeAlias = dict[str, Json]
"""A JSON object."""

_NAME, _INLINE, _OMIT, _HIDDEN = "json_name", "json_inline", "json_omit_none", "json_hidden"


def json_as(
    name: str = "", *, inline: bool = False, omit_none: bool = False, hidden: bool = False
) -> dict[str, Json]:
    """Return metadata of a dataclass field that says how `to_json` writes the field.

    Args:
        name: key of the field in the JSON object. Empty for the name of the field.
        inline: whether the fields of the value become keys of the enclosing object.
        omit_none: whether the key is left out if the value is None or not finite.
        hidden: whether the key is always left out.
    """
    return {_NAME: name, _INLINE: inline, _OMIT: omit_none, _HIDDEN: hidden}


@runtime_checkable
class _Scalar(Protocol):
    """A number of numpy or torch."""

    def item(self) -> object: ...


@runtime_checkable
class _PydanticModel(Protocol):
    """A pydantic model."""

    def model_dump(self, *, mode: str) -> Mapping[str, Json]: ...


@singledispatch
def to_json(value: object) -> Json:
    """Convert a value into JSON values.

    Dataclasses become objects. The class attribute ``json_properties`` names properties that are
    keys too. Enumerations become their values, numbers that are not finite become null, and
    everything that JSON does not know, such as a path, becomes its text. Other modules register the
    conversion of their own types with ``to_json.register``.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Enum):
        return to_json(value.value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, _PydanticModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): to_json(part) for key, part in value.items()}
    # An array without dimensions is a number.
    if isinstance(value, _Scalar) and getattr(value, "ndim", None) == 0:
        return to_json(value.item())
    if isinstance(value, Iterable):
        return [to_json(part) for part in value]
    return str(value)


def _fields(value: object) -> JsonObject:
    """Return the fields of a dataclass as a JSON object."""
    made: JsonObject = {}
    assert dataclasses.is_dataclass(value)
    for field in dataclasses.fields(value):
        if field.metadata.get(_HIDDEN):
            continue
        converted = to_json(getattr(value, field.name))
        if converted is None and field.metadata.get(_OMIT):
            continue
        if field.metadata.get(_INLINE) and isinstance(converted, Mapping):
            made.update(converted)
        else:
            made[field.metadata.get(_NAME) or field.name] = converted
    for name in getattr(value, "json_properties", ()):
        made[name] = to_json(getattr(value, name))
    return made


def as_object(value: Json, where: str) -> JsonObject:
    """Return a JSON object.

    Args:
        value: the value.
        where: name of the value in the message.

    Raises:
        ValueError: the value is of another kind. This holds for the other functions too.
    """
    if not isinstance(value, dict):
        raise _wrong(value, where, "an object")
    return value


def as_list(value: Json, where: str) -> list[Json]:
    """Return a JSON list."""
    if not isinstance(value, list):
        raise _wrong(value, where, "a list")
    return value


def as_text(value: Json, where: str) -> str:
    """Return a text."""
    if not isinstance(value, str):
        raise _wrong(value, where, "a text")
    return value


def as_int(value: Json, where: str) -> int:
    """Return a whole number."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(value, where, "a whole number")
    return value


def as_float(value: Json, where: str) -> float:
    """Return a number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong(value, where, "a number")
    return float(value)


def as_bool(value: Json, where: str) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise _wrong(value, where, "true or false")
    return value


def _wrong(value: Json, where: str, kind: str) -> ValueError:
    return ValueError(f"{where} is not {kind}: {str(value)[:80]!r}")
