"""Search space of widths: how many channels and KV groups each block keeps, for one total size.

All candidates of a space remove exactly the same number of weights. Genes and levels are those of
`widths.genes`.

Shapes: M candidates, G genes, D units.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.widths.budgets import nearest_budget, parse_target
from prunesearch.widths.counting import count_candidates
from prunesearch.widths.genes import Gene, Levels, Real, genes_of, step_of
from prunesearch.widths.layer_widths import LayerWidths
from prunesearch.widths.parameters import decode, encode, param_ranges
from prunesearch.widths.projection import Projection
from prunesearch.widths.shape import WidthShape


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
        # 1. What is asked for, in parameters.
        wanted = parse_target(target, total_params, bytes_per_param)
        # 2. The step of each block.
        steps = []
        for index, channels in enumerate(shape.channels):
            # Experts are removed one by one.
            steps.append(1 if shape.experts_used(index) else step_of(channels, align))
        # 3. The nearest number of weights that these steps make.
        budget = nearest_budget(genes_of(shape, steps, protected), wanted)
        try:
            return cls(shape, budget, tuple(steps), order, biases, protected, blocks)
        except InputError as error:
            raise InputError(f"`target` {target}: {error}") from None

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.shape.n_layers

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """The genes, by block, the MLP before the attention. Protected blocks have none."""
        return genes_of(self.shape, self.steps, self.protected)

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
        return count_candidates(self.genes, self.budget, self.blocks)

    @cached_property
    def _projection(self) -> Projection:
        return Projection(
            self.budget, self.blocks, self.block_G, self.cost_G, self.most_G, self.limit_G
        )

    def project(self, wanted_MG: Real, rng: np.random.Generator | None = None) -> Levels | None:
        """Return the levels nearest to the wanted ones that remove exactly the budget.

        See `Projection.project`.
        """
        return self._projection.project(wanted_MG, rng)

    def dropped(self, levels_MG: Levels | Real) -> NDArray[np.bool_]:
        """Return for each gene whether nothing is left of its block, shape (M, G)."""
        return self._projection.dropped(levels_MG)

    def removed(self, levels_MG: Levels) -> Levels:
        """Return the number of weights that candidates remove, shape (M,)."""
        return np.asarray(levels_MG @ self.cost_G)

    def meets(self, levels_MG: Levels) -> NDArray[np.bool_]:
        """Return whether levels are those of candidates of this space, shape (M,)."""
        most_MG = np.where(self.dropped(levels_MG), self.limit_G, self.most_G)
        inside_M = ((levels_MG >= 0) & (levels_MG <= most_MG)).all(axis=1)
        return np.asarray(inside_M & (self.removed(levels_MG) == self.budget))

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
        return param_ranges(self.genes, self.limit_G, self.n_layers)

    @property
    def param_names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of the genes."""
        return tuple(self.param_ranges)

    def to_params(self, candidate: LayerSubset) -> dict[str, int]:
        """Encode a candidate as Optuna parameters: the widths that are kept."""
        return encode(self.param_names, self.genes, self.levels(candidate))

    def levels_of(self, params: Mapping[str, float]) -> Levels:
        """Decode parameters to levels, which need not meet the budget.

        Raises:
            InputError: a parameter is missing.
        """
        return decode(self.param_names, self.genes, params)

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
