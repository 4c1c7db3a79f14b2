"""Coefficients of the swarms, under the names that users give them."""

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TypeVar

from prunesearch.algorithms.base import Algorithm, VectorLaw
from prunesearch.algorithms.vector_swarms import VectorSwarm
from prunesearch.errors import InputError, either

Coefficients = Mapping[str, float]
"""Values of the coefficients that the user gave, by name."""

_FIELDS = {
    **{"inertia": "w", "cognitive": "c1", "social": "c2"},
    **{"iterations": "cycle", "spiral": "b", "probability": "p"},
}
"""Attribute of an algorithm or a law of motion that holds a coefficient."""
_LARGEST = {"inertia": 1.0, "cognitive": 4.0, "social": 4.0, "spiral": 10.0, "probability": 1.0}
TOPOLOGIES = ("global", "ring")
Moving = TypeVar("Moving", Algorithm, VectorLaw)


def given(values: Mapping[str, float | None]) -> Coefficients:
    """Check coefficients, and return those that are not None as plain numbers.

    Raises:
        InputError: a coefficient is not a number, or is outside its range.
    """
    checked: dict[str, float] = {}
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{name} = {value!r}: give a number")
        if name == "iterations":
            if not math.isfinite(value) or value != int(value) or value < 1:
                raise InputError(
                    f"iterations = {value!r}: give a whole number of generations, at least 1"
                )
            checked[name] = int(value)
        elif not math.isfinite(value) or not 0.0 <= value <= _LARGEST[name]:
            raise InputError(f"{name} = {value!r}: give a number from 0 to {_LARGEST[name]:g}")
        else:
            checked[name] = float(value)
    return checked


def checked_topology(topology: str) -> str:
    """Check the name of a topology and return it.

    Raises:
        InputError: no such topology.
    """
    if topology not in TOPOLOGIES:
        raise InputError(f"topology = {topology!r}: use {either(TOPOLOGIES)}")
    return topology


def with_coefficients(moving: Moving, coefficients: Coefficients) -> Moving:
    """Return an algorithm, or a law of motion, with other coefficients.

    Raises:
        InputError: it does not have one of them.
    """
    if isinstance(moving, VectorSwarm):
        changed: Moving = replace(moving, law=with_coefficients(moving.law, coefficients))
        return changed
    has = {own.name for own in fields(moving)}  # type: ignore[arg-type]
    values: dict[str, float] = {}
    for name, value in coefficients.items():
        if _FIELDS[name] not in has:
            raise InputError(
                f"{name} = {value:g}: the moves of sets have no such coefficient; use an encoding "
                f"of real vectors, such as encoding='keys', or leave it out"
            )
        values[_FIELDS[name]] = value
    return replace(moving, **values)  # type: ignore[type-var]


def without_defaults(moving: Algorithm | VectorLaw, coefficients: Coefficients) -> Coefficients:
    """Return the coefficients that differ from those of an algorithm, or of a law of motion."""
    if isinstance(moving, VectorSwarm):
        return without_defaults(moving.law, coefficients)
    changed: dict[str, float] = {}
    for name, value in coefficients.items():
        if value != getattr(moving, _FIELDS[name]):
            changed[name] = value
    return changed
