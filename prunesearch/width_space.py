"""Search space of widths: how many channels and KV groups each block keeps, for one total size.

A *gene* is a number of a candidate: the level of a block's MLP or of its attention. A *level* is
the number of steps (of channels) or of groups that are removed. Genes are ordered by block, the MLP
before the attention. All candidates of a space remove exactly the same number of weights.

Shapes: M candidates, G genes.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.layer_widths import LayerWidths, WidthShape
from prunesearch.units import parse_size

Levels = NDArray[np.intp]
"""Levels of genes, shape (G,) or (M, G)."""
Real = NDArray[np.float64]

MOST_LEVELS = 64
"""Largest number of levels of an MLP. A larger one gets a larger step."""
_TRIED = 4096  # totals of a kind of gene that are tried, the nearest first


@dataclass(frozen=True)
class Gene:
    """One number of a candidate.

    Attributes:
        block: index of the block.
        attention: True for KV groups, False for channels.
        full: number of units (channels or groups) that the block has.
        step: number of units that a level removes.
        most: largest level if the block is kept.
        cost: number of weights that a level removes.
    """

    block: int
    attention: bool
    full: int
    step: int
    most: int
    cost: int

    @property
    def everything(self) -> int:
        """Level at which nothing is left."""
        return self.full // self.step


@dataclass(frozen=True)
class WidthSpace:
    """All ways to remove `budget` weights by narrowing blocks, and by dropping blocks if `blocks`.

    Attributes:
        shape: number of channels and groups of each block.
        budget: number of weights that every candidate removes.
        steps: for each block the number of channels that a level removes.
        order: digest of the channel order.
        biases: whether narrowed sublayers get a bias.
        protected: blocks that stay whole.
        blocks: whether whole blocks may be dropped too. A block that is kept keeps at least one
            step of channels (or as many experts as a token uses) and one group.

    Raises:
        InputError: the budget cannot be met.
    """

    shape: WidthShape
    budget: int
    steps: tuple[int, ...]
    order: str = ""
    biases: bool = False
    protected: frozenset[int] = frozenset()
    blocks: bool = False

    def __post_init__(self) -> None:
        if self.budget <= 0:
            raise InputError(
                f"a budget of {self.budget} weights removes nothing: give a larger one"
            )
        if self.project(np.zeros((1, self.n_genes))) is None:
            raise InputError(
                f"{self.budget:,} weights cannot be removed: at most {self.removable:,} of the "
                f"{self.shape.weights:,} weights in layers can, in steps of "
                f"{min(gene.cost for gene in self.genes):,}"
            )

    @classmethod
    def parse(
        cls,
        shape: WidthShape,
        target: str,
        total_params: int,
        bytes_per_param: int,
        *,
        align: int = 64,
        protected: frozenset[int] = frozenset(),
        blocks: bool = False,
        order: str = "",
        biases: bool = False,
    ) -> Self:
        """Build a space from the value of `target`: ``20%`` of the model's parameters, ``26M``
        parameters, or ``100MiB`` of weights. The budget is the nearest one that whole steps make.

        Args:
            shape: number of channels and groups of each block.
            target: amount to remove.
            total_params: number of parameters of the dense model.
            bytes_per_param: bytes of a parameter.
            align: number that all widths in channels are multiples of.
            protected: blocks that stay whole.
            blocks: whether whole blocks may be dropped too.
            order, biases: see `LayerWidths`.

        Raises:
            InputError: a value cannot be read or cannot be fulfilled.
        """
        wanted = parse_target(target, total_params, bytes_per_param)
        steps = []
        for index, channels in enumerate(shape.channels):
            # Experts are removed one by one.
            steps.append(1 if shape.experts_used(index) else _step(channels, align))
        budget = _nearest_budget(_genes(shape, steps, protected), wanted)
        space_ends = f"`target` {target}"
        try:
            return cls(shape, budget, tuple(steps), order, biases, protected, blocks)
        except InputError as error:
            raise InputError(f"{space_ends}: {error}") from None

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.shape.n_layers

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """The genes, by block, the MLP before the attention. Protected blocks have none."""
        return _genes(self.shape, self.steps, self.protected)

    @property
    def n_genes(self) -> int:
        """Number of genes G."""
        return len(self.genes)

    @cached_property
    def cost_G(self) -> Levels:
        """Weights that one level of each gene removes."""
        return np.array([gene.cost for gene in self.genes], dtype=np.intp)

    @cached_property
    def most_G(self) -> Levels:
        """Largest level of each gene of a kept block."""
        return np.array([gene.most for gene in self.genes], dtype=np.intp)

    @cached_property
    def limit_G(self) -> Levels:
        """Largest level of each gene: that of a dropped block if blocks may be dropped."""
        if not self.blocks:
            return self.most_G
        return np.array([gene.everything for gene in self.genes], dtype=np.intp)

    @cached_property
    def block_G(self) -> Levels:
        """Block of each gene."""
        return np.array([gene.block for gene in self.genes], dtype=np.intp)

    @property
    def n_units(self) -> int:
        """Number of units: the levels of all genes. Level l of a gene drops its first l units."""
        return int(self.limit_G.sum())

    @cached_property
    def first_unit_G(self) -> Levels:
        """First unit of each gene."""
        return np.asarray(np.cumsum(self.limit_G) - self.limit_G)

    @cached_property
    def gene_D(self) -> Levels:
        """Gene of each unit."""
        return np.repeat(np.arange(self.n_genes), self.limit_G)

    @property
    def removable(self) -> int:
        """Largest number of weights that can be removed."""
        return int(self.cost_G @ self.limit_G)

    @cached_property
    def size(self) -> int:
        """Number of candidates."""
        # Count the ways to reach each total up to the budget, one block after the other.
        unit = math.gcd(self.budget, *self.cost_G.tolist())
        ways_T = np.zeros(self.budget // unit + 1, dtype=object)
        ways_T[0] = 1
        for block in dict.fromkeys(self.block_G.tolist()):
            before_T = ways_T
            for gene in self.genes:
                if gene.block == block:
                    ways_T = _spread(ways_T, gene.cost // unit, gene.most)
            # Besides all widths, the block may be dropped.
            if self.blocks:
                gone_G = self.block_G == block
                gone = int((self.limit_G * self.cost_G)[gone_G].sum()) // unit
                if 0 < gone < len(ways_T):
                    ways_T = ways_T.copy()
                    ways_T[gone:] += before_T[:-gone]
        return int(ways_T[-1])

    def removed(self, levels_MG: Levels) -> Levels:
        """Return the number of weights that candidates remove, shape (M,)."""
        return np.asarray(levels_MG @ self.cost_G)

    def dropped(self, levels_MG: Levels | Real) -> NDArray[np.bool_]:
        """Return for each gene whether nothing is left of its block, shape (M, G)."""
        if not self.blocks:
            return np.zeros(levels_MG.shape, dtype=np.bool_)
        kept_MG = levels_MG < self.limit_G - 0.5
        starts = np.flatnonzero(np.diff(self.block_G, prepend=-1))
        kept_MB = np.logical_or.reduceat(kept_MG, starts, axis=1)
        return np.asarray(~np.repeat(kept_MB, np.diff([*starts, self.n_genes]), axis=1))

    def meets(self, levels_MG: Levels) -> NDArray[np.bool_]:
        """Return whether levels are those of candidates of this space, shape (M,)."""
        most_MG = np.where(self.dropped(levels_MG), self.limit_G, self.most_G)
        inside_M = ((levels_MG >= 0) & (levels_MG <= most_MG)).all(axis=1)
        return np.asarray(inside_M & (self.removed(levels_MG) == self.budget))

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
        # If they remove too little, drop one more block each time, the narrowest first.
        narrowest: list[tuple[float, int]] = []
        for block in dict.fromkeys(self.block_G.tolist()):
            of_block = self.block_G == block
            left = float(((self.limit_G - wanted_G) * self.cost_G)[of_block].sum())
            narrowest.append((left, block))
        more = [block for _, block in sorted(narrowest)]
        tries += [more[:count] for count in range(1, len(more))]
        for dropped in tries:
            levels_MG = self._with_dropped(wanted_G[None], np.isin(self.block_G, dropped), rng)
            if levels_MG is not None:
                return np.asarray(levels_MG[0])
        return None

    def _with_dropped(
        self, wanted_MG: Real, gone_G: NDArray[np.bool_], rng: np.random.Generator | None
    ) -> Levels | None:
        """Project the genes of kept blocks, with some blocks dropped; None if it is impossible."""
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

    def candidate(self, levels_G: Levels) -> LayerWidths:
        """Return the candidate with these levels."""
        channels, groups = list(self.shape.channels), list(self.shape.groups)
        for gene, level in zip(self.genes, levels_G.tolist(), strict=True):
            kept = groups if gene.attention else channels
            kept[gene.block] = gene.full - level * gene.step
        return LayerWidths.within(self.shape, channels, groups, self.order, self.biases)

    def with_units(self, units: Iterable[int]) -> LayerWidths:
        """Return the candidate that drops these units. Only their number in each gene counts."""
        dropped = np.fromiter(units, dtype=np.intp)
        return self.candidate(np.bincount(self.gene_D[dropped], minlength=self.n_genes))

    def units_of(self, candidate: LayerSubset) -> tuple[int, ...]:
        """Return the units that a candidate drops, in order.

        Raises:
            InputError: the candidate has a width that this space does not have.
        """
        return self._units(self.levels(candidate))

    def units_in(self, params: Mapping[str, float]) -> tuple[int, ...]:
        """Return the units that a trial's parameters drop.

        Raises:
            InputError: a parameter is missing.
        """
        return self._units(np.clip(self.levels_of(params), 0, self.limit_G))

    def _units(self, levels_G: Levels) -> tuple[int, ...]:
        """Return the units of levels."""
        place_D = np.arange(self.n_units) - self.first_unit_G[self.gene_D]
        return tuple(np.flatnonzero(place_D < levels_G[self.gene_D]).tolist())

    def levels(self, candidate: LayerSubset) -> Levels:
        """Return the levels of a candidate.

        Raises:
            InputError: the candidate has a width that this space does not have.
        """
        if not isinstance(candidate, LayerWidths) or candidate.shape != self.shape:
            raise InputError(f"layers {candidate.text} are not widths of this model")
        levels = []
        for gene in self.genes:
            kept = candidate.groups if gene.attention else candidate.channels
            level, rest = divmod(gene.full - kept[gene.block], gene.step)
            if rest:
                raise InputError(
                    f"layer {gene.block} cannot keep {kept[gene.block]} channels: widths of this "
                    f"search are multiples of {gene.step}"
                )
            levels.append(level)
        return np.array(levels, dtype=np.intp)

    @cached_property
    def param_ranges(self) -> dict[str, tuple[int, int, int]]:
        """Smallest value, largest value and step of each parameter, by name.

        ``mlp_00`` is the number of channels that block 0 keeps, ``kv_00`` its number of KV groups.
        """
        digits = max(2, len(str(self.n_layers - 1)))
        ranges = {}
        for gene, limit in zip(self.genes, self.limit_G.tolist(), strict=True):
            name = f"{'kv' if gene.attention else 'mlp'}_{gene.block:0{digits}d}"
            ranges[name] = (gene.full - limit * gene.step, gene.full, gene.step)
        return ranges

    @property
    def param_names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of the genes."""
        return tuple(self.param_ranges)

    def to_params(self, candidate: LayerSubset) -> dict[str, int]:
        """Encode a candidate as Optuna parameters: the widths that are kept."""
        params = {}
        for name, gene, level in zip(
            self.param_names, self.genes, self.levels(candidate).tolist(), strict=True
        ):
            params[name] = gene.full - level * gene.step
        return params

    def levels_of(self, params: Mapping[str, float]) -> Levels:
        """Decode parameters to levels, which need not meet the budget.

        Raises:
            InputError: a parameter is missing.
        """
        levels = []
        for name, gene in zip(self.param_names, self.genes, strict=True):
            if name not in params:
                raise InputError(
                    f"the trial has no parameter {name}: it is not of a search over these widths"
                )
            levels.append((gene.full - round(params[name])) // gene.step)
        return np.array(levels, dtype=np.intp)

    def any_subset(self, params: Mapping[str, float]) -> LayerWidths:
        """Decode a trial's parameters to a candidate that may remove any number of weights.

        Raises:
            InputError: a parameter is missing, or a width does not fit.
        """
        return self.candidate(self.levels_of(params))

    def from_params(self, params: Mapping[str, float]) -> LayerWidths:
        """Decode a trial's parameters to a candidate.

        Raises:
            InputError: a parameter is missing, or the widths do not meet the budget.
        """
        levels_G = self.levels_of(params)
        removed = int(self.removed(levels_G[None])[0])
        if removed != self.budget:
            raise InputError(
                f"these widths remove {removed:,} weights, and this search removes {self.budget:,}"
            )
        return self.candidate(levels_G)

    def count(self, candidate: LayerSubset) -> int:
        """Return the number of weights that a candidate removes."""
        return int(self.removed(self.levels(candidate)[None])[0])

    def removes_less(self, candidate: LayerSubset) -> bool:
        """Return whether a candidate removes fewer weights than the budget."""
        return self.count(candidate) < self.budget

    def removes_more(self, candidate: LayerSubset) -> bool:
        """Return whether a candidate removes more weights than the budget."""
        return self.count(candidate) > self.budget


def parse_target(text: str, total_params: int, bytes_per_param: int) -> float:
    """Convert the value of `target` to a number of parameters.

    Raises:
        InputError: the value cannot be read, or removes nothing or everything.
    """
    words = text.strip()
    if percent := re.fullmatch(r"(\d{1,3}(?:\.\d+)?)%", words):
        wanted = float(percent[1]) / 100 * total_params
    elif count := re.fullmatch(r"(\d{1,12}(?:\.\d+)?)([KMB]?)", words):
        wanted = float(count[1]) * {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}[count[2]]
    else:
        try:
            wanted = parse_size(words, "`target`") / bytes_per_param
        except InputError:
            raise InputError(
                f"`target` {text!r} cannot be read: give a share (20%), a number of parameters "
                f"(26M) or a size (100MiB)"
            ) from None
    if not 0 < wanted < total_params:
        raise InputError(
            f"`target` {text} is {wanted:,.0f} of {total_params:,} parameters: give more than none "
            f"and less than all"
        )
    return wanted


def _genes(shape: WidthShape, steps: Sequence[int], protected: frozenset[int]) -> tuple[Gene, ...]:
    """Return the genes of the blocks that are not protected."""
    genes = []
    for block in range(shape.n_layers):
        if block in protected:
            continue
        channels, step = shape.channels[block], steps[block]
        # A block that is kept keeps a step, or the experts that a token uses.
        most = channels // step - max(1, shape.experts_used(block))
        if most > 0:
            cost = step * shape.channel_weights[block]
            genes.append(Gene(block, False, channels, step, most, cost))
        groups = shape.groups[block]
        if groups > 1:
            genes.append(Gene(block, True, groups, 1, groups - 1, shape.group_weights[block]))
    return tuple(genes)


def _step(channels: int, align: int) -> int:
    """Return the number of channels that a level removes: a multiple of `align`.

    Raises:
        InputError: `align` does not divide the number of channels.
    """
    if channels == 0:
        return 1
    if align < 1 or channels % align:
        raise InputError(
            f"`align` {align} does not divide the {channels} channels of a layer: use "
            f"`align` {math.gcd(channels, max(align, 1))}"
        )
    # A large MLP gets the smallest step with few enough levels.
    units = channels // align
    for factor in range(1, units):
        if units % factor == 0 and units // factor <= MOST_LEVELS:
            return factor * align
    return align


def _nearest_budget(genes: Sequence[Gene], wanted: float) -> int:
    """Return a number of weights that whole levels make, at most half a level of an MLP away.

    If MLPs alone can make one, the nearest of these is taken. With it all attentions can stay
    whole, or all be alike. Of other numbers the nearest one is taken, and of two equally near ones
    the one that more totals of groups can make.
    """
    costs = sorted({gene.cost for gene in genes})
    if not costs:
        raise InputError("no layer can be narrowed: protect fewer")
    attention = sorted({gene.cost for gene in genes if gene.attention})
    main = next((gene.cost for gene in genes if not gene.attention), costs[0])
    steps = round(wanted / main)
    if 0 < steps <= sum(gene.most for gene in genes if gene.cost == main and not gene.attention):
        return steps * main
    groups = sum(gene.most for gene in genes if gene.attention)
    reached: dict[int, int] = {}
    for cost in attention or [0]:
        for count in range(groups + 1):
            levels = max(0, round((wanted - cost * count) / main))
            total = cost * count + main * levels
            reached[total] = reached.get(total, 0) + 1
    return min(reached, key=lambda total: (abs(total - wanted), -reached[total]))


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
