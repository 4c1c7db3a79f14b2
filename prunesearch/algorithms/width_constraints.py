"""Constraints on widths: every candidate removes exactly the budget.

Shapes: M masks, D units, G genes; see `width_levels`.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from prunesearch.algorithms.operators import Counts, Mask, Real, new_mask
from prunesearch.algorithms.surrogate import Ranking
from prunesearch.algorithms.width_exchanges import WidthExchanges
from prunesearch.algorithms.width_levels import levels_of, masks_of, nearest
from prunesearch.algorithms.width_surrogate import WidthSurrogate
from prunesearch.algorithms.width_walk import by_total
from prunesearch.widths.space import WidthSpace


@dataclass(frozen=True)
class WidthConstraints:
    """Constraints on the widths of a space.

    Attributes:
        space: the space.
    """

    space: WidthSpace

    @cached_property
    def _exchanges(self) -> WidthExchanges:
        return WidthExchanges(self.space)

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

    def holds(self, X_D: Mask) -> bool:
        """Return whether a mask is a thermometer code of levels that meet the budget."""
        levels_1G = levels_of(self.space, X_D[None])
        canonical = bool((masks_of(self.space, levels_1G)[0] == X_D).all())
        return canonical and bool(self.space.meets(levels_1G)[0])

    def repaired(self, X_MD: Mask, rng: np.random.Generator) -> Mask:
        """Return the masks of the levels nearest to the numbers of chosen units."""
        return masks_of(
            self.space, nearest(self.space, levels_of(self.space, X_MD).astype(np.float64), rng)
        )

    def completed(self, X_D: Mask, rng: np.random.Generator) -> Mask:
        """Return the candidate nearest to any widths."""
        return np.asarray(self.repaired(X_D[None], rng)[0])

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
        return masks_of(self.space, nearest(self.space, wanted_MG, rng))

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
        """Make `count` exchanges in each row."""
        levels_MG = self._exchanges.applied(levels_of(self.space, X_MD), count_M, rng)
        return masks_of(self.space, levels_MG)

    def mutated(self, X_MD: Mask, count_M: Counts, rng: np.random.Generator) -> Mask:
        """Make `count` exchanges in each row."""
        return self.swap(X_MD, count_M, rng)

    def neighbours(self, X_D: Mask, most: int, rng: np.random.Generator) -> Mask:
        """Return up to `most` different masks that one level switch makes of `X_D`."""
        ones_M = np.ones(most, dtype=np.intp)
        return np.unique(self.swap(np.repeat(X_D[None], most, axis=0), ones_M, rng), axis=0)

    def exchangeable(self, X_D: Mask) -> tuple[Counts, Counts] | None:
        """Return None, because a level switch changes several units."""
        return None

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
        swapped_MD = self.swap(np.repeat(X_D[None], tries, axis=0), wide_M, rng)
        found_D = new_mask(self.repaired(swapped_MD, rng), self, seen, rng)
        return X_D if found_D is None else found_D

    def every_subset(self) -> Iterator[Mask]:
        """Yield all candidates, in order of their levels."""
        space = self.space
        # What the genes from each one on can remove at most.
        after_G = np.append(np.cumsum((space.limit_G * space.cost_G)[::-1])[::-1], 0)
        levels_G = np.zeros(space.n_genes, dtype=np.intp)

        def extend(gene: int, rest: int) -> Iterator[Mask]:
            if gene == space.n_genes:
                if rest == 0 and space.meets(levels_G[None])[0]:
                    yield masks_of(self.space, levels_G[None])[0]
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
        wanted_PG = levels_of(self.space, centre_PD) + 0.2 * heat_P1 * noise_PG
        return masks_of(self.space, nearest(self.space, wanted_PG, rng))

    def by_total(self, harm_D: Real) -> Iterator[Mask]:
        """Yield candidates in order of their total harm, the cheapest first."""
        return by_total(self.space, harm_D)

    def surrogate(
        self, X_ND: Mask, score_N: Real, ranking: Ranking | None, noise_N: Real | None = None
    ) -> WidthSurrogate:
        """Fit a surrogate to candidates and their scores (see `GaussianProcess`)."""
        return WidthSurrogate(X_ND, score_N, ranking, self.space, noise_N)

    def keys(self, X_D: Mask) -> Real:
        """Return the share that is removed of each gene."""
        return np.asarray(levels_of(self.space, X_D[None])[0] / self.space.limit_G)

    def from_keys(self, x_MC: Real, rng: np.random.Generator) -> Mask:
        """Return the candidates nearest to shares that are removed of each gene."""
        return masks_of(self.space, nearest(self.space, x_MC * self.space.limit_G, rng))

    def condensed(self, value_MD: Real) -> Real:
        """Return the largest number of each gene's units, shape (M, G)."""
        return np.maximum.reduceat(value_MD, self.space.first_unit_G, axis=1)

    def expanded(self, stored: Real) -> Real:
        """Return each gene's number for all its units."""
        return np.asarray(stored[self.space.gene_D])
