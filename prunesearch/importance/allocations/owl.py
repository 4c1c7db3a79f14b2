"""The allocation ``owl``: layers with more outliers lose less.

L. Yin et al., "Outlier Weighed Layerwise Sparsity (OWL)", ICML 2024, arXiv:2310.05175, and its code
(main.py). With D_l the share of outlier weights of block l (`importance.statistics`, M = 5), scaled
to [0, 2 lambda], block l keeps

    1 - S + D_l - mean(D),   lambda = 0.08

so rates differ from the mean rate S by at most 2 lambda.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from prunesearch.importance.allocations.registry import AllocationEntry, register
from prunesearch.importance.layer_statistics import LayerStatistics
from prunesearch.importance.rates import levels_of_rates, shifted, sizes_of_blocks
from prunesearch.widths.genes import Real
from prunesearch.widths.space import WidthSpace

LAMBDA = 0.08


def rates(outliers_L: Real, mean_rate: float) -> Real:
    """Return the rate of each block.

    Args:
        outliers_L: share of outliers of each block.
        mean_rate: mean rate S.
    """
    spread = float(outliers_L.max() - outliers_L.min())
    if spread == 0.0:
        return np.full(len(outliers_L), mean_rate)
    scaled_L = (outliers_L - outliers_L.min()) / spread * 2 * LAMBDA
    return np.asarray(mean_rate - (scaled_L - scaled_L.mean()))


def levels(space: WidthSpace, layers: Sequence[LayerStatistics]) -> Mapping[str, Real]:
    """Return the levels of OWL's rates."""
    # Blocks that stay whole do not count.
    sizes = sizes_of_blocks(space)
    narrowed = np.flatnonzero(sizes.size_L)
    rates_L = np.zeros(space.n_layers)
    outliers_L = np.array([layer.outlier_share for layer in layers])
    rates_L[narrowed] = rates(outliers_L[narrowed], sizes.rate)
    return {"owl": levels_of_rates(space, shifted(rates_L, sizes))}


register(
    AllocationEntry("owl", "layers with more outlier weights lose less (OWL)", levels, order=30)
)
