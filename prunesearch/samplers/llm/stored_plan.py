"""A plan as it is stored with the first of its trials."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from prunesearch.algorithms.operators import Mask
from prunesearch.runtime.json_values import Json, JsonObject
from prunesearch.samplers.llm.plan import Plan, Planned
from prunesearch.studies.sources import SOURCES

_PLAN, _LESSONS = "plan", "lessons"


@dataclass(frozen=True)
class StoredPlan:
    """The candidates of a plan, and the lessons that were written with it."""

    candidates: tuple[Planned, ...]
    lessons: str = ""

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Return what is stored of a plan."""
        return cls(tuple(plan.candidates), plan.lessons)

    def as_json(self) -> JsonObject:
        """Return the plan as JSON values. A mask is a text of hexadecimal digits."""
        packed: list[Json] = []
        for each in self.candidates:
            packed.append([np.packbits(each.X_D).tobytes().hex(), each.source, each.repair])
        stored: JsonObject = {_PLAN: packed}
        if self.lessons:
            stored[_LESSONS] = self.lessons
        return stored

    @classmethod
    def from_json(cls, stored: JsonObject, units: int) -> Self | None:
        """Read a stored plan; None if there is none.

        Args:
            stored: JSON values of `as_json`, beside others.
            units: length of a mask.
        """
        packed, lessons = stored.get(_PLAN), stored.get(_LESSONS)
        if not isinstance(packed, list):
            return None
        candidates = []
        for each in packed:
            digits, source, repair = each
            candidates.append(Planned(_mask(digits, units), SOURCES[SOURCES.index(source)], repair))
        return cls(tuple(candidates), lessons if isinstance(lessons, str) else "")


def _mask(digits: str, units: int) -> Mask:
    """Return the mask of a text of hexadecimal digits."""
    packed = np.frombuffer(bytes.fromhex(digits), dtype=np.uint8)
    return np.unpackbits(packed, count=units).astype(np.bool_)
