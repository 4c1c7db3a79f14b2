"""The allocation ``importance``: rates that are inversely proportional to block influence.

Block influence is that of X. Men et al., "ShortGPT", arXiv:2403.03853, eq. 1: the mean over tokens
of 1 - cos(input, output). The rate of a block is c / influence, at most what it can lose, with c
such that the budget is met. ShortGPT removes the whole blocks with the smallest influence.
`importance-mlp` does the same for the MLPs and leaves the attention whole, as `uniform-mlp` does.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from prunesearch.importance.allocations.registry import AllocationEntry, register
from prunesearch.importance.layer_statistics import LayerStatistics
from prunesearch.importance.rates import levels_of_mlps, levels_of_rates, scaled, sizes_of_blocks
from prunesearch.widths.genes import Real
from prunesearch.widths.space import WidthSpace

_LEAST = 1e-3
"""Smallest influence that is told apart from 0, as a share of the largest."""


def levels(space: WidthSpace, layers: Sequence[LayerStatistics]) -> Mapping[str, Real]:
    """Return the levels of rates that are inversely proportional to block influence."""
    influence_L = np.array([layer.influence for layer in layers])
    largest = float(influence_L.max())
    if not largest > 0:
        influence_L, largest = np.ones(len(layers)), 1.0
    shares_L = 1.0 / np.maximum(influence_L, _LEAST * largest)
    rates_L = scaled(shares_L, sizes_of_blocks(space))
    return {
        "importance": levels_of_rates(space, rates_L),
        "importance-mlp": levels_of_mlps(space, shares_L),
    }


register(
    AllocationEntry(
        "importance", "rates inversely proportional to block influence", levels, order=50
    )
)
