"""Search space: the units that may be dropped, how many must be, and their encoding as Optuna
parameters.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Literal, Protocol, Self

from prunesearch.candidate import LayerSubset, named_layers
from prunesearch.errors import InputError
from prunesearch.units import noun_for

Budget = Literal["exactly", "up to", "pareto"]
UNITS = ("blocks", "sublayers")
WIDTHS = ("widths", "blocks+widths")
SPACES = (*UNITS, *WIDTHS)
"""What can be searched: layers to drop, or widths to narrow layers to."""


class Space(Protocol):
    """What samplers need to know of a search space: `SearchSpace` or `widths.space.WidthSpace`.

    A candidate is a set of units: dropped blocks or sublayers, or levels of widths.
    """

    @property
    def n_layers(self) -> int:
        """Number of blocks in the model."""
        ...

    @property
    def n_units(self) -> int:
        """Number of units."""
        ...

    @property
    def size(self) -> int:
        """Number of candidates."""
        ...

    @property
    def param_names(self) -> tuple[str, ...]:
        """Names of the Optuna parameters."""
        ...

    @property
    def param_ranges(self) -> Mapping[str, tuple[int, int, int]]:
        """Smallest value, largest value and step of each parameter, by name."""
        ...

    def with_units(self, units: Iterable[int]) -> LayerSubset:
        """Return the candidate that drops these units."""
        ...

    def units_of(self, candidate: LayerSubset) -> tuple[int, ...]:
        """Return the units that a candidate drops."""
        ...

    def units_in(self, params: Mapping[str, float]) -> tuple[int, ...]:
        """Return the units that a trial's parameters drop.

        Raises:
            InputError: a parameter is missing.
        """
        ...

    def to_params(self, candidate: LayerSubset) -> dict[str, int]:
        """Encode a candidate as Optuna parameters."""
        ...

    def from_params(self, params: Mapping[str, float]) -> LayerSubset:
        """Decode a trial's parameters to a candidate of this space.

        Raises:
            InputError: the parameters are not those of a candidate of this space.
        """
        ...

    def any_subset(self, params: Mapping[str, float]) -> LayerSubset:
        """Decode a trial's parameters to a candidate that may remove fewer or more than this space
        demands.

        Raises:
            InputError: a parameter is missing or has no meaning in this space.
        """
        ...

    def removes_less(self, candidate: LayerSubset) -> bool:
        """Return whether a candidate removes less than this space demands."""
        ...

    def removes_more(self, candidate: LayerSubset) -> bool:
        """Return whether a candidate removes more than this space allows."""
        ...


@dataclass(frozen=True)
class SearchSpace:
    """All ways to drop `k` of a model's units without touching a protected block.

    Attributes:
        n_layers: number of blocks in the model.
        k: number of dropped units, exactly or at most.
        protected: blocks that are kept completely.
        budget: ``exactly`` k, ``up to`` k, or ``pareto``, which means up to k with the size as a
            second objective.
        units: ``blocks``, or ``sublayers`` if the attention and the MLP of each block are separate
            units.
        period: number of consecutive blocks that form one unit, counted from the first block.
            Blocks that do not fill a unit are kept.

    Raises:
        InputError: `k` cannot be reached, or a number is not whole.
    """

    n_layers: int
    k: int
    protected: frozenset[int] = frozenset()
    budget: Budget = "exactly"
    units: Literal["blocks", "sublayers"] = "blocks"
    period: int = 1

    def __post_init__(self) -> None:
        for name in ("n_layers", "k", "period"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise InputError(f"{name} = {value!r}: give a whole number")
        one, many = "layer", "layers"
        if self.units == "sublayers":
            one, many = "sublayer", "sublayers"
        elif self.period != 1:
            one, many = "period of layers", "periods of layers"
        what = noun_for(self.n_units, one, many)
        if self.k <= 0:
            raise InputError(
                f"k = {self.k} removes nothing: drop at least 1 of {self.n_units} {what}"
            )
        if self.k >= self.n_units:
            raise InputError(
                f"k = {self.k} leaves no layer: the model has {self.n_units} {what}, "
                f"so the largest is {self.n_units - 1}"
            )
        if self.k > len(self.droppable):
            raise InputError(
                f"k = {self.k} is more than the {len(self.droppable)} "
                f"{noun_for(len(self.droppable), f'{one} that is', f'{many} that are')} not "
                f"protected; "
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
        """Build a space from the values of `drop`, which counts layers or sublayers, and
        `protect`.

        Raises:
            InputError: a value cannot be read or cannot be fulfilled.
        """
        budget, amount = split_drop(drop)
        protected = parse_protect(protect, n_layers)
        if amount is None:
            # Without an amount, everything except one unit may be dropped.
            whole = cls(n_layers, 1, frozenset(), budget, units, period)
            free = sum(not protected & whole.blocks_of(unit) for unit in range(whole.n_units))
            k = min(free, whole.n_units - 1)
        else:
            of = n_layers if units == "blocks" else 2 * n_layers
            k = _parse_amount(amount, drop, of, period)
        try:
            return cls(n_layers, k, protected, budget, units, period)
        except InputError as error:
            # The message names the argument `k`; name the option instead.
            raise InputError(str(error).replace(f"k = {k}", f"`drop` {drop}", 1)) from None

    @property
    def n_units(self) -> int:
        """Number of units, protected ones included."""
        if self.units == "sublayers":
            return 2 * self.n_layers
        return self.n_layers // self.period

    def blocks_of(self, unit: int) -> frozenset[int]:
        """Return the blocks that a unit consists of, or the block that a sublayer is part of."""
        if self.units == "sublayers":
            return frozenset({unit // 2})
        return frozenset(range(unit * self.period, (unit + 1) * self.period))

    @property
    def kinds(self) -> tuple[int, ...]:
        """Kind of each unit: 0 for blocks and attention, 1 for MLPs."""
        if self.units == "blocks":
            return (0,) * self.n_units
        return (0, 1) * self.n_layers

    @cached_property
    def droppable(self) -> tuple[int, ...]:
        """Units that may be dropped."""
        return tuple(
            unit for unit in range(self.n_units) if not self.protected & self.blocks_of(unit)
        )

    @property
    def k_min(self) -> int:
        """Smallest number of dropped units."""
        if self.budget == "exactly":
            return self.k
        return 1

    @property
    def size(self) -> int:
        """Number of candidates."""
        free = len(self.droppable)
        return sum(math.comb(free, k) for k in range(self.k_min, self.k + 1))

    @cached_property
    def param_names(self) -> tuple[str, ...]:
        """Name of each unit's binary parameter, padded so that the names sort.

        ``drop_00 … drop_NN``; for sublayers ``drop_00_attn, drop_00_mlp …``; for periods
        ``drop_00-01 …``.
        """
        digits = max(2, len(str(self.n_layers - 1)))
        names = []
        for unit in range(self.n_units):
            blocks = self.blocks_of(unit)
            name = f"drop_{min(blocks):0{digits}d}"
            if self.units == "sublayers":
                name += ("_attn", "_mlp")[unit % 2]
            elif self.period > 1:
                name += f"-{max(blocks):0{digits}d}"
            names.append(name)
        return tuple(names)

    @property
    def param_ranges(self) -> dict[str, tuple[int, int, int]]:
        """Smallest value, largest value and step of each parameter: 1 if the unit is dropped."""
        return dict.fromkeys(self.param_names, (0, 1, 1))

    def with_units(self, units: Iterable[int]) -> LayerSubset:
        """Return the candidate that drops these units."""
        return self.candidate(units)

    def candidate(self, dropped: Iterable[int]) -> LayerSubset:
        """Return the candidate that drops these units."""
        blocks: list[int] = []
        attention: list[int] = []
        mlp: list[int] = []
        for unit in dropped:
            if self.units == "blocks":
                blocks += self.blocks_of(unit)
            elif unit % 2 == 0:
                attention.append(unit // 2)
            else:
                mlp.append(unit // 2)
        return LayerSubset.of(self.n_layers, blocks, attention, mlp)

    def units_of(self, candidate: LayerSubset) -> tuple[int, ...]:
        """Return the units that a candidate drops, in order."""
        gone: set[int] = set()
        if self.units == "blocks":
            # A unit is dropped if all its blocks are.
            dropped = set(candidate.dropped)
            gone.update(unit for unit in range(self.n_units) if self.blocks_of(unit) <= dropped)
        else:
            # Block i has the units 2 i (attention) and 2 i + 1 (MLP).
            gone.update(2 * i for i in (*candidate.dropped, *candidate.attention))
            gone.update(2 * i + 1 for i in (*candidate.dropped, *candidate.mlp))
        return tuple(sorted(gone))

    def to_params(self, candidate: LayerSubset) -> dict[str, int]:
        """Encode a candidate as Optuna parameters."""
        gone = set(self.units_of(candidate))
        params = {}
        for unit, name in enumerate(self.param_names):
            params[name] = int(unit in gone)
        return params

    def from_params(self, params: Mapping[str, float]) -> LayerSubset:
        """Decode a trial's parameters to a candidate.

        Raises:
            InputError: a parameter is missing, or the subset does not belong to this space.
        """
        candidate = self.any_subset(params)
        if not self.k_min <= self.count(candidate) <= self.k:
            number = str(self.k * self.period)
            if self.budget != "exactly":
                number = f"up to {number}"
            raise InputError(
                f"{named_layers(candidate.text, 'is', 'are')} not {number} droppable "
                f"{noun_for(self.k * self.period, 'layer')} of this search"
            )
        return candidate

    def any_subset(self, params: Mapping[str, float]) -> LayerSubset:
        """Decode a trial's parameters to a candidate that may drop fewer or more units than this
        space demands.

        Raises:
            InputError: a parameter is missing, or a protected unit is dropped.
        """
        units = self.units_in(params)
        candidate = self.candidate(units)
        if not set(units) <= set(self.droppable):
            raise InputError(
                f"{named_layers(candidate.text, 'is', 'are')} not {self.k * self.period} droppable "
                f"{noun_for(self.k * self.period, 'layer')} of this search"
            )
        return candidate

    def units_in(self, params: Mapping[str, float]) -> tuple[int, ...]:
        """Return the units that a trial's parameters drop.

        Raises:
            InputError: a parameter is missing.
        """
        units = []
        for unit, name in enumerate(self.param_names):
            if name not in params:
                raise InputError(
                    f"the trial has no parameter {name}: it is not of a search over these layers"
                )
            if params[name]:
                units.append(unit)
        return tuple(units)

    def count(self, candidate: LayerSubset) -> int:
        """Return the number of units that a candidate drops."""
        return len(self.units_of(candidate))

    def removes_less(self, candidate: LayerSubset) -> bool:
        """Return whether a candidate drops fewer units than this space demands."""
        return self.count(candidate) < self.k_min

    def removes_more(self, candidate: LayerSubset) -> bool:
        """Return whether a candidate drops more units than this space allows."""
        return self.count(candidate) > self.k


def split_drop(text: str) -> tuple[Budget, str | None]:
    """Split the value of `drop` into its budget and its amount.

    The forms are 8, 25%, ..8, ..25%, pareto, pareto:8 and pareto:25%. The amount is None for
    ``pareto``, which means as much as possible.
    """
    words = text.strip()
    if words == "pareto":
        return "pareto", None
    if words.startswith("pareto:"):
        return "pareto", words.removeprefix("pareto:")
    if words.startswith(".."):
        return "up to", words.removeprefix("..")
    return "exactly", words


def check_drop(text: str) -> None:
    """Refuse a value of `drop` that no model could take.

    Raises:
        InputError: the value cannot be read.
    """
    amount = split_drop(text)[1]
    if amount is not None:
        _parse_amount(amount, text, of=1, period=1)


def _parse_amount(amount: str, text: str, of: int, period: int) -> int:
    """Convert an amount of layers or sublayers to a number of units.

    Args:
        amount: a number, or a percentage.
        text: value of `drop`, for error messages.
        of: number of layers or sublayers in the model.
        period: number of layers in a unit.

    Raises:
        InputError: the amount cannot be read, or is not a multiple of the period.
    """
    if re.fullmatch(r"-?\d{1,9}", amount):
        units, rest = divmod(int(amount), period)
        if rest:
            raise InputError(
                f"`drop` {text} cannot keep a pattern that repeats every {period} layers: "
                f"drop a multiple of {period}, such as {max(units, 1) * period}"
            )
        return units
    if percent := re.fullmatch(r"(\d{1,9}(?:\.\d+)?)%", amount):
        return round(float(percent[1]) / 100 * of / period)
    raise InputError(
        f"`drop` {text!r} cannot be read: give a number of layers (8), a share (25%), a limit "
        f"(..8), "
        "pareto, or pareto:8"
    )


def parse_protect(text: str, n_layers: int) -> frozenset[int]:
    """Read the value of `protect`, such as ``first:1,last:1`` or ``0,5-8``.

    Raises:
        InputError: the value cannot be read, or names layers that the model does not have.
    """
    layers: set[int] = set()
    for part in map(str.strip, text.split(",")):
        if not part:
            continue
        if match := re.fullmatch(r"(first|last):(\d{1,9})", part):
            count = int(match[2])
            if count > n_layers:
                raise InputError(
                    f"`protect` {part}: the model has only {n_layers} {noun_for(n_layers, 'layer')}"
                )
            start = 0 if match[1] == "first" else n_layers - count
            layers.update(range(start, start + count))
        elif match := re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part):
            low, high = int(match[1]), int(match[2] or match[1])
            if not low <= high < n_layers:
                raise InputError(f"`protect` {part}: the model has layers 0 to {n_layers - 1}")
            layers.update(range(low, high + 1))
        else:
            raise InputError(f"`protect` {part!r} cannot be read: write first:1,last:1 or 0,5-8")
    return frozenset(layers)
