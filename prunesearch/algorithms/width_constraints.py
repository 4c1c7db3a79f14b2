"""Constraints on widths: every candidate removes exactly the budget.

A gene with n levels has n units. Level l chooses its first l units (a thermometer code), so a set
difference of masks is a difference of levels. What an algorithm makes of masks is counted gene by
gene and projected to the budget.

The random exchange is the level switch of O. Sieberling et al., "EvoPress", ICML 2025,
arXiv:2410.14649, sec. 3: one gene removes more and another one as much less. Here its size is
random too, up to a quarter of the gene's levels, because with single steps a search of a few
hundred trials would stay near its start.

Shapes: M masks, D units, G genes, H genes of one kind (the genes whose levels cost the same).
"""

import heapq
import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from prunesearch.algorithms.operators import Counts, Mask, Real
from prunesearch.algorithms.subset_constraints import LISTABLE
from prunesearch.algorithms.surrogate import Ranking
from prunesearch.algorithms.width_surrogate import WidthSurrogate
from prunesearch.widths.space import WidthSpace

_ACROSS = 0.2  # probability that an exchange is between two kinds of genes
_BLOCK = 0.25  # probability that an exchange drops or revives a whole block, where it may
_LARGEST = 0.25  # largest size of an exchange, as a share of the gene's levels
_SUCCESSORS = 64  # switches of a candidate that `by_total` walks to
_SMALLER = 0.5  # probability that an exchange is not larger still


@dataclass(frozen=True)
class WidthConstraints:
    """Constraints on the widths of a space.

    Attributes:
        space: the space.
    """

    space: WidthSpace

    @cached_property
    def free_D(self) -> Mask:
        """Units that may be chosen: all."""
        return np.ones(self.space.n_units, dtype=np.bool_)

    @property
    def k_min(self) -> int:
        """Smallest number of chosen units. The budget decides, not the number."""
        return 1

    @property
    def k_max(self) -> int:
        """Largest number of chosen units."""
        return self.space.n_units

    @property
    def fixed(self) -> bool:
        """False: candidates of the same budget may have different numbers of units."""
        return False

    @property
    def count(self) -> int:
        """Number of candidates."""
        return self.space.size

    def of_size(self, size: int) -> "WidthConstraints":
        """Return the same constraints, because the budget is fixed."""
        return self

    def levels(self, X_MD: Mask) -> Counts:
        """Return the number of chosen units of each gene, shape (M, G)."""
        return np.add.reduceat(X_MD.astype(np.intp), self.space.first_unit_G, axis=1)

    def masks(self, levels_MG: Counts) -> Mask:
        """Return the masks of levels, shape (M, D)."""
        gene_D = self.space.gene_D
        place_D = np.arange(gene_D.size) - self.space.first_unit_G[gene_D]
        return np.asarray(place_D < levels_MG[:, gene_D])

    def holds(self, X_D: Mask) -> bool:
        """Return whether a mask is a thermometer code of levels that meet the budget."""
        levels_1G = self.levels(X_D[None])
        canonical = bool((self.masks(levels_1G)[0] == X_D).all())
        return canonical and bool(self.space.meets(levels_1G)[0])

    def repaired(self, X_MD: Mask, rng: np.random.Generator) -> Mask:
        """Return the masks of the levels nearest to the numbers of chosen units."""
        return self.masks(self.nearest(self.levels(X_MD).astype(np.float64), rng))

    def completed(self, X_D: Mask, rng: np.random.Generator) -> Mask:
        """Return the candidate nearest to any widths."""
        return np.asarray(self.repaired(X_D[None], rng)[0])

    def nearest(self, wanted_MG: Real, rng: np.random.Generator) -> Counts:
        """Return the levels nearest to the wanted ones. Levels that meet the budget stay."""
        rounded_MG = np.round(wanted_MG)
        exact_M = (rounded_MG == wanted_MG).all(axis=1)
        levels_MG = rounded_MG.astype(np.intp)
        exact_M &= self.space.meets(levels_MG)
        others = np.flatnonzero(~exact_M)
        if not others.size:
            return levels_MG
        found_MG = self.space.project(wanted_MG[others], rng)
        if found_MG is None:
            # No set of dropped blocks near the wanted one meets the budget.
            found_MG = self.space.project(np.zeros((others.size, self.space.n_genes)), rng)
        assert found_MG is not None, "a space whose budget cannot be met is refused"
        levels_MG[others] = found_MG
        return levels_MG

    def random_subsets(self, size_M: Counts, rng: np.random.Generator) -> Mask:
        """Draw candidates with random rates for each block, one for each entry of `size_M`.

        Uniform draws of units would all be near the uniform allocation. So a candidate first draws
        how much its rates differ, and how much of that belongs to whole blocks.
        """
        space, count = self.space, size_M.size
        share = space.budget / max(1, space.removable)
        spread_M1 = rng.uniform(0.05, 0.6, (count, 1))
        common_M1 = rng.random((count, 1))
        blocks, block_G = np.unique(space.block_G, return_inverse=True)
        of_block_MG = rng.normal(size=(count, blocks.size))[:, block_G]
        of_gene_MG = rng.normal(size=(count, space.n_genes))
        noise_MG = np.sqrt(common_M1) * of_block_MG + np.sqrt(1.0 - common_M1) * of_gene_MG
        # Attention as a whole may lose more or less than MLPs.
        attention_G = np.array([gene.attention for gene in space.genes])
        noise_MG = noise_MG + attention_G * rng.normal(size=(count, 1))
        wanted_MG = np.clip(share + spread_M1 * noise_MG, 0.0, 1.0) * space.most_G
        if space.blocks:
            wanted_MG = self._with_random_drops(wanted_MG, rng)
        return self.masks(self.nearest(wanted_MG, rng))

    def _with_random_drops(self, wanted_MG: Real, rng: np.random.Generator) -> Real:
        """Drop a random number of blocks in each row, at most as many as the budget allows."""
        space = self.space
        blocks = np.unique(space.block_G)
        cost_B = np.array(
            [(space.limit_G * space.cost_G)[space.block_G == block].sum() for block in blocks]
        )
        most = min(blocks.size - 1, int(space.budget // max(1, cost_B.min())))
        for wanted_G in wanted_MG:
            gone = rng.choice(blocks, size=int(rng.integers(most + 1)), replace=False)
            gone_G = np.isin(space.block_G, gone)
            wanted_G[gone_G] = space.limit_G[gone_G]
        return wanted_MG

    def swap(self, X_MD: Mask, count_M: Counts, rng: np.random.Generator) -> Mask:
        """Make `count` level switches in each row."""
        levels_MG = self.levels(X_MD)
        for done in range(int(count_M.max(initial=0))):
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
        return self.masks(levels_MG)

    def mutated(self, X_MD: Mask, count_M: Counts, rng: np.random.Generator) -> Mask:
        """Make `count` level switches in each row."""
        return self.swap(X_MD, count_M, rng)

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
        return self.nearest(wanted_MG, rng)

    def neighbours(self, X_D: Mask, most: int, rng: np.random.Generator) -> Mask:
        """Return up to `most` different masks that one level switch makes of `X_D`."""
        ones_M = np.ones(most, dtype=np.intp)
        return np.unique(self.swap(np.repeat(X_D[None], most, axis=0), ones_M, rng), axis=0)

    def resize(self, X_MD: Mask, size_M: Counts, rng: np.random.Generator) -> Mask:
        """Return the masks as they are, because the budget is fixed."""
        return X_MD

    def drift(self, X_MD: Mask, rng: np.random.Generator) -> Mask:
        """Return the masks as they are, because the budget is fixed."""
        return X_MD

    def unseen(
        self, X_D: Mask, seen: Set[bytes], rng: np.random.Generator, tries: int = 64
    ) -> Mask:
        """Return `X_D` if it is new, else a new candidate that differs by few level switches.

        If random switches find none in a small space, one of the unseen candidates is drawn. If
        none is left, `X_D` is returned.
        """
        if X_D.tobytes() not in seen:
            return X_D
        wide_M = 1 + np.arange(tries) * 4 // tries
        for Y_D in self.repaired(self.swap(np.repeat(X_D[None], tries, axis=0), wide_M, rng), rng):
            if Y_D.tobytes() not in seen:
                return np.ascontiguousarray(Y_D)
        if self.count > LISTABLE:
            return X_D
        left = [Y_D for Y_D in self.every_subset() if Y_D.tobytes() not in seen]
        if not left:
            return X_D
        return left[int(rng.integers(len(left)))]

    def every_subset(self) -> Iterator[Mask]:
        """Yield all candidates, in order of their levels."""
        space = self.space
        # What the genes from each one on can remove at most.
        after_G = np.append(np.cumsum((space.limit_G * space.cost_G)[::-1])[::-1], 0)
        levels_G = np.zeros(space.n_genes, dtype=np.intp)

        def extend(gene: int, rest: int) -> Iterator[Mask]:
            if gene == space.n_genes:
                if rest == 0 and space.meets(levels_G[None])[0]:
                    yield self.masks(levels_G[None])[0]
                return
            for level in range(int(space.limit_G[gene]) + 1):
                left = rest - level * int(space.cost_G[gene])
                if 0 <= left <= after_G[gene + 1]:
                    levels_G[gene] = level
                    yield from extend(gene + 1, left)
            levels_G[gene] = 0

        yield from extend(0, space.budget)

    def first_subsets(
        self,
        population: int,
        block: int,
        ranking: Ranking | None,
        around: Sequence[Mask],
        rng: np.random.Generator,
    ) -> Mask:
        """Return candidates to start from, shape (P, D): random ones, or ones around given ones.

        Their distance from the given ones grows with each row.
        """
        if not around:
            return self.random_subsets(np.ones(population, dtype=np.intp), rng)
        centre_PD = np.stack([around[place % len(around)] for place in range(population)])
        heat_P1 = (np.arange(population)[:, None] + 1.0) / population + block
        noise_PG = rng.normal(size=(population, self.space.n_genes)) * self.space.most_G
        wanted_PG = self.levels(centre_PD) + 0.2 * heat_P1 * noise_PG
        return self.masks(self.nearest(wanted_PG, rng))

    def by_total(self, harm_D: Real) -> Iterator[Mask]:
        """Yield candidates in order of their total harm, by a best-first walk.

        It starts where every step that is removed does less harm per weight than every step that is
        kept, as far as the budget allows. A successor makes one level switch; of these, only the
        cheapest are kept.
        """
        start_G = self._cheapest(harm_D)
        heap = [(self._harm(start_G, harm_D), start_G.tobytes())]
        known = {heap[0][1]}
        while heap:
            total, stored = heapq.heappop(heap)
            levels_G = np.frombuffer(stored, dtype=np.intp)
            yield self.masks(levels_G[None])[0]
            for more, moved_G in self._switches(levels_G, harm_D):
                key = moved_G.tobytes()
                if key not in known:
                    known.add(key)
                    heapq.heappush(heap, (total + more, key))

    def _harm(self, levels_G: Counts, harm_D: Real) -> float:
        """Return the total harm of levels."""
        return float(harm_D[self.masks(levels_G[None])[0]].sum())

    def _cheapest(self, harm_D: Real) -> Counts:
        """Return the levels that one threshold of harm per weight gives, moved to the budget."""
        space = self.space
        # A level needs those before it, so its price is the highest up to it.
        price_D = np.empty(space.n_units)
        kept_D = np.zeros(space.n_units, dtype=np.bool_)
        for gene, start in enumerate(space.first_unit_G.tolist()):
            end = start + int(space.limit_G[gene])
            price_D[start:end] = np.maximum.accumulate(harm_D[start:end]) / space.cost_G[gene]
            kept_D[start : start + int(space.most_G[gene])] = True
        order = np.flatnonzero(kept_D)[np.argsort(price_D[kept_D], kind="stable")]
        removed_D = np.cumsum(space.cost_G[space.gene_D[order]])
        chosen = order[: int(np.searchsorted(removed_D, space.budget, side="right"))]
        wanted_G = np.bincount(space.gene_D[chosen], minlength=space.n_genes)
        found_1G = self.nearest(wanted_G[None].astype(np.float64), np.random.default_rng(0))
        return np.ascontiguousarray(found_1G[0])

    def _switches(self, levels_G: Counts, harm_D: Real) -> Iterator[tuple[float, Counts]]:
        """Yield the cheapest switches of one level within a kind of gene, with the harm they
        add.
        """
        space = self.space
        kept_G = ~space.dropped(levels_G[None])[0]
        up_G = kept_G & (levels_G < space.most_G)
        down_G = kept_G & (levels_G > 0)
        # Harm of the next level of each gene, and of its last one.
        next_G = np.full(space.n_genes, np.inf)
        next_G[up_G] = harm_D[(space.first_unit_G + levels_G)[up_G]]
        last_G = np.full(space.n_genes, -np.inf)
        last_G[down_G] = harm_D[(space.first_unit_G + levels_G - 1)[down_G]]
        more_GG = next_G[:, None] - last_G
        more_GG[space.cost_G[:, None] != space.cost_G] = np.inf
        np.fill_diagonal(more_GG, np.inf)
        for place in np.argsort(more_GG, axis=None, kind="stable")[:_SUCCESSORS].tolist():
            gains, loses = divmod(place, space.n_genes)
            if not np.isfinite(more_GG[gains, loses]):
                return
            moved_G = levels_G.copy()
            moved_G[gains] += 1
            moved_G[loses] -= 1
            yield float(more_GG[gains, loses]), moved_G

    def surrogate(self, X_ND: Mask, score_N: Real, ranking: Ranking | None) -> WidthSurrogate:
        """Fit a surrogate to candidates and their normal scores."""
        return WidthSurrogate(X_ND, score_N, ranking, self.space)

    def keys(self, X_D: Mask) -> Real:
        """Return the share that is removed of each gene."""
        return np.asarray(self.levels(X_D[None])[0] / self.space.limit_G)

    def from_keys(self, x_MC: Real, rng: np.random.Generator) -> Mask:
        """Return the candidates nearest to shares that are removed of each gene."""
        return self.masks(self.nearest(x_MC * self.space.limit_G, rng))

    def condensed(self, value_MD: Real) -> Real:
        """Return the largest number of each gene's units, shape (M, G)."""
        return np.maximum.reduceat(value_MD, self.space.first_unit_G, axis=1)

    def expanded(self, stored: Real) -> Real:
        """Return each gene's number for all its units."""
        return np.asarray(stored[self.space.gene_D])
