"""The search space: which blocks may go, how many must, and how a candidate is written as Optuna parameters."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError


@dataclass(frozen=True)
class SearchSpace:
    """All subsets that drop exactly `k` of `n_layers` blocks and none of `protected`.

    Raises:
        InputError: `k` cannot be reached.
    """

    n_layers: int
    k: int
    protected: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.k <= 0:
            raise InputError(f"--drop {self.k} removes nothing: drop at least 1 of {self.n_layers} layers")
        if self.k >= self.n_layers:
            raise InputError(
                f"--drop {self.k} leaves no layer: the model has {self.n_layers}, so the largest is {self.n_layers - 1}"
            )
        if self.k > len(self.droppable):
            raise InputError(
                f"--drop {self.k} is more than the {len(self.droppable)} layers that are not protected; "
                f"protect fewer or drop at most {len(self.droppable)}"
            )

    @classmethod
    def parse(cls, n_layers: int, drop: str, protect: str = "") -> Self:
        """Read the command line's ``--drop`` and ``--protect``.

        Raises:
            InputError: either cannot be read or cannot be met.
        """
        return cls(n_layers, _parse_drop(drop, n_layers), _parse_protect(protect, n_layers))

    @property
    def droppable(self) -> tuple[int, ...]:
        """The blocks that may go."""
        return tuple(i for i in range(self.n_layers) if i not in self.protected)

    @property
    def size(self) -> int:
        """How many candidates there are."""
        return math.comb(len(self.droppable), self.k)

    @property
    def param_names(self) -> tuple[str, ...]:
        """``drop_00 … drop_NN``: one binary parameter per block, padded so that they sort."""
        digits = max(2, len(str(self.n_layers - 1)))
        return tuple(f"drop_{i:0{digits}d}" for i in range(self.n_layers))

    def to_params(self, candidate: LayerSubset) -> dict[str, int]:
        """Write a candidate as Optuna parameters."""
        gone = set(candidate.dropped)
        return {name: int(i in gone) for i, name in enumerate(self.param_names)}

    def from_params(self, params: Mapping[str, float]) -> LayerSubset:
        """Read a candidate from a trial's parameters.

        Raises:
            InputError: a parameter is missing, or the subset is not of this space.
        """
        missing = [name for name in self.param_names if name not in params]
        if missing:
            raise InputError(f"the trial has no parameter {missing[0]}: it is not of a search over these layers")
        candidate = LayerSubset.of(self.n_layers, (i for i, name in enumerate(self.param_names) if params[name]))
        if len(candidate.dropped) != self.k or self.protected.intersection(candidate.dropped):
            raise InputError(f"layers {candidate.text} are not {self.k} droppable layers of this search")
        return candidate


def _parse_drop(text: str, n_layers: int) -> int:
    text = text.strip()
    if text.startswith("..") or text == "pareto":
        raise InputError(f"--drop {text}: this version searches a fixed number; give 8 or 25%")
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if percent := re.fullmatch(r"(\d+(?:\.\d+)?)%", text):
        return round(float(percent[1]) / 100 * n_layers)
    raise InputError(f"--drop {text!r} cannot be read: give a number of layers (8) or a share (25%)")


def _parse_protect(text: str, n_layers: int) -> frozenset[int]:
    layers: set[int] = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        if match := re.fullmatch(r"(first|last):(\d+)", part):
            count = int(match[2])
            if count > n_layers:
                raise InputError(f"--protect {part}: the model has only {n_layers} layers")
            layers.update(range(count) if match[1] == "first" else range(n_layers - count, n_layers))
        elif match := re.fullmatch(r"(\d+)(?:-(\d+))?", part):
            low, high = int(match[1]), int(match[2] or match[1])
            if not low <= high < n_layers:
                raise InputError(f"--protect {part}: the model has layers 0 to {n_layers - 1}")
            layers.update(range(low, high + 1))
        else:
            raise InputError(f"--protect {part!r} cannot be read: write first:1,last:1 or 0,5-8")
    return frozenset(layers)
