"""The types that all parts share: `LayerSubset` (the removed layers) and `Evaluation` (the
resulting metrics). `widths.layer_widths.LayerWidths` is a subset that also narrows layers.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from prunesearch.errors import InputError
from prunesearch.runtime.json_values import Json, to_json
from prunesearch.units import noun_for

_SPAN = re.compile(r"\s*(\d{1,9})\s*-\s*(\d{1,9})\s*")
"""Blocks from one to another, such as ``1-4``."""
_UNIT = re.compile(r"\s*(-?\d{1,9})([am]?)\s*")
"""One block, or its attention or MLP."""


def check_layers(text: str) -> None:
    """Refuse a list of layers that `LayerSubset.parse` cannot read for any model.

    Raises:
        InputError: the text is not such a list.
    """
    for word in text.split(","):
        if text.strip() != "none" and not (_SPAN.fullmatch(word) or _UNIT.fullmatch(word)):
            raise _unreadable(text)


def _unreadable(text: str) -> InputError:
    """Return the error of a list of layers that cannot be read."""
    return InputError(
        f"cannot read layers {text!r}: write indices with commas, as in 3,7,12 or 1-4,9"
    )


def named_layers(text: str, verb: str = "", verbs: str = "") -> str:
    """Return dropped layers with their noun: ``layer 7``, or ``layers 3,7``.

    Args:
        text: text of a candidate.
        verb: verb that follows one layer, such as ``is``. Default: none.
        verbs: verb that follows several layers.
    """
    if _UNIT.fullmatch(text):
        return f"layer {text} {verb}".rstrip()
    return f"layers {text} {verbs}".rstrip()


@dataclass(frozen=True)
class Use:
    """How a candidate uses a block that it keeps.

    Attributes:
        attention, mlp: whether the sublayer computes.
        channels, groups: number of channels and KV groups that are kept. None: all.
    """

    attention: bool = True
    mlp: bool = True
    channels: int | None = None
    groups: int | None = None

    @property
    def whole(self) -> bool:
        """True if nothing of the block is removed."""
        return self.attention and self.mlp and not self.narrows

    @property
    def narrows(self) -> bool:
        """True if a part of a sublayer is removed."""
        return self.channels is not None or self.groups is not None


@dataclass(frozen=True, order=True)
class LayerSubset:
    """The layers to drop from a model: whole blocks, and attention or MLP sublayers of other
    blocks.

    Blocks are counted from 0. Each tuple is sorted and names a block once. A block whose attention
    and MLP are both dropped computes nothing, so it counts as a dropped block. `LayerSubset.of`
    takes care of that.

    Attributes:
        n_layers: number of blocks in the model.
        dropped: blocks that are dropped completely.
        attention, mlp: blocks that lose only this sublayer.

    Raises:
        InputError: an index outside the model, a repeated index, or no block left.
    """

    n_layers: int
    dropped: tuple[int, ...]
    attention: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        every = (*self.dropped, *self.attention, *self.mlp)
        valid = len(set(every)) == len(every)
        for part in (self.dropped, self.attention, self.mlp):
            valid = valid and list(part) == sorted(part)
        if not valid:
            raise InputError(f"dropped layers must be sorted and named once, got {self.text}")
        if every and not 0 <= min(every) <= max(every) < self.n_layers:
            raise InputError(
                f"cannot drop {named_layers(self.text)}: the model has layers 0 to "
                f"{self.n_layers - 1}"
            )
        if len(self.dropped) >= self.n_layers:
            layers = f"{self.n_layers} {noun_for(self.n_layers, 'layer')}"
            raise InputError(f"dropping {len(self.dropped)} of {layers} leaves none")

    @classmethod
    def of(
        cls,
        n_layers: int,
        dropped: Iterable[int] = (),
        attention: Iterable[int] = (),
        mlp: Iterable[int] = (),
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
        """Read a comma-separated list such as ``3,7a,12m`` or ``1-4,9``; ``none`` is the dense
        model.

        ``7a`` is the attention of block 7, ``12m`` the MLP of block 12, ``1-4`` are blocks 1 to 4.

        Raises:
            InputError: the text is not such a list, or the layers are not in the model.
        """
        if text.strip() == "none":
            return cls.of(n_layers)
        parts: dict[str, list[int]] = {"": [], "a": [], "m": []}
        for word in text.split(","):
            if span := _SPAN.fullmatch(word):
                low, high = int(span[1]), int(span[2])
                # Check the range before it is expanded, because it may be huge.
                if not low <= high < n_layers:
                    raise InputError(
                        f"cannot drop layers {word.strip()}: the model has layers 0 to "
                        f"{n_layers - 1}"
                    )
                parts[""] += range(low, high + 1)
                continue
            match = _UNIT.fullmatch(word)
            if match is None:
                raise _unreadable(text)
            parts[match[2]].append(int(match[1]))
        return cls.of(n_layers, parts[""], parts["a"], parts["m"])

    @property
    def kept(self) -> tuple[int, ...]:
        """Blocks that are kept, whole or in part, in order."""
        gone = set(self.dropped)
        return tuple(i for i in range(self.n_layers) if i not in gone)

    @property
    def path(self) -> tuple[int, ...]:
        """Use of each block, in order: 0 whole, 1 without attention, 2 without MLP, 3 not at all.

        Candidates with a common prefix of their paths share the hidden states of this prefix. The
        dense model has the smallest path.
        """
        use = [0] * self.n_layers
        for kind, blocks in enumerate((self.attention, self.mlp, self.dropped), start=1):
            for i in blocks:
                use[i] = kind
        return tuple(use)

    def use(self, index: int) -> "Use | None":
        """Return how the candidate uses a block; None if it drops the block.

        Candidates with the same use of a block and the same hidden state before it have the same
        hidden state after it.
        """
        if index in self.dropped:
            return None
        return Use(index not in self.attention, index not in self.mlp)

    @property
    def whole_blocks(self) -> bool:
        """True if only whole blocks are dropped."""
        return not self.attention and not self.mlp

    @property
    def text(self) -> str:
        """Dropped layers as ``3,7a,12m``, or ``none``."""
        words = []
        for kind, blocks in (("", self.dropped), ("a", self.attention), ("m", self.mlp)):
            for block in blocks:
                words.append((block, kind))
        return ",".join(f"{block}{kind}" for block, kind in sorted(words)) or "none"

    @property
    def canonical(self) -> str:
        """Unique spelling for cache keys, such as ``blocks/30:3,7a,12m``."""
        return f"blocks/{self.n_layers}:{self.text}"


@to_json.register(LayerSubset)
def _(candidate: LayerSubset) -> Json:
    """Return the dropped layers as users write them."""
    return candidate.text


@dataclass(frozen=True)
class Evaluation:
    """Result of scoring a candidate.

    Attributes:
        candidate: scored candidate.
        metrics: metrics by name: ``kl`` and ``cross_entropy`` in nats per token, ``perplexity``,
            task metrics. Empty if scoring failed.
        stderr: standard errors of the metrics that have one.
        cached: True if nothing had to be computed.
        seconds: wall time of the scoring; 0 for a cache hit.
        failure: reason why there are no metrics, or None.
        steps: in a race, the objective's metric after the first chunks, by the number of chunks.
        raced_out: True if the candidate lost a race. The metrics are those of the scored part of
            the data.
        saved: seconds of scoring that the cache saved.
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
