"""The allocations ``uniform`` and ``uniform-mlp``: the same rate for every block.

`uniform` is what structured pruning does without an allocation, as in X. Ma et al., "LLM-Pruner",
arXiv:2305.11627, and in the Wanda-sp of Y. An et al., arXiv:2312.11983. `uniform-mlp` leaves the
attention whole, as far as the budget allows, because models with grouped queries have few KV groups
and lose much with each.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from prunesearch.importance.allocations.registry import AllocationEntry, register
from prunesearch.importance.layer_statistics import LayerStatistics
from prunesearch.importance.rates import levels_of_mlps, levels_of_rates, shifted, sizes_of_blocks
from prunesearch.widths.genes import Real
from prunesearch.widths.space import WidthSpace


def uniform(space: WidthSpace, _: Sequence[LayerStatistics]) -> Mapping[str, Real]:
    """Return the levels of one rate for all blocks."""
    sizes = sizes_of_blocks(space)
    return {"uniform": levels_of_rates(space, shifted(np.zeros(space.n_layers), sizes))}


def uniform_mlp(space: WidthSpace, _: Sequence[LayerStatistics]) -> Mapping[str, Real]:
    """Return the levels of one rate for all MLPs."""
    return {"uniform-mlp": levels_of_mlps(space, np.ones(space.n_layers))}


register(AllocationEntry("uniform", "the same rate for every layer", uniform, order=10))
register(
    AllocationEntry(
        "uniform-mlp", "the same rate for every MLP, whole attention", uniform_mlp, order=15
    )
)
