"""The allocation ``atp``: rates that grow with depth in equal steps.

W. Huang et al., "Determining Layer-wise Sparsity for Large Language Models Through a Theoretical
Perspective", ICML 2025, arXiv:2502.14770. With L blocks, mean rate S and l = 0, ..., L - 1:

    S_l = S + beta * (l - (L - 1) / 2),   0 < beta <= min(2 S / (L - 1), 2 (1 - S) / (L - 1))

so that no rate is below 0 or above 1. The paper tries a few values of beta and keeps the best one.
Here `BETAS` gives shares of the largest legal value. Blocks that stay whole are not counted.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from prunesearch.importance.allocations.registry import AllocationEntry, register
from prunesearch.importance.layer_statistics import LayerStatistics
from prunesearch.importance.rates import BlockSizes, levels_of_rates, shifted, sizes_of_blocks
from prunesearch.widths.genes import Real
from prunesearch.widths.space import WidthSpace

BETAS = (0.25, 0.5, 0.75, 1.0)
"""Values of beta, as shares of the largest legal one."""


def largest_beta(rate: float, n_layers: int) -> float:
    """Return the largest legal difference of two neighbouring blocks."""
    if n_layers < 2:
        return 0.0
    return min(2 * rate, 2 * (1 - rate)) / (n_layers - 1)


def ramp(sizes: BlockSizes, share: float) -> Real:
    """Return the rate of each block.

    Args:
        sizes: sizes of the blocks.
        share: beta as a share of the largest legal one. A negative one makes rates fall with depth.
    """
    narrowed = np.flatnonzero(sizes.size_L)
    beta = share * largest_beta(sizes.rate, len(narrowed))
    rates_L = np.full(len(sizes.size_L), sizes.rate)
    rates_L[narrowed] += beta * (np.arange(len(narrowed)) - (len(narrowed) - 1) / 2)
    # Blocks of different sizes shift the mean, and limits may cut the ends.
    return shifted(rates_L, sizes)


def levels(space: WidthSpace, _: Sequence[LayerStatistics]) -> Mapping[str, Real]:
    """Return the levels of a ramp for each beta."""
    sizes = sizes_of_blocks(space)
    found = {}
    for share in BETAS:
        found[f"atp-{share:.2f}"] = levels_of_rates(space, ramp(sizes, share))
    return found


register(AllocationEntry("atp", "rates that grow with depth in equal steps", levels, order=20))
