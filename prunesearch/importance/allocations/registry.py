"""The registry of fixed allocations.

A fixed allocation gives each block its widths from statistics of the dense model, without scoring a
candidate. A search over widths starts from all of them, and is compared with them. A file in this
folder that calls `register` adds one.

Shapes: G genes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from prunesearch.errors import UnknownNameError
from prunesearch.importance.layer_statistics import LayerStatistics
from prunesearch.runtime.registry import Registry
from prunesearch.widths.genes import Real
from prunesearch.widths.layer_widths import LayerWidths
from prunesearch.widths.space import WidthSpace

LevelsOf = Callable[[WidthSpace, Sequence[LayerStatistics]], Mapping[str, Real]]
"""Takes a space and the statistics of all blocks. Returns the wanted levels, shape (G,), of each
variant by its name. Levels need not be whole, nor meet the budget exactly."""


@dataclass(frozen=True)
class AllocationEntry:
    """Facts about one fixed allocation.

    Attributes:
        name: name of the allocation.
        label: one line for tables.
        levels: function that returns the wanted levels of each variant.
        order: position in lists.
    """

    name: str
    label: str
    levels: LevelsOf
    order: int = 50


@dataclass(frozen=True)
class FixedAllocation:
    """A fixed allocation as a candidate.

    Attributes:
        name: name of the variant, such as ``uniform`` or ``atp-0.50``.
        entry: name of the allocation, such as ``atp``.
        candidate: the widths, which meet the budget of the space exactly.
    """

    name: str
    entry: str
    candidate: LayerWidths


REGISTRY: Registry[AllocationEntry] = Registry(
    "prunesearch.importance.allocations",
    lambda name, known: UnknownNameError("allocation", name, known),
)
register = REGISTRY.register


def allocate(
    name: str, space: WidthSpace, layers: Sequence[LayerStatistics]
) -> list[FixedAllocation]:
    """Return the variants of an allocation.

    Args:
        name: name of the allocation.
        space: space of widths with its budget.
        layers: statistics of each block.

    Raises:
        UnknownNameError: the allocation does not exist.
    """
    found = []
    for variant, levels_G in REGISTRY.get(name).levels(space, layers).items():
        projected_MG = space.project(levels_G[None])
        assert projected_MG is not None, "a space checks that its budget can be met"
        found.append(FixedAllocation(variant, name, space.candidate(projected_MG[0])))
    return found


def fixed_allocations(
    space: WidthSpace, layers: Sequence[LayerStatistics]
) -> list[FixedAllocation]:
    """Return all fixed allocations, in the order of the registry, each candidate once.

    Args:
        space: space of widths with its budget.
        layers: statistics of each block.
    """
    found: dict[LayerWidths, FixedAllocation] = {}
    for name in REGISTRY.names():
        for allocation in allocate(name, space, layers):
            found.setdefault(allocation.candidate, allocation)
    return list(found.values())
