"""What becomes of each stored tensor when blocks go: it is renumbered, sliced, zeroed, or left out.

The model is built on the meta device, without weights; which stored tensor makes which parameter follows transformers'
own rules.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import ModelError
from prunesearch.model.anatomy import OTHER_PARTS, blocks_of, family_of, parts_of, per_layer_tensors, sublayer_of
from prunesearch.model.checkpoint import Stored
from prunesearch.model.sources import parameters_of


@dataclass(frozen=True)
class Slice:
    """Keep some of the equal parts that an axis consists of."""

    axis: int
    n_parts: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """A tensor of the new checkpoint.

    Attributes:
        source: where its content comes from.
        take: which part of the source it is; None: all.
        zeroed: its content is zeros instead.
    """

    name: str
    source: Stored
    take: Slice | None = None
    zeroed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape as written."""
        if self.take is None:
            return self.source.shape
        shape = list(self.source.shape)
        shape[self.take.axis] = shape[self.take.axis] // self.take.n_parts * len(self.take.kept)
        return tuple(shape)

    @property
    def nbytes(self) -> int:
        """Bytes as written."""
        if self.take is None:
            return self.source.nbytes
        return self.source.nbytes // self.take.n_parts * len(self.take.kept)


@dataclass(frozen=True)
class Layout:
    """A new checkpoint.

    Attributes:
        entries: its tensors, in the order in which their sources lie on disk.
        unread: stored tensors that the model does not read and that were left out with the blocks they name.
    """

    entries: tuple[Entry, ...]
    unread: tuple[str, ...]


def layout_of(
    model: PreTrainedModel,
    stored: Mapping[str, Stored],
    candidate: LayerSubset,
    *,
    zeroed: Collection[str] = (),
    dropped: Collection[str] = (),
) -> Layout:
    """Plan the checkpoint of a candidate.

    Args:
        model: the dense model, on the meta device.
        stored: the dense checkpoint.
        zeroed, dropped: parameters of the dense model that become zeros, or are left out.

    Raises:
        ModelError: a stored name does not say its block's number.
    """
    family, makes = family_of(model.config), parameters_of(model, stored)
    new_number = {old: new for new, old in enumerate(candidate.kept)}
    slices = {n: Slice(axis, candidate.n_layers, candidate.kept) for n, axis in per_layer_tensors(model).items()}
    entries, unread = [], []
    for name, place in sorted(stored.items(), key=lambda item: (item[1].path, item[1].offset)):
        parameter, _ = makes.get(name, (None, None))
        if parameter is None and _names_a_block(name, family.blocks):
            unread.append(name)
            continue
        block = _block_of(parameter, family.blocks) if parameter else None
        if parameter in dropped or (block is not None and block not in new_number):
            continue
        renamed = name if block is None else _renumbered(name, block, new_number[block])
        take = slices.get(parameter or "") if candidate.dropped else None
        entries.append(Entry(renamed, place, take, parameter in zeroed))
    return Layout(tuple(entries), tuple(unread))


def sublayer_parameters(model: PreTrainedModel, candidate: LayerSubset, *, norms: bool = False) -> set[str]:
    """Names of the parameters of the sublayers that a candidate drops from blocks that stay.

    Args:
        norms: also of the norms that serve them alone.

    Raises:
        ModelError: the sublayers of this model type cannot be dropped one by one.
    """

    def names() -> Iterator[str]:
        for kind, numbers in (("attention", candidate.attention), ("mlp", candidate.mlp)):
            for number in numbers:
                sublayer = sublayer_of(model, kind)
                for part in sublayer.parts if norms else sublayer.modules:
                    for module in parts_of(blocks[number], (part,)):
                        yield from (f"{path}.{number}.{part}.{leaf}" for leaf, _ in module.named_parameters())

    blocks, path = blocks_of(model), family_of(model.config).blocks
    return set(names())


def _block_of(parameter: str, path: str) -> int | None:
    match = re.match(rf"{re.escape(path)}\.(\d+)\.", parameter)
    return int(match[1]) if match else None


def _names_a_block(name: str, path: str) -> bool:
    """Whether a stored name is one of a block of the language model, as far as a name can tell."""
    if any(word in name for word in OTHER_PARTS):
        return False
    return re.search(rf"(?:^|\.){re.escape(path.rpartition('.')[2])}\.\d+\.", name) is not None


def _renumbered(name: str, old: int, new: int) -> str:
    """Change the block's number, which is the first number in a stored name.

    Raises:
        ModelError: it is not.
    """
    parts = name.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if place is None or int(parts[place]) != old:
        raise ModelError(f"the stored name {name} does not begin with its block's number {old}: it cannot be renamed")
    parts[place] = str(new)
    return ".".join(parts)
