"""The number of candidates of a space of widths.

Shapes: T totals of removed weights, from none up to the budget.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prunesearch.widths.genes import Gene


def count_candidates(genes: Sequence[Gene], budget: int, blocks: bool) -> int:
    """Return the number of candidates that remove exactly a budget.

    Args:
        genes: the genes, by block.
        budget: number of weights that every candidate removes.
        blocks: whether whole blocks may be dropped too.
    """
    # Count the ways to reach each total up to the budget, one block after the other.
    unit = math.gcd(budget, *(gene.cost for gene in genes))
    ways_T = np.zeros(budget // unit + 1, dtype=object)
    ways_T[0] = 1
    for block in dict.fromkeys(gene.block for gene in genes):
        before_T = ways_T
        gone = 0
        for gene in genes:
            if gene.block == block:
                ways_T = _spread(ways_T, gene.cost // unit, gene.most)
                gone += gene.everything * gene.cost // unit
        # Besides all widths, the block may be dropped.
        if blocks and 0 < gone < len(ways_T):
            ways_T = ways_T.copy()
            ways_T[gone:] += before_T[:-gone]
    return int(ways_T[-1])


def _spread(ways_T: NDArray[np.object_], cost: int, most: int) -> NDArray[np.object_]:
    """Return the ways to reach each total with one gene more.

    Args:
        ways_T: ways to reach each total without it.
        cost: amount that one level adds to the total.
        most: largest level.
    """
    found_T = ways_T.copy()
    for level in range(1, most + 1):
        if level * cost >= len(ways_T):
            break
        found_T[level * cost :] += ways_T[: -level * cost]
    return found_T
