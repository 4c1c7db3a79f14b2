"""Candidates that narrow layers: `LayerWidths`."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from prunesearch.candidate import LayerSubset, Use, named_layers
from prunesearch.errors import InputError
from prunesearch.runtime.json_values import Json, to_json
from prunesearch.units import plural
from prunesearch.widths.shape import WidthShape

_WIDTH = re.compile(r"\s*(\d{1,9}):(\d{1,9})/(\d{1,9})\s*")
"""One block with the channels and groups that it keeps, such as ``3:1024/2``."""
_BLOCK = re.compile(r"\s*(\d{1,9})\s*")
"""A block that is dropped."""
_NO_BLOCKS = WidthShape((), (), (), (), (), (), 0)


@dataclass(frozen=True, order=True)
class LayerWidths(LayerSubset):
    """The layers to narrow, and the layers to drop.

    A block keeps the first channels and groups of a channel order, so a width is a number. A block
    that keeps no channel has no MLP, and one that keeps no group has no attention.
    `LayerWidths.of` derives `dropped`, `attention` and `mlp` from the widths.

    Attributes:
        channels, groups: number of channels and groups that each block keeps.
        shape: number that each block has.
        order: digest of the channel order.
        biases: whether a narrowed sublayer gets a bias that stands for what was removed.

    Raises:
        InputError: a width that the block does not have, or no block left.
    """

    channels: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    shape: WidthShape = _NO_BLOCKS
    order: str = ""
    biases: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        # Each block keeps at most what it has.
        for name, kept, full in (
            ("channels", self.channels, self.shape.channels),
            ("KV groups", self.groups, self.shape.groups),
        ):
            if not len(kept) == len(full) == self.n_layers:
                raise InputError(
                    f"{len(kept)} widths in {name} for {self.n_layers} layers: give one a layer"
                )
            for index, (width, limit) in enumerate(zip(kept, full, strict=True)):
                if not 0 <= width <= limit:
                    raise InputError(
                        f"layer {index} cannot keep {width} {name}: it has {limit} of them"
                    )
        # A block with experts keeps as many as a token uses, or none.
        for index, width in enumerate(self.channels):
            if 0 < width < self.shape.experts_used(index):
                raise InputError(
                    f"layer {index} cannot keep {width} experts: each token uses "
                    f"{self.shape.experts_used(index)}"
                )

    @classmethod
    def within(
        cls,
        shape: WidthShape,
        channels: Sequence[int],
        groups: Sequence[int],
        order: str,
        biases: bool = False,
    ) -> Self:
        """Build a candidate from the number of channels and groups that each block keeps.

        Raises:
            InputError: a width that the block does not have, or no block left.
        """
        dropped: list[int] = []
        attention: list[int] = []
        mlp: list[int] = []
        # A block of which nothing is left is dropped. One that lost a sublayer keeps the other.
        for index in range(min(len(channels), len(groups), shape.n_layers)):
            without_mlp = shape.channels[index] > 0 and channels[index] == 0
            without_attention = shape.groups[index] > 0 and groups[index] == 0
            if without_mlp and without_attention:
                dropped.append(index)
            elif without_mlp:
                mlp.append(index)
            elif without_attention:
                attention.append(index)
        return cls(
            shape.n_layers,
            tuple(dropped),
            tuple(attention),
            tuple(mlp),
            tuple(channels),
            tuple(groups),
            shape,
            order,
            biases,
        )

    @classmethod
    def read(cls, text: str, shape: WidthShape, order: str, biases: bool = False) -> Self:
        """Read a list such as ``3:1024/2,7``: block 3 keeps 1,024 channels and 2 KV groups, and
        block 7 is dropped. All other blocks are whole. ``none`` is the dense model.

        Raises:
            InputError: the text is not such a list, or a width does not fit the model.
        """
        # All blocks are whole at first.
        channels, groups = list(shape.channels), list(shape.groups)
        named: set[int] = set()
        words: Iterable[str] = text.split(",")
        if text.strip() == "none":
            words = ()
        # Each word narrows or drops one block.
        for word in words:
            block, width = _BLOCK.fullmatch(word), _WIDTH.fullmatch(word)
            if block is None and width is None:
                raise InputError(
                    f"cannot read widths {text!r}: write layer:channels/groups with commas, as in "
                    f"3:1024/2,7"
                )
            index = int(block[1] if block is not None else width[1])  # type: ignore[index]
            if index >= shape.n_layers or index in named:
                raise InputError(
                    f"cannot narrow layer {index}: name each layer once, and the model has layers "
                    f"0 to {shape.n_layers - 1}"
                )
            named.add(index)
            channels[index], groups[index] = 0, 0
            if width is not None:
                channels[index], groups[index] = int(width[2]), int(width[3])
        return cls.within(shape, channels, groups, order, biases)

    def use(self, index: int) -> Use | None:
        """Return how the candidate uses a block; None if it drops the block."""
        plain = super().use(index)
        if plain is None:
            return None
        channels: int | None = None
        groups: int | None = None
        if plain.mlp and self.channels[index] < self.shape.channels[index]:
            channels = self.channels[index]
        if plain.attention and self.groups[index] < self.shape.groups[index]:
            groups = self.groups[index]
        return Use(plain.attention, plain.mlp, channels, groups)

    @property
    def path(self) -> tuple[int, ...]:
        """Use of each block, in order: 0 whole, 3 not at all, a larger number for each width.

        See `LayerSubset.path`.
        """
        use = list(super().path)
        for index, plain in enumerate(use):
            lost_channels = self.shape.channels[index] - self.channels[index]
            lost_groups = self.shape.groups[index] - self.groups[index]
            if plain != 3 and (lost_channels or lost_groups):
                use[index] = 3 + lost_channels * (self.shape.groups[index] + 1) + lost_groups
        return tuple(use)

    @property
    def whole_blocks(self) -> bool:
        """True if only whole blocks are dropped, and no block is narrowed."""
        return not any(self.narrowed)

    @property
    def narrowed(self) -> tuple[bool, ...]:
        """For each block, True if it is kept and has lost a part."""
        found = []
        for index in range(self.n_layers):
            lost = self.channels[index] < self.shape.channels[index]
            lost = lost or self.groups[index] < self.shape.groups[index]
            found.append(lost and index not in self.dropped)
        return tuple(found)

    @property
    def fewer_experts(self) -> tuple[int, ...]:
        """Kept blocks that have lost experts."""
        found = []
        for index in self.kept:
            use = self.use(index)
            if use is not None and use.channels is not None and self.shape.experts_used(index):
                found.append(index)
        return tuple(found)

    @property
    def narrowing_params(self) -> int:
        """Number of parameters that are removed of kept sublayers, less the biases that are added.

        What goes with dropped blocks and sublayers is not counted.
        """
        removed = 0
        for index in range(self.n_layers):
            use = self.use(index)
            if use is None:
                continue
            for kept, full, params in (
                (use.channels, self.shape.channels, self.shape.channel_params),
                (use.groups, self.shape.groups, self.shape.group_params),
            ):
                if kept is not None:
                    removed += (full[index] - kept) * params[index]
                    # Experts have no output projection that a bias could be added to.
                    experts = full is self.shape.channels and self.shape.experts_used(index) > 0
                    removed -= (self.biases and not experts) * self.shape.hidden_size
        return removed

    @property
    def text(self) -> str:
        """Widths of the blocks that are not whole as ``3:1024/2,7``, or ``none``."""
        words = []
        for index, narrowed in enumerate(self.narrowed):
            if index in self.dropped:
                words.append(str(index))
            elif narrowed:
                words.append(f"{index}:{self.channels[index]}/{self.groups[index]}")
        return ",".join(words) or "none"

    @property
    def canonical(self) -> str:
        """Unique spelling for cache keys, such as ``widths/30:flap-0123456789abcdef:3:1024/2``."""
        return f"widths/{self.n_layers}:{self.order}:{self.text}"


@to_json.register(LayerWidths)
def _(candidate: LayerWidths) -> Json:
    """Return the widths as users write them."""
    return candidate.text


_LONGEST_SHOWN = 60  # characters of widths in a sentence


def described(text: str) -> str:
    """Return what is left of a model, such as ``without layers 3,7`` or ``with widths 3:1024/2``.

    Widths that would fill a line are counted.

    Args:
        text: text of a candidate.
    """
    if ":" not in text:
        return f"without {named_layers(text)}"
    if len(text) <= _LONGEST_SHOWN:
        return f"with widths {text}"
    words = text.split(",")
    dropped = [word for word in words if ":" not in word]
    narrowed = f"with {plural(len(words) - len(dropped), 'narrower layer')}"
    if dropped:
        return f"without {named_layers(','.join(dropped))}, {narrowed}"
    return narrowed


def parse_candidate(
    text: str, n_layers: int, shape: WidthShape | None = None, order: str = "", biases: bool = False
) -> LayerSubset:
    """Read the text of a candidate: layers, or widths if a shape is given.

    Raises:
        InputError: the text cannot be read.
    """
    if shape is None:
        return LayerSubset.parse(text, n_layers)
    return LayerWidths.read(text, shape, order, biases)
