"""The candidates of widths in order of their total harm, by a best-first walk."""

import heapq
from collections.abc import Iterator

import numpy as np

from prunesearch.algorithms.operators import Counts, Mask, Real
from prunesearch.algorithms.width_levels import masks_of, nearest
from prunesearch.widths.space import WidthSpace

_SUCCESSORS = 64  # switches of a candidate that are walked to


def by_total(space: WidthSpace, harm_D: Real) -> Iterator[Mask]:
    """Yield candidates in order of their total harm, by a best-first walk.

    It starts where every step that is removed does less harm per weight than every step that is
    kept, as far as the budget allows. A successor makes one level switch; of these, only the
    cheapest are kept.
    """
    start_G = _cheapest(space, harm_D)
    heap = [(_harm(space, start_G, harm_D), start_G.tobytes())]
    known = {heap[0][1]}
    while heap:
        total, stored = heapq.heappop(heap)
        levels_G = np.frombuffer(stored, dtype=np.intp)
        yield masks_of(space, levels_G[None])[0]
        for more, moved_G in _switches(space, levels_G, harm_D):
            key = moved_G.tobytes()
            if key not in known:
                known.add(key)
                heapq.heappush(heap, (total + more, key))


def _harm(space: WidthSpace, levels_G: Counts, harm_D: Real) -> float:
    """Return the total harm of levels."""
    return float(harm_D[masks_of(space, levels_G[None])[0]].sum())


def _cheapest(space: WidthSpace, harm_D: Real) -> Counts:
    """Return the levels that one threshold of harm per weight gives, moved to the budget."""
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
    found_1G = nearest(space, wanted_G[None].astype(np.float64), np.random.default_rng(0))
    return np.ascontiguousarray(found_1G[0])


def _switches(space: WidthSpace, levels_G: Counts, harm_D: Real) -> Iterator[tuple[float, Counts]]:
    """Yield the cheapest switches of one level within a kind of gene, with the harm they
    add.
    """
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
