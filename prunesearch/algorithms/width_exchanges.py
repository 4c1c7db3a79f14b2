"""Random exchanges of widths.

An exchange is the level switch of O. Sieberling et al., "EvoPress", ICML 2025, arXiv:2410.14649,
sec. 3: one gene removes more and another one as much less. Here its size is random too, up to a
quarter of the gene's levels, because with single steps a search of a few hundred trials would stay
near its start.

Shapes: M candidates, G genes, K kinds (the genes whose levels cost the same).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from prunesearch.algorithms.operators import Counts
from prunesearch.algorithms.width_levels import nearest
from prunesearch.widths.space import WidthSpace

_ACROSS = 0.2  # probability that an exchange is between two kinds of genes
_BLOCK = 0.25  # probability that an exchange drops or revives a whole block, where it may
_LARGEST = 0.25  # largest size of an exchange, as a share of the gene's levels
_SMALLER = 0.5  # probability that an exchange is not larger still


@dataclass(frozen=True)
class WidthExchanges:
    """The random exchanges of a space.

    Attributes:
        space: the space.
    """

    space: WidthSpace

    def applied(self, levels_MG: Counts, count_M: Counts, rng: np.random.Generator) -> Counts:
        """Make `count` level switches in each row."""
        levels_MG = levels_MG.copy()
        for done in range(int(count_M.max(initial=0))):
            # Some rows drop or revive a block; the others exchange levels of two kinds, or of one.
            rows = np.flatnonzero(count_M > done)
            whole_M = np.zeros(rows.size, dtype=np.bool_)
            if self.space.blocks:
                whole_M = rng.random(rows.size) < _BLOCK
                levels_MG[rows[whole_M]] = self._switched_blocks(levels_MG[rows[whole_M]], rng)
            rows = rows[~whole_M]
            across_M = (rng.random(rows.size) < _ACROSS) & bool(self._exchanges)
            levels_MG[rows[~across_M]] = self._switched(levels_MG[rows[~across_M]], rng)
            for row in rows[across_M].tolist():
                levels_MG[row] = self._exchanged(levels_MG[row], rng)
        return levels_MG

    @cached_property
    def _kinds(self) -> list[Counts]:
        """Genes of each kind."""
        costs = np.unique(self.space.cost_G).tolist()
        return [np.flatnonzero(self.space.cost_G == cost) for cost in costs]

    def _switched(self, levels_MG: Counts, rng: np.random.Generator) -> Counts:
        """Make one level switch in each row, within one kind of gene."""
        levels_MG = levels_MG.copy()
        # A kind with more levels is switched more often.
        weight_K = np.array([math.sqrt(self.space.most_G[genes].sum()) for genes in self._kinds])
        kind_M = rng.choice(len(self._kinds), size=len(levels_MG), p=weight_K / weight_K.sum())
        size_M = rng.geometric(_SMALLER, size=len(levels_MG))
        # Every row draws a gene that removes more and a gene that removes less.
        kind_G = np.empty(self.space.n_genes, dtype=np.intp)
        for kind, genes in enumerate(self._kinds):
            kind_G[genes] = kind
        kept_MG = ~self.space.dropped(levels_MG) & (kind_G == kind_M[:, None])
        up_MG = kept_MG & (levels_MG < self.space.most_G)
        more_M = np.where(up_MG, rng.random(up_MG.shape), -1.0).argmax(axis=1)
        rows = np.arange(len(levels_MG))
        down_MG = kept_MG & (levels_MG > 0)
        down_MG[rows, more_M] = False
        less_M = np.where(down_MG, rng.random(down_MG.shape), -1.0).argmax(axis=1)
        # The size is limited by what both genes have left.
        largest_M = np.maximum(1, (_LARGEST * self.space.most_G[more_M]).astype(np.intp))
        size_M = np.minimum(size_M, largest_M)
        size_M = np.minimum(size_M, self.space.most_G[more_M] - levels_MG[rows, more_M])
        size_M = np.minimum(size_M, levels_MG[rows, less_M])
        size_M[~(up_MG.any(axis=1) & down_MG.any(axis=1))] = 0
        levels_MG[rows, more_M] += size_M
        levels_MG[rows, less_M] -= size_M
        return levels_MG

    @cached_property
    def _exchanges(self) -> list[tuple[Counts, int, Counts, int]]:
        """Pairs of kinds, with the smallest numbers of levels that cost the same.

        Numbers that the genes of a kind do not have are left out.
        """
        pairs = []
        for more in self._kinds:
            for less in self._kinds:
                costs = int(self.space.cost_G[more[0]]), int(self.space.cost_G[less[0]])
                common = math.lcm(*costs)
                up, down = common // costs[0], common // costs[1]
                possible = up <= self.space.most_G[more].sum()
                possible &= down <= self.space.most_G[less].sum()
                if more is not less and possible:
                    pairs.append((more, up, less, down))
        return pairs

    def _exchanged(self, levels_G: Counts, rng: np.random.Generator) -> Counts:
        """Remove more of one kind of gene, and as many weights less of another kind."""
        more, up, less, down = self._exchanges[int(rng.integers(len(self._exchanges)))]
        kept_G = ~self.space.dropped(levels_G[None])[0]
        room_G = np.where(kept_G, self.space.most_G - levels_G, 0)
        gain_G = self._spread_levels(room_G, more, up, rng)
        loss_G = self._spread_levels(np.where(kept_G, levels_G, 0), less, down, rng)
        if gain_G.sum() < up or loss_G.sum() < down:
            return levels_G
        return levels_G + gain_G - loss_G

    def _spread_levels(
        self, room_G: Counts, genes: Counts, total: int, rng: np.random.Generator
    ) -> Counts:
        """Spread a number of levels over few random genes that have room for them."""
        found_G = np.zeros_like(room_G)
        for gene in rng.permutation(genes).tolist():
            largest = max(1, int(_LARGEST * self.space.most_G[gene]))
            room = max(0, int(room_G[gene]))
            found_G[gene] = min(total - int(found_G.sum()), largest, room)
        return found_G

    def _switched_blocks(self, levels_MG: Counts, rng: np.random.Generator) -> Counts:
        """Drop a block, revive one, or do both, in each row. The other genes make up for it."""
        space = self.space
        wanted_MG = levels_MG.astype(np.float64)
        gone_MG = space.dropped(levels_MG)
        for wanted_G, gone_G in zip(wanted_MG, gone_MG, strict=True):
            gone = np.unique(space.block_G[gone_G])
            kept = np.setdiff1d(space.block_G, gone)
            # Each of the three is as likely as the others where it is possible.
            kind = int(rng.integers(3))
            if gone.size and kind != 0:
                revived_G = space.block_G == rng.choice(gone)
                share = float((wanted_G / space.most_G)[~gone_G].mean()) if kept.size else 0.0
                wanted_G[revived_G] = share * space.most_G[revived_G]
            if kept.size > 1 and (kind != 1 or not gone.size):
                dropped_G = space.block_G == rng.choice(kept)
                wanted_G[dropped_G] = space.limit_G[dropped_G]
        return nearest(space, wanted_MG, rng)
