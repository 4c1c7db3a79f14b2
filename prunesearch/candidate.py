"""The two nouns that cross every border: a `LayerSubset` (what is removed) and an `Evaluation` (what that costs)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from prunesearch.errors import InputError


@dataclass(frozen=True, order=True)
class LayerSubset:
    """The blocks to drop from a model of `n_layers` blocks; counted from 0, sorted, each once.

    Raises:
        InputError: an index outside the model, a repeated index, or no block left.
    """

    n_layers: int
    dropped: tuple[int, ...]

    def __post_init__(self) -> None:
        if list(self.dropped) != sorted(set(self.dropped)):
            raise InputError(f"dropped layers must be sorted and named once, got {list(self.dropped)}")
        if self.dropped and not 0 <= self.dropped[0] <= self.dropped[-1] < self.n_layers:
            raise InputError(f"cannot drop layers {list(self.dropped)}: the model has layers 0 to {self.n_layers - 1}")
        if len(self.dropped) >= self.n_layers:
            raise InputError(f"dropping {len(self.dropped)} of {self.n_layers} layers leaves none")

    @classmethod
    def of(cls, n_layers: int, dropped: Iterable[int] = ()) -> Self:
        """Build a subset from indices in any order."""
        return cls(n_layers, tuple(sorted(dropped)))

    @classmethod
    def parse(cls, text: str, n_layers: int) -> Self:
        """Read a comma-separated list such as ``3,7,12``; ``none`` is the dense model.

        Raises:
            InputError: the text is not such a list, or the layers are not in the model.
        """
        if text.strip() in ("", "none"):
            return cls(n_layers, ())
        try:
            indices = [int(part) for part in text.split(",")]
        except ValueError:
            raise InputError(f"cannot read layers {text!r}: write indices with commas, as in 3,7,12") from None
        return cls.of(n_layers, indices)

    @property
    def kept(self) -> tuple[int, ...]:
        """The blocks that stay, in order."""
        gone = set(self.dropped)
        return tuple(i for i in range(self.n_layers) if i not in gone)

    @property
    def text(self) -> str:
        """The dropped blocks as ``3,7,12``, or ``none``."""
        return ",".join(map(str, self.dropped)) or "none"

    @property
    def canonical(self) -> str:
        """The one spelling that keys are made from, e.g. ``blocks/30:3,7,12``."""
        return f"blocks/{self.n_layers}:{self.text}"


@dataclass(frozen=True)
class Evaluation:
    """What scoring a candidate gave.

    Attributes:
        candidate: what was scored.
        metrics: by name: ``kl`` and ``cross_entropy`` in nats per token, ``perplexity``, task metrics. Empty when the
            scoring failed.
        stderr: standard errors of those metrics that have one.
        cached: nothing had to be computed.
        seconds: wall time spent scoring (0 for a hit).
        failure: why there are no metrics, or None.
    """

    candidate: LayerSubset
    metrics: Mapping[str, float] = field(default_factory=dict)
    stderr: Mapping[str, float] = field(default_factory=dict)
    cached: bool = False
    seconds: float = 0.0
    failure: str | None = None
