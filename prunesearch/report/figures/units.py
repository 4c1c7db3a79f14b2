"""Units of candidates on the horizontal axis of a figure."""

from collections.abc import Sequence
from dataclasses import dataclass

from prunesearch.report.figures.figure import Place

_KINDS = {"": "blocks", "a": "attention", "m": "MLP"}


@dataclass(frozen=True)
class UnitKind:
    """The units of one kind: whole blocks, attention or MLPs.

    Attributes:
        title: name of the kind; empty if a study has one kind only.
        label: label of an axis with these units.
        places: positions of the units among all units.
        x: position of each unit on an axis: the number of its block, or its name if a unit has
            several blocks.
    """

    title: str
    label: str
    places: tuple[int, ...]
    x: tuple[Place, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the positions on the axis."""
        return tuple(x if isinstance(x, str) else f"{x:.0f}" for x in self.x)


def kinds_of(units: Sequence[str]) -> tuple[UnitKind, ...]:
    """Sort units by kind, so that a panel shows one number for each block."""
    # 1. The last letter of a unit is its kind.
    places: dict[str, list[int]] = {}
    for place, unit in enumerate(units):
        suffix = unit[-1] if unit[-1:] in ("a", "m") else ""
        places.setdefault(suffix, []).append(place)
    # 2. Name the kinds where there are several.
    kinds = []
    for suffix in _KINDS:
        if suffix not in places:
            continue
        names = [units[place].removesuffix(suffix) for place in places[suffix]]
        x: tuple[Place, ...] = tuple(names)
        if all(name.isdigit() for name in names):
            x = tuple(float(name) for name in names)
        title = _KINDS[suffix] if len(places) > 1 else ""
        kinds.append(UnitKind(title, "block", tuple(places[suffix]), x))
    return tuple(kinds)


def joined(*parts: str) -> str:
    """Join the parts of a title that are not empty with a colon."""
    return ": ".join(part for part in parts if part)
