"""Projection: the candidates nearest to wanted levels that remove exactly the budget.

Genes of one cost are of one *kind*. A total level is chosen for each kind so that the budget is
met, and the levels of the kind are shifted until they sum to it.

Shapes: M candidates, G genes, H genes of one kind, K kinds, T totals of a kind, B blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunesearch.widths.genes import Levels, Real

_TRIED = 4096  # totals of a kind of gene that are tried, the nearest first


@dataclass(frozen=True, eq=False)
class Projection:
    """The limits that levels are projected into.

    Attributes:
        budget: number of weights that every candidate removes.
        blocks: whether whole blocks may be dropped too.
        block_G: block of each gene.
        cost_G: weights that one level of each gene removes.
        most_G: largest level of each gene of a kept block.
        limit_G: largest level of each gene: that of a dropped block if blocks may be dropped.
    """

    budget: int
    blocks: bool
    block_G: Levels
    cost_G: Levels
    most_G: Levels
    limit_G: Levels

    def dropped(self, levels_MG: Levels | Real) -> NDArray[np.bool_]:
        """Return for each gene whether nothing is left of its block, shape (M, G)."""
        if not self.blocks:
            return np.zeros(levels_MG.shape, dtype=np.bool_)
        kept_MG = levels_MG < self.limit_G - 0.5
        starts = np.flatnonzero(np.diff(self.block_G, prepend=-1))
        kept_MB = np.logical_or.reduceat(kept_MG, starts, axis=1)
        return np.asarray(~np.repeat(kept_MB, np.diff([*starts, len(self.block_G)]), axis=1))

    def project(self, wanted_MG: Real, rng: np.random.Generator | None = None) -> Levels | None:
        """Return the levels nearest to the wanted ones that remove exactly the budget.

        All levels of a kind are shifted by a common amount and rounded. A block is dropped if
        blocks may be dropped and nothing of it is wanted.

        Args:
            wanted_MG: wanted levels, which may be any finite numbers.
            rng: random generator that breaks ties. None: ties go to the first genes.

        Returns:
            The levels, shape (M, G); None if the budget cannot be met.
        """
        clipped_MG = np.clip(
            np.nan_to_num(np.asarray(wanted_MG, dtype=np.float64)), 0, self.limit_G
        )
        levels_MG = np.zeros(clipped_MG.shape, dtype=np.intp)
        # Candidates that drop the same blocks are projected together.
        together: dict[bytes, list[int]] = {}
        gone_MG = self.dropped(clipped_MG)
        for row, gone_G in enumerate(gone_MG):
            together.setdefault(gone_G.tobytes(), []).append(row)
        for rows in together.values():
            found_MG = self._with_dropped(clipped_MG[rows], gone_MG[rows[0]], rng)
            if found_MG is not None:
                levels_MG[rows] = found_MG
                continue
            for row in rows:
                levels_G = self._with_others_dropped(clipped_MG[row], gone_MG[row], rng)
                if levels_G is None:
                    return None
                levels_MG[row] = levels_G
        return levels_MG

    def _with_others_dropped(
        self, wanted_G: Real, gone_G: NDArray[np.bool_], rng: np.random.Generator | None
    ) -> Levels | None:
        """Project the wanted levels of a candidate whose wanted blocks cannot all be dropped, or do
        not suffice.
        """
        if not self.blocks:
            return None
        gone = list(dict.fromkeys(self.block_G[gone_G].tolist()))
        if rng is not None:
            rng.shuffle(gone)
        # If the wanted blocks remove too much, keep one more of them each time.
        tries = [gone[:count] for count in range(len(gone) - 1, -1, -1)]
        # If they remove too little, drop one more block each time, the narrowest first. At last do
        # so as if all blocks were wanted whole. This meets every budget that can be met.
        for left_G in (self.limit_G - wanted_G, self.limit_G):
            more = self._lightest_first(left_G)
            tries += [more[:count] for count in range(1, len(more))]
        for dropped in tries:
            levels_MG = self._with_dropped(wanted_G[None], np.isin(self.block_G, dropped), rng)
            if levels_MG is not None:
                return np.asarray(levels_MG[0])
        return None

    def _lightest_first(self, left_G: Real | Levels) -> list[int]:
        """Return the blocks, those with the fewest weights left first."""
        lightest: list[tuple[float, int]] = []
        for block in dict.fromkeys(self.block_G.tolist()):
            of_block = self.block_G == block
            lightest.append((float((left_G * self.cost_G)[of_block].sum()), block))
        return [block for _, block in sorted(lightest)]

    def _with_dropped(
        self, wanted_MG: Real, gone_G: NDArray[np.bool_], rng: np.random.Generator | None
    ) -> Levels | None:
        """Project the genes of kept blocks, with some blocks dropped; None if it is impossible."""
        if gone_G.all():
            return None
        levels_MG = np.where(gone_G, self.limit_G, np.zeros_like(wanted_MG, dtype=np.intp))
        rest = self.budget - int(self.limit_G[gone_G] @ self.cost_G[gone_G])
        kinds = []
        for cost in np.unique(self.cost_G[~gone_G]).tolist():
            kinds.append((cost, np.flatnonzero(~gone_G & (self.cost_G == cost))))
        # The kind with the most levels comes last, because its total follows from the others'.
        kinds.sort(key=lambda kind: int(self.most_G[kind[1]].sum()))
        bounded_MG = np.minimum(wanted_MG, self.most_G)
        costs = [cost for cost, _ in kinds]
        wanted_MK = np.stack([bounded_MG[:, genes].sum(1) for _, genes in kinds], 1)
        limits = [int(self.most_G[genes].sum()) for _, genes in kinds]
        totals_MK = _totals_of_rows(costs, wanted_MK, limits, rest)
        if totals_MK is None:
            return None
        for (_, genes), total_M in zip(kinds, totals_MK.T, strict=True):
            wanted_MH = bounded_MG[:, genes]
            levels_MG[:, genes] = _shifted(wanted_MH, self.most_G[genes], total_M, rng)
        return levels_MG


def _totals(
    costs: Sequence[int], wanted: Sequence[float], limits: Sequence[int], rest: int
) -> list[int] | None:
    """Choose the total level of each kind of gene, near the wanted ones, so that their cost is
    `rest`.

    Returns:
        None if there are no such totals.
    """
    if not costs:
        return [] if rest == 0 else None
    if len(costs) == 1:
        total, left = divmod(rest, costs[0])
        return [total] if left == 0 and 0 <= total <= limits[0] else None
    # Try the totals of the first kind, the nearest to the wanted one first. The excess or lack of
    # the wanted totals is shared, so the middle is where the cost is met by an equal shift.
    room = sum(cost * limit for cost, limit in zip(costs, limits, strict=True)) or 1
    short = rest - sum(cost * want for cost, want in zip(costs, wanted, strict=True))
    middle = wanted[0] + short / room * limits[0]
    nearest = sorted(range(limits[0] + 1), key=lambda total: abs(total - middle))
    for total in nearest[:_TRIED]:
        others = _totals(costs[1:], wanted[1:], limits[1:], rest - total * costs[0])
        if others is not None:
            return [total, *others]
    return None


def _totals_of_rows(
    costs: Sequence[int], wanted_MK: Real, limits: Sequence[int], rest: int
) -> Levels | None:
    """Choose the total level of each kind of gene for several candidates; see `_totals`."""
    if len(costs) != 2:
        rows = []
        for wanted_K in wanted_MK.tolist():
            totals = _totals(costs, wanted_K, limits, rest)
            if totals is None:
                return None
            rows.append(totals)
        return np.array(rows, dtype=np.intp).reshape(wanted_MK.shape)
    # With two kinds, list the totals that meet the cost, and take the nearest to the middle.
    first_T = np.arange(limits[0] + 1)
    second_T, left_T = np.divmod(rest - first_T * costs[0], costs[1])
    possible_T = (left_T == 0) & (second_T >= 0) & (second_T <= limits[1])
    if not possible_T.any():
        return None
    first_T, second_T = first_T[possible_T], second_T[possible_T]
    room = costs[0] * limits[0] + costs[1] * limits[1]
    middle_M = wanted_MK[:, 0] + (rest - wanted_MK @ np.array(costs)) / room * limits[0]
    nearest_M = np.abs(first_T - middle_M[:, None]).argmin(axis=1)
    return np.stack([first_T[nearest_M], second_T[nearest_M]], 1)


def _shifted(
    wanted_MG: Real, most_G: Levels, total_M: Levels, rng: np.random.Generator | None
) -> Levels:
    """Shift the levels of each row by a common amount, so that they sum to its total within their
    limits, and round them by the largest remainder.
    """
    # Bisect the shifts.
    high_M = np.full(len(wanted_MG), float(most_G.max(initial=0)) + 1)
    low_M = -high_M
    for _ in range(48):
        middle_M = (low_M + high_M) / 2
        short_M = np.clip(wanted_MG + middle_M[:, None], 0, most_G).sum(1) < total_M
        low_M = np.where(short_M, middle_M, low_M)
        high_M = np.where(short_M, high_M, middle_M)
    shifted_MG = np.round(np.clip(wanted_MG + high_M[:, None], 0, most_G), 6)
    levels_MG = np.floor(shifted_MG).astype(np.intp)
    # Genes with the largest remainders get one level more.
    remainder_MG = shifted_MG - levels_MG
    if rng is not None:
        remainder_MG = remainder_MG + 1e-3 * rng.random(remainder_MG.shape)
    remainder_MG[levels_MG >= most_G] = -1.0
    order_MG = np.argsort(-remainder_MG, axis=1, kind="stable")
    more_MG = np.zeros_like(levels_MG)
    lacking_M = total_M - levels_MG.sum(1)
    ranks_MG = np.broadcast_to(np.arange(levels_MG.shape[1]), levels_MG.shape)
    np.put_along_axis(more_MG, order_MG, (ranks_MG < lacking_M[:, None]).astype(np.intp), axis=1)
    return np.asarray(levels_MG + more_MG)
