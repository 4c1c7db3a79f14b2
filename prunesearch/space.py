"""The search space: what may be dropped, how much must be, and how a candidate is written as Optuna parameters."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Self

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError

Budget = Literal["exactly", "up to", "pareto"]
UNITS = ("blocks", "sublayers")


@dataclass(frozen=True)
class SearchSpace:
    """All ways to drop `k` of a model's units, none of them from a protected block.

    Attributes:
        n_layers: blocks of the model.
        k: how many units are dropped, at most or exactly.
        protected: blocks that stay whole.
        budget: ``exactly`` k, ``up to`` k, or ``pareto``: up to k, with the size as a second objective.
        units: ``blocks``, or ``sublayers``: each block's attention and each block's MLP is a unit of its own.
        period: with ``blocks``, so many in a row are one unit, counted from the first; what is left over stays.

    Raises:
        InputError: `k` cannot be reached.
    """

    n_layers: int
    k: int
    protected: frozenset[int] = frozenset()
    budget: Budget = "exactly"
    units: Literal["blocks", "sublayers"] = "blocks"
    period: int = 1

    def __post_init__(self) -> None:
        what = "sublayers" if self.units == "sublayers" else "layers" if self.period == 1 else "periods of layers"
        if self.k <= 0:
            raise InputError(f"k = {self.k} removes nothing: drop at least 1 of {self.n_units} {what}")
        if self.k >= self.n_units:
            raise InputError(
                f"k = {self.k} leaves no layer: the model has {self.n_units} {what}, "
                f"so the largest is {self.n_units - 1}"
            )
        if self.k > len(self.droppable):
            raise InputError(
                f"k = {self.k} is more than the {len(self.droppable)} {what} that are not protected; "
                f"protect fewer or drop at most {len(self.droppable)}"
            )

    @classmethod
    def parse(
        cls,
        n_layers: int,
        drop: str,
        protect: str = "",
        units: Literal["blocks", "sublayers"] = "blocks",
        period: int = 1,
    ) -> Self:
        """Read the command line's ``--drop``, which counts layers or sublayers, and ``--protect``.

        Raises:
            InputError: either cannot be read or cannot be met.
        """
        budget, amount = split_drop(drop)
        protected = _parse_protect(protect, n_layers)
        if amount is None:  # everything but one unit
            whole = cls(n_layers, 1, frozenset(), budget, units, period)
            free = sum(not protected & whole.blocks_of(unit) for unit in range(whole.n_units))
            k = min(free, whole.n_units - 1)
        else:
            of = n_layers if units == "blocks" else 2 * n_layers
            k = _parse_amount(amount, drop, of, period)
        try:
            return cls(n_layers, k, protected, budget, units, period)
        except InputError as error:  # which speaks of the argument
            raise InputError(str(error).replace(f"k = {k}", f"--drop {drop}", 1)) from None

    @property
    def n_units(self) -> int:
        """Number of units, protected ones included."""
        return self.n_layers // self.period if self.units == "blocks" else 2 * self.n_layers

    def blocks_of(self, unit: int) -> frozenset[int]:
        """The blocks that a unit consists of, or is part of."""
        if self.units == "sublayers":
            return frozenset({unit // 2})
        return frozenset(range(unit * self.period, (unit + 1) * self.period))

    @property
    def kinds(self) -> tuple[int, ...]:
        """The kind of each unit: 0 for blocks and attention, 1 for MLPs."""
        return (0,) * self.n_units if self.units == "blocks" else (0, 1) * self.n_layers

    @property
    def droppable(self) -> tuple[int, ...]:
        """The units that may go."""
        return tuple(unit for unit in range(self.n_units) if not self.protected & self.blocks_of(unit))

    @property
    def k_min(self) -> int:
        """The fewest units that are dropped."""
        return self.k if self.budget == "exactly" else 1

    @property
    def size(self) -> int:
        """How many candidates there are."""
        return sum(math.comb(len(self.droppable), k) for k in range(self.k_min, self.k + 1))

    @property
    def param_names(self) -> tuple[str, ...]:
        """One binary parameter per unit, padded so that they sort.

        ``drop_00 … drop_NN``; for sublayers ``drop_00_attn, drop_00_mlp …``; for periods ``drop_00-01 …``.
        """
        digits = max(2, len(str(self.n_layers - 1)))
        if self.period > 1:
            ends = [(min(blocks), max(blocks)) for blocks in map(self.blocks_of, range(self.n_units))]
            return tuple(f"drop_{first:0{digits}d}-{last:0{digits}d}" for first, last in ends)
        suffixes = ("",) if self.units == "blocks" else ("_attn", "_mlp")
        return tuple(f"drop_{i:0{digits}d}{suffix}" for i in range(self.n_layers) for suffix in suffixes)

    def candidate(self, dropped: Iterable[int]) -> LayerSubset:
        """The candidate that drops these units."""
        if self.units == "blocks":
            return LayerSubset.of(self.n_layers, [block for unit in dropped for block in self.blocks_of(unit)])
        halves = [divmod(unit, 2) for unit in dropped]
        return LayerSubset.of(
            self.n_layers, (), [i for i, half in halves if half == 0], [i for i, half in halves if half == 1]
        )

    def to_params(self, candidate: LayerSubset) -> dict[str, int]:
        """Write a candidate as Optuna parameters."""
        if self.units == "blocks":
            blocks = set(candidate.dropped)
            gone = {unit for unit in range(self.n_units) if self.blocks_of(unit) <= blocks}
        else:
            gone = {2 * i for i in (*candidate.dropped, *candidate.attention)}
            gone |= {2 * i + 1 for i in (*candidate.dropped, *candidate.mlp)}
        return {name: int(unit in gone) for unit, name in enumerate(self.param_names)}

    def from_params(self, params: Mapping[str, float]) -> LayerSubset:
        """Read a candidate from a trial's parameters.

        Raises:
            InputError: a parameter is missing, or the subset is not of this space.
        """
        candidate = self.any_subset(params)
        if not self.k_min <= self.count(candidate) <= self.k:
            k = self.k * self.period
            number = str(k) if self.budget == "exactly" else f"up to {k}"
            raise InputError(f"layers {candidate.text} are not {number} droppable layers of this search")
        return candidate

    def any_subset(self, params: Mapping[str, float]) -> LayerSubset:
        """Read a candidate that may drop fewer or more units than this space demands.

        Raises:
            InputError: a parameter is missing, or a protected unit is dropped.
        """
        missing = [name for name in self.param_names if name not in params]
        if missing:
            raise InputError(f"the trial has no parameter {missing[0]}: it is not of a search over these layers")
        units = [unit for unit, name in enumerate(self.param_names) if params[name]]
        candidate = self.candidate(units)
        if not set(units) <= set(self.droppable):
            raise InputError(f"layers {candidate.text} are not {self.k * self.period} droppable layers of this search")
        return candidate

    def count(self, candidate: LayerSubset) -> int:
        """How many units a candidate drops."""
        return sum(self.to_params(candidate).values())


def split_drop(text: str) -> tuple[Budget, str | None]:
    """Read the form of ``--drop``: a budget and its amount, None for as much as can be.

    Raises:
        InputError: it has none of the forms 8, 25%, ..8, ..25%, pareto, pareto:8 and pareto:25%.
    """
    words = text.strip()
    if words == "pareto":
        return "pareto", None
    if words.startswith("pareto:"):
        return "pareto", words.removeprefix("pareto:")
    if words.startswith(".."):
        return "up to", words.removeprefix("..")
    return "exactly", words


def _parse_amount(amount: str, text: str, of: int, period: int) -> int:
    """How many units a number of layers, or of sublayers, is."""
    if re.fullmatch(r"-?\d{1,9}", amount):
        units, rest = divmod(int(amount), period)
        if rest:
            raise InputError(
                f"--drop {text} cannot keep a pattern that repeats every {period} layers: "
                f"drop a multiple of {period}, such as {max(units, 1) * period}"
            )
        return units
    if percent := re.fullmatch(r"(\d{1,9}(?:\.\d+)?)%", amount):
        return round(float(percent[1]) / 100 * of / period)
    raise InputError(
        f"--drop {text!r} cannot be read: give a number of layers (8), a share (25%), a limit (..8), "
        "pareto, or pareto:8"
    )


def _parse_protect(text: str, n_layers: int) -> frozenset[int]:
    layers: set[int] = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        if match := re.fullmatch(r"(first|last):(\d{1,9})", part):
            count = int(match[2])
            if count > n_layers:
                raise InputError(f"--protect {part}: the model has only {n_layers} layers")
            layers.update(range(count) if match[1] == "first" else range(n_layers - count, n_layers))
        elif match := re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part):
            low, high = int(match[1]), int(match[2] or match[1])
            if not low <= high < n_layers:
                raise InputError(f"--protect {part}: the model has layers 0 to {n_layers - 1}")
            layers.update(range(low, high + 1))
        else:
            raise InputError(f"--protect {part!r} cannot be read: write first:1,last:1 or 0,5-8")
    return frozenset(layers)
