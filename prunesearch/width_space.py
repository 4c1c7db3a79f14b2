"""Search space of widths: how many channels and KV groups each block keeps, for one total size.

A *gene* is a number of a candidate: the level of a block's MLP or of its attention. A *level* is
the number of steps (of channels) or of groups that are removed. Genes are ordered by block, the MLP
before the attention. All candidates of a space remove exactly the same number of weights.

Shapes: M candidates, G genes.
"""

import math
import re
from collections.abc import Mapping, Sequence
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
    def removable(self) -> int:
        """Largest number of weights that can be removed."""
        return int(self.cost_G @ self.limit_G)

    @cached_property
    def size(self) -> int:
        """Number of candidates that drop no block.

        Blocks that are dropped only add to it.
        """
        # Count the ways to reach each total within each kind of gene, then combine the kinds.
        found = {0: 1}
        for cost in np.unique(self.cost_G).tolist():
            ways = [1]
            for most in self.most_G[self.cost_G == cost].tolist():
                ways = np.convolve(
                    np.array(ways, dtype=object), np.ones(most + 1, dtype=object)
                ).tolist()
            combined: dict[int, int] = {}
            for removed, count in found.items():
                for level, more in enumerate(ways):
                    total = removed + level * cost
                    if total <= self.budget:
                        combined[total] = combined.get(total, 0) + count * more
            found = combined
        return found.get(self.budget, 0) or 1

    def removed(self, levels_MG: Levels) -> Levels:
        """Return the number of weights that candidates remove, shape (M,)."""
        return np.asarray(levels_MG @ self.cost_G)

    def dropped_blocks(self, levels_G: Levels | Real) -> list[int]:
        """Return the blocks of which nothing is left."""
        if not self.blocks:
            return []
        gone = []
        full_G = levels_G >= self.limit_G - 0.5
        for block in np.unique(self.block_G).tolist():
            if full_G[self.block_G == block].all():
                gone.append(block)
        return gone

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
        rows = []
        for wanted_G in wanted_MG:
            levels_G = self._project_one(wanted_G, rng)
            if levels_G is None:
                return None
            rows.append(levels_G)
        return np.array(rows, dtype=np.intp).reshape(len(wanted_MG), self.n_genes)

    def _project_one(self, wanted_G: Real, rng: np.random.Generator | None) -> Levels | None:
        """Project the wanted levels of one candidate."""
        clipped_G = np.clip(np.nan_to_num(wanted_G.astype(np.float64)), 0, self.limit_G)
        gone = self.dropped_blocks(clipped_G)
        blocks = np.unique(self.block_G).tolist()
        if rng is not None:
            rng.shuffle(gone)
        # Drop the wanted blocks. If that removes too much, keep one more of them each time.
        for count in range(len(gone), -1, -1):
            levels_G = self._with_dropped(clipped_G, gone[:count], rng)
            if levels_G is not None:
                return levels_G
        # If it removes too little, drop one more block each time, the narrowest first.
        narrowest: list[tuple[float, int]] = []
        for block in blocks:
            of_block = self.block_G == block
            left = float(((self.limit_G - clipped_G) * self.cost_G)[of_block].sum())
            narrowest.append((left, block))
        more = [block for _, block in sorted(narrowest)]
        for count in range(1, len(more) if self.blocks else 0):
            levels_G = self._with_dropped(clipped_G, more[:count], rng)
            if levels_G is not None:
                return levels_G
        return None

    def _with_dropped(
        self, wanted_G: Real, dropped: Sequence[int], rng: np.random.Generator | None
    ) -> Levels | None:
        """Project the genes of kept blocks, with some blocks dropped; None if it is impossible."""
        gone_G = np.isin(self.block_G, dropped)
        levels_G = np.where(gone_G, self.limit_G, 0)
        rest = self.budget - int(levels_G @ self.cost_G)
        kinds = []
        for cost in np.unique(self.cost_G[~gone_G]).tolist():
            kinds.append((cost, np.flatnonzero(~gone_G & (self.cost_G == cost))))
        # The kind with the most levels comes last, because its total follows from the others'.
        kinds.sort(key=lambda kind: int(self.most_G[kind[1]].sum()))
        bounded_G = np.minimum(wanted_G, self.most_G)
        wanted = [float(bounded_G[genes].sum()) for _, genes in kinds]
        limits = [int(self.most_G[genes].sum()) for _, genes in kinds]
        totals = _totals([cost for cost, _ in kinds], wanted, limits, rest)
        if totals is None:
            return None
        for (_, genes), total in zip(kinds, totals, strict=True):
            levels_G[genes] = _shifted(bounded_G[genes], self.most_G[genes], total, rng)
        return levels_G

    def candidate(self, levels_G: Levels) -> LayerWidths:
        """Return the candidate with these levels."""
        channels, groups = list(self.shape.channels), list(self.shape.groups)
        for gene, level in zip(self.genes, levels_G.tolist(), strict=True):
            kept = groups if gene.attention else channels
            kept[gene.block] = gene.full - level * gene.step
        return LayerWidths.within(self.shape, channels, groups, self.order, self.biases)

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


def _shifted(wanted_G: Real, most_G: Levels, total: int, rng: np.random.Generator | None) -> Levels:
    """Shift levels by a common amount, so that they sum to `total` within their limits, and round
    them by the largest remainder.
    """
    # Bisect the shift.
    low, high = -float(most_G.max(initial=0)) - 1, float(most_G.max(initial=0)) + 1
    for _ in range(60):
        middle = (low + high) / 2
        if np.clip(wanted_G + middle, 0, most_G).sum() < total:
            low = middle
        else:
            high = middle
    shifted_G = np.round(np.clip(wanted_G + high, 0, most_G), 6)
    levels_G = np.floor(shifted_G).astype(np.intp)
    # Genes with the largest remainders get one level more.
    remainder_G = shifted_G - levels_G
    if rng is not None:
        remainder_G = remainder_G + 1e-3 * rng.random(remainder_G.size)
    remainder_G[levels_G >= most_G] = -1.0
    for gene in np.argsort(-remainder_G, kind="stable").tolist():
        if levels_G.sum() >= total:
            break
        if levels_G[gene] < most_G[gene]:
            levels_G[gene] += 1
    return levels_G
