"""Rates of blocks, and the levels of genes that they amount to.

The *rate* of a block is the share of its removable weights that is removed. A method that gives one
rate for each block says nothing of attention and MLP. Both get the rate of the block; the attention
is rounded to whole KV groups, and the MLP takes the rest, so that the block loses its share.

Shapes: L blocks, G genes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prunesearch.widths.genes import Gene, Real
from prunesearch.widths.space import WidthSpace


@dataclass(frozen=True)
class BlockSizes:
    """Removable weights of each block of a space.

    Attributes:
        size_L: weights of the block's genes; 0 for blocks that stay whole.
        limit_L: largest rate of each block; 0 for blocks that stay whole.
        budget: weights that are removed.
    """

    size_L: Real
    limit_L: Real
    budget: float

    @property
    def rate(self) -> float:
        """Return the mean rate S, weighted by the sizes."""
        return float(self.budget / self.size_L.sum())


def sizes_of_blocks(space: WidthSpace) -> BlockSizes:
    """Return the removable weights of each block."""
    size_L, most_L = np.zeros(space.n_layers), np.zeros(space.n_layers)
    for gene in space.genes:
        size_L[gene.block] += gene.everything * gene.cost
        most_L[gene.block] += gene.most * gene.cost
    limit_L = np.divide(most_L, size_L, out=np.zeros_like(size_L), where=size_L > 0)
    return BlockSizes(size_L, limit_L, space.budget)


def shifted(rates_L: Real, sizes: BlockSizes) -> Real:
    """Add one number to all rates, so that they remove the budget within their limits."""
    return _solved(lambda shift: rates_L + shift, sizes, -2.0 - rates_L.max(), 2.0 - rates_L.min())


def scaled(shares_L: Real, sizes: BlockSizes) -> Real:
    """Multiply all shares by one number, so that they remove the budget within their limits.

    Args:
        shares_L: positive numbers.
        sizes: sizes of the blocks.
    """
    return _solved(lambda factor: shares_L * factor, sizes, 0.0, 1.0 / float(shares_L.min()))


def _solved(rates_of: Callable[[float], Real], sizes: BlockSizes, low: float, high: float) -> Real:
    """Find the parameter whose rates, cut to their limits, remove the budget, by bisection.

    Args:
        rates_of: function that returns the rates of a parameter and grows with it.
        sizes: sizes of the blocks.
        low, high: parameters that remove too little and too much.
    """
    for _ in range(100):
        middle = (low + high) / 2
        removed = np.clip(rates_of(middle), 0, sizes.limit_L) @ sizes.size_L
        if removed < sizes.budget:
            low = middle
        else:
            high = middle
    return np.clip(rates_of(high), 0, sizes.limit_L)


def levels_of_rates(space: WidthSpace, rates_L: Real) -> Real:
    """Return the levels of rates, shape (G,): whole ones for KV groups, real ones for channels."""
    # Collect the genes of each block.
    levels_G = np.zeros(space.n_genes)
    of_block: dict[int, list[tuple[int, Gene]]] = {}
    for place, gene in enumerate(space.genes):
        of_block.setdefault(gene.block, []).append((place, gene))
    for block, genes in of_block.items():
        # A block with one gene loses its share there.
        rate = float(rates_L[block])
        if len(genes) == 1:
            place, gene = genes[0]
            levels_G[place] = rate * gene.everything
            continue
        (mlp_place, mlp), (attention_place, attention) = genes
        # The nearest number of groups with which the MLP can take the rest.
        wanted = rate * (mlp.everything * mlp.cost + attention.everything * attention.cost)
        nearest = math.ceil(rate * attention.everything - 0.5)
        by_distance = sorted(range(attention.most + 1), key=lambda level: abs(level - nearest))
        for level in by_distance:
            rest = (wanted - level * attention.cost) / mlp.cost
            if -1e-9 <= rest <= mlp.most + 1e-9:
                levels_G[attention_place], levels_G[mlp_place] = level, max(rest, 0.0)
                break
        else:
            # No number of groups fits: both genes get the rate, as far as they can.
            levels_G[attention_place] = min(nearest, attention.most)
            levels_G[mlp_place] = np.clip(rate * mlp.everything, 0, mlp.most)
    return levels_G


def levels_of_mlps(space: WidthSpace, shares_L: Real) -> Real:
    """Return levels that leave the attention whole, as far as MLPs can hold the budget.

    The rates of MLPs are in proportion to the shares, within their limits. What MLPs cannot hold is
    removed of KV groups, at one rate for all blocks.

    Args:
        space: space of widths.
        shares_L: positive number of each block.
    """
    levels_G = np.zeros(space.n_genes)
    is_mlp_G = np.array([not gene.attention for gene in space.genes])
    left = float(space.budget)
    for kind_G, shares in ((is_mlp_G, shares_L), (~is_mlp_G, np.ones(space.n_layers))):
        whole_L, most_L = np.zeros(space.n_layers), np.zeros(space.n_layers)
        # The weights of the kind in each block, and the largest rate there.
        places = np.flatnonzero(kind_G).tolist()
        for place in places:
            gene = space.genes[place]
            whole_L[gene.block] = gene.everything * gene.cost
            most_L[gene.block] = gene.most * gene.cost
        limit_L = np.divide(most_L, whole_L, out=np.zeros_like(whole_L), where=whole_L > 0)
        rates_L = scaled(shares, BlockSizes(whole_L, limit_L, left))
        for place in places:
            gene = space.genes[place]
            levels_G[place] = rates_L[gene.block] * gene.everything
        left = max(0.0, space.budget - float(levels_G @ space.cost_G))
    return levels_G
