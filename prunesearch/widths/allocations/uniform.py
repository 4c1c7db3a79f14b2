"""The allocations ``uniform`` and ``uniform-mlp``: the same rate for every block.

`uniform` is what structured pruning does without an allocation, as in X. Ma et al., "LLM-Pruner",
arXiv:2305.11627, and in the Wanda-sp of Y. An et al., arXiv:2312.11983. `uniform-mlp` leaves the
attention whole, as far as the budget allows, because models with grouped queries have few KV groups
and lose much with each.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from prunesearch.width_space import Real, WidthSpace
from prunesearch.widths.allocations.registry import AllocationEntry, register
from prunesearch.widths.layer_statistics import LayerStatistics
from prunesearch.widths.rates import levels_of_rates, shifted, sizes_of_blocks


def uniform(space: WidthSpace, _: Sequence[LayerStatistics]) -> Mapping[str, Real]:
    """Return the levels of one rate for all blocks."""
    sizes = sizes_of_blocks(space)
    return {"uniform": levels_of_rates(space, shifted(np.zeros(space.n_layers), sizes))}


def uniform_mlp(space: WidthSpace, _: Sequence[LayerStatistics]) -> Mapping[str, Real]:
    """Return the levels of one rate for all MLPs. What MLPs cannot hold is removed of groups."""
    everything_G = np.array([gene.everything for gene in space.genes])
    is_mlp_G = np.array([not gene.attention for gene in space.genes])
    levels_G = np.zeros(space.n_genes)
    left = float(space.budget)
    for kind_G in (is_mlp_G, ~is_mlp_G):
        # One rate for the kind, and at most all that it can lose.
        whole = float((everything_G * space.cost_G)[kind_G].sum())
        if whole > 0:
            rated_G = np.minimum(everything_G * left / whole, space.most_G)
            levels_G[kind_G] = rated_G[kind_G]
        left = max(0.0, space.budget - float(levels_G @ space.cost_G))
    return {"uniform-mlp": levels_G}


register(AllocationEntry("uniform", "the same rate for every layer", uniform, order=10))
register(
    AllocationEntry(
        "uniform-mlp", "the same rate for every MLP, whole attention", uniform_mlp, order=15
    )
)
