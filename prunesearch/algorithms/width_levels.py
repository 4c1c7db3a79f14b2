"""Masks and levels of widths.

A gene with n levels has n units. Level l chooses its first l units (a thermometer code), so a set
difference of masks is a difference of levels. What an algorithm makes of masks is counted gene by
gene and projected to the budget.

Shapes: M masks, D units, G genes.
"""

import numpy as np

from prunesearch.algorithms.operators import Counts, Mask, Real
from prunesearch.widths.space import WidthSpace


def levels_of(space: WidthSpace, X_MD: Mask) -> Counts:
    """Return the number of chosen units of each gene, shape (M, G)."""
    return np.add.reduceat(X_MD.astype(np.intp), space.first_unit_G, axis=1)


def masks_of(space: WidthSpace, levels_MG: Counts) -> Mask:
    """Return the masks of levels, shape (M, D)."""
    gene_D = space.gene_D
    place_D = np.arange(gene_D.size) - space.first_unit_G[gene_D]
    return np.asarray(place_D < levels_MG[:, gene_D])


def nearest(space: WidthSpace, wanted_MG: Real, rng: np.random.Generator) -> Counts:
    """Return the levels nearest to the wanted ones. Levels that meet the budget stay."""
    rounded_MG = np.round(wanted_MG)
    exact_M = (rounded_MG == wanted_MG).all(axis=1)
    levels_MG = rounded_MG.astype(np.intp)
    exact_M &= space.meets(levels_MG)
    others = np.flatnonzero(~exact_M)
    if not others.size:
        return levels_MG
    found_MG = space.project(wanted_MG[others], rng)
    assert found_MG is not None, "a space whose budget cannot be met is refused"
    levels_MG[others] = found_MG
    return levels_MG
