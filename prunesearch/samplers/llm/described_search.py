"""The search as a language model sees it: what a candidate is, how one is written and read.

A candidate that does not meet the budget is changed as little as possible until it does. How much
was changed is kept with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from prunesearch.algorithms.operators import Mask, Real
from prunesearch.runtime.json_values import JsonObject
from prunesearch.samplers.llm.parsing import CANDIDATES, Numbers
from prunesearch.samplers.llm.settings import LayerTable
from prunesearch.space import SearchSpace

_DIGITS = 100  # statistics are shown as shares of the largest one


@dataclass(frozen=True)
class Repaired:
    """A candidate that meets the budget.

    Attributes:
        X_D: the candidate as a mask.
        share: how much of it was changed, as a share of what it removes; 0 if it was complete.
    """

    X_D: Mask
    share: float


class DescribedSearch(Protocol):
    """A search space as a request describes it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the lists of numbers that a candidate has."""
        ...

    def describe(self) -> str:
        """Return the task, the rules of a candidate, and the table of layers."""
        ...

    def example(self) -> str:
        """Return a candidate's form in words."""
        ...

    def schema(self, count: int) -> JsonObject:
        """Return the JSON schema of a reply with `count` candidates."""
        ...

    def shown(self, X_D: Mask) -> str:
        """Return a candidate as it stands in a request."""
        ...

    def read(self, numbers: Numbers) -> Repaired | None:
        """Return the candidate that the numbers stand for, repaired; None if they stand for
        none.
        """
        ...

    def reply_characters(self) -> int:
        """Return the length of a candidate in a reply."""
        ...


class DescribedSubsets:
    """Subsets of layers: a candidate is the list of removed units.

    Args:
        space: search space.
        table: statistics of the units.
        harm_D: estimated harm of removing each unit alone. Without it, units in the middle count as
            the least harmful.
        renamed_D: number under which each unit is shown.
    """

    names = ("removed",)

    def __init__(
        self, space: SearchSpace, table: LayerTable, harm_D: Real | None, renamed_D: Sequence[int]
    ) -> None:
        table.check(space.n_units)
        self._space, self._table = space, table
        self._name_of = list(renamed_D)
        self._unit_of = {name: unit for unit, name in enumerate(self._name_of)}
        self._free = set(space.droppable)
        if harm_D is None:
            # The first and the last layers usually matter most.
            harm_D = np.abs(np.arange(space.n_units) - (space.n_units - 1) / 2)
        # The least harmful unit first; it fills lists that are too short.
        self._by_harm = [int(unit) for unit in np.argsort(harm_D, kind="stable")]

    def describe(self) -> str:
        """Return the task, the rules of a candidate, and the table of units."""
        space = self._space
        thing = "layers"
        if space.units == "sublayers":
            thing = "sublayers (each layer has an attention and an MLP)"
        elif space.period > 1:
            thing = f"groups of {space.period} layers"
        number = f"exactly {space.k}"
        if space.k_min < space.k:
            number = f"{space.k_min} to {space.k}"
        order = "They are numbered in the order in which they compute."
        if self._name_of != sorted(self._name_of):
            order = "Their numbers are names without an order."
        lines = [
            f"A language model has {space.n_units} {thing}, numbered 0 to {space.n_units - 1}. "
            f"{order}",
            f"A candidate removes {number} of them. The others stay as they are.",
            "The loss says how much worse the smaller model is: lower is better.",
        ]
        kept = sorted(
            self._name_of[unit] for unit in range(space.n_units) if unit not in self._free
        )
        if kept:
            lines.append(f"These must not be removed: {listed(kept)}.")
        return "\n".join(lines) + self._rows()

    def _rows(self) -> str:
        """Return the table of units, in the order of their names."""
        if not self._table.columns:
            return ""
        lines = ["", "", "LAYERS", " ".join(["number", *self._table.columns])]
        if self._space.units == "sublayers":
            lines[-1] += " kind"
        columns = [scaled(values) for values in self._table.columns.values()]
        for name in range(self._space.n_units):
            unit = self._unit_of[name]
            words = [str(name), *(str(column[unit]) for column in columns)]
            if self._space.units == "sublayers":
                words.append("mlp" if unit % 2 else "attention")
            lines.append(" ".join(words))
        lines.append("(shares of the largest value, in percent)")
        return "\n".join(lines)

    def example(self) -> str:
        """Return a candidate's form in words."""
        return f'"removed":[{self._space.k} different numbers]'

    def schema(self, count: int) -> JsonObject:
        """Return the JSON schema of a reply with `count` candidates."""
        numbers = integers_schema(self._space.k_min, self._space.k, self._space.n_units - 1)
        return reply_schema({"removed": numbers}, count)

    def shown(self, X_D: Mask) -> str:
        """Return the names of the removed units."""
        return listed(sorted(self._name_of[unit] for unit in np.flatnonzero(X_D).tolist()))

    def read(self, numbers: Numbers) -> Repaired | None:
        """Drop what cannot be removed, trim in the order of the reply, and fill by least harm."""
        given = numbers["removed"]
        if not given:
            return None
        # 1. Units that exist, may be removed, and were not named before.
        chosen: list[int] = []
        for name in given:
            unit = self._unit_of.get(name)
            if unit in self._free and unit not in chosen:
                chosen.append(unit)
        if not chosen:
            return None
        # 2. Trim from the end.
        changed = len(given) - len(chosen)
        changed += max(0, len(chosen) - self._space.k)
        chosen = chosen[: self._space.k]
        # 3. Fill with the least harmful units.
        for unit in self._by_harm:
            if len(chosen) >= self._space.k_min:
                break
            if unit in self._free and unit not in chosen:
                chosen.append(unit)
                changed += 1
        X_D = np.isin(np.arange(self._space.n_units), chosen)
        return Repaired(X_D, round(changed / self._space.k, 4))

    def reply_characters(self) -> int:
        """Return the length of a candidate in a reply."""
        return 5 * self._space.k + 20


def listed(numbers: Sequence[int]) -> str:
    """Return numbers with commas."""
    return ",".join(map(str, numbers))


def scaled(values: Sequence[float]) -> list[int]:
    """Return numbers as whole shares of the largest one, in percent."""
    array = np.nan_to_num(np.asarray(values, dtype=np.float64))
    largest = float(np.abs(array).max(initial=0.0)) or 1.0
    return [int(share) for share in np.rint(array / largest * _DIGITS)]


def integers_schema(least: int, most: int, largest: int) -> JsonObject:
    """Return the schema of a list of whole numbers."""
    return {
        "type": "array",
        "minItems": least,
        "maxItems": most,
        "items": {"type": "integer", "minimum": 0, "maximum": largest},
    }


def reply_schema(lists: JsonObject, count: int) -> JsonObject:
    """Return the schema of a reply with `count` candidates."""
    parents: JsonObject = {
        "type": "array",
        "minItems": 0,
        "maxItems": 2,
        "items": {"type": "integer"},
    }
    candidate: JsonObject = {
        "type": "object",
        "properties": {"parents": parents, **lists},
        "required": ["parents", *lists],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            CANDIDATES: {
                "type": "array",
                "minItems": count,
                "maxItems": count,
                "items": candidate,
            }
        },
        "required": [CANDIDATES],
        "additionalProperties": False,
    }
