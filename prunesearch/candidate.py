"""The two nouns that cross every border: a `LayerSubset` (what is removed) and an `Evaluation` (what that costs)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from prunesearch.errors import InputError


@dataclass(frozen=True, order=True)
class LayerSubset:
    """What to drop from a model of `n_layers` blocks: whole blocks, and attention or MLP sublayers of others.

    Blocks are counted from 0; each tuple is sorted and names a block once. A block whose attention and MLP are both
    dropped computes nothing, so it is written as a dropped block: `LayerSubset.of` does that.

    Attributes:
        dropped: whole blocks.
        attention, mlp: blocks that lose this sublayer only.

    Raises:
        InputError: an index outside the model, a repeated index, or no block left.
    """

    n_layers: int
    dropped: tuple[int, ...]
    attention: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        every = (*self.dropped, *self.attention, *self.mlp)
        if len(set(every)) != len(every) or any(
            list(part) != sorted(part) for part in (self.dropped, self.attention, self.mlp)
        ):
            raise InputError(f"dropped layers must be sorted and named once, got {self.text}")
        if every and not 0 <= min(every) <= max(every) < self.n_layers:
            raise InputError(f"cannot drop layers {self.text}: the model has layers 0 to {self.n_layers - 1}")
        if len(self.dropped) >= self.n_layers:
            raise InputError(f"dropping {len(self.dropped)} of {self.n_layers} layers leaves none")

    @classmethod
    def of(
        cls, n_layers: int, dropped: Iterable[int] = (), attention: Iterable[int] = (), mlp: Iterable[int] = ()
    ) -> Self:
        """Build a subset from indices in any order."""
        whole, without_attention, without_mlp = list(dropped), set(attention), set(mlp)
        whole += sorted((without_attention & without_mlp) - set(whole))
        gone = set(whole)
        return cls(
            n_layers,
            tuple(sorted(whole)),
            tuple(sorted(without_attention - gone)),
            tuple(sorted(without_mlp - gone)),
        )

    @classmethod
    def parse(cls, text: str, n_layers: int) -> Self:
        """Read a comma-separated list such as ``3,7a,12m`` or ``1-4,9``; ``none`` is the dense model.

        ``7a`` is the attention of block 7, ``12m`` the MLP of block 12, ``1-4`` are blocks 1 to 4.

        Raises:
            InputError: the text is not such a list, or the layers are not in the model.
        """
        parts: dict[str, list[int]] = {"": [], "a": [], "m": []}
        for word in [] if text.strip() == "none" else text.split(","):
            if span := re.fullmatch(r"\s*(\d{1,9})\s*-\s*(\d{1,9})\s*", word):
                low, high = int(span[1]), int(span[2])
                if not low <= high < n_layers:  # also before a list of all of them is made
                    raise InputError(f"cannot drop layers {word.strip()}: the model has layers 0 to {n_layers - 1}")
                parts[""] += range(low, high + 1)
                continue
            match = re.fullmatch(r"\s*(-?\d{1,9})([am]?)\s*", word)
            if match is None:
                raise InputError(f"cannot read layers {text!r}: write indices with commas, as in 3,7,12 or 1-4,9")
            parts[match[2]].append(int(match[1]))
        return cls.of(n_layers, parts[""], parts["a"], parts["m"])

    @property
    def kept(self) -> tuple[int, ...]:
        """The blocks that stay, whole or in part, in order."""
        gone = set(self.dropped)
        return tuple(i for i in range(self.n_layers) if i not in gone)

    @property
    def path(self) -> tuple[int, ...]:
        """How each block is used, in order: 0 whole, 1 without attention, 2 without MLP, 3 not at all.

        Candidates whose paths begin alike share their hidden states up to there; the dense model's is the least path.
        """
        use = [0] * self.n_layers
        for kind, blocks in enumerate((self.attention, self.mlp, self.dropped), start=1):
            for i in blocks:
                use[i] = kind
        return tuple(use)

    @property
    def whole_blocks(self) -> bool:
        """Whether only whole blocks are dropped."""
        return not self.attention and not self.mlp

    @property
    def text(self) -> str:
        """What is dropped as ``3,7a,12m``, or ``none``."""
        words = [(i, "") for i in self.dropped] + [(i, "a") for i in self.attention] + [(i, "m") for i in self.mlp]
        return ",".join(f"{i}{kind}" for i, kind in sorted(words)) or "none"

    @property
    def canonical(self) -> str:
        """The one spelling that keys are made from, e.g. ``blocks/30:3,7a,12m``."""
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
        steps: in a race, the objective's metric on the first chunks, by their number.
        saved: seconds that scoring took when what the store had of it was computed.
        raced_out: it was worse than its rival on part of the data; the metrics are those of that part.
    """

    candidate: LayerSubset
    metrics: Mapping[str, float] = field(default_factory=dict)
    stderr: Mapping[str, float] = field(default_factory=dict)
    cached: bool = False
    seconds: float = 0.0
    failure: str | None = None
    steps: Mapping[int, float] = field(default_factory=dict)
    raced_out: bool = False
    saved: float = 0.0
