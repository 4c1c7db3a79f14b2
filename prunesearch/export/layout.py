"""Plan of a new checkpoint: each stored tensor is renumbered, sliced, zeroed or left out.

The model is built on the meta device, without weights. The parameter that a stored tensor makes is
found by transformers' own rules.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from transformers import PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import ModelError
from prunesearch.models.safetensors_files import Stored
from prunesearch.models.structure import (
    OTHER_PARTS,
    architecture_of,
    blocks_of,
    parts_of,
    per_layer_tensors,
    sublayer_of,
)
from prunesearch.models.weight_map import parameters_of

_EXPERT = re.compile(r"\.experts\.(\d+)\.")
"""Number of an expert in a stored name."""


@dataclass(frozen=True)
class Slice:
    """Some of the equal parts that an axis consists of.

    Attributes:
        axis: axis that consists of the parts.
        n_parts: number of parts.
        kept: indices of the parts to keep, in their new order.
        filled: True if the other parts become zeros instead of being removed. The kept parts then
            stay where they are.
    """

    axis: int
    n_parts: int
    kept: tuple[int, ...]
    filled: bool = False


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of the new checkpoint.

    Attributes:
        name: name in the new checkpoint.
        source: stored tensor that it is made from.
        take: part of the source that is kept; None for all of it.
        zeroed: True if it is filled with zeros instead.
    """

    name: str
    source: Stored
    take: Slice | None = None
    zeroed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the new tensor."""
        if self.take is None or self.take.filled:
            return self.source.shape
        shape = list(self.source.shape)
        shape[self.take.axis] = shape[self.take.axis] // self.take.n_parts * len(self.take.kept)
        return tuple(shape)

    @property
    def nbytes(self) -> int:
        """Return the bytes of the new tensor."""
        if self.take is None or self.take.filled:
            return self.source.nbytes
        return self.source.nbytes // self.take.n_parts * len(self.take.kept)


@dataclass(frozen=True)
class Layout:
    """The plan of a new checkpoint.

    Attributes:
        entries: tensors, in the order in which their sources lie on disk.
        unread: names of stored tensors that name a block but that the model does not read. They are
            left out.
    """

    entries: tuple[TensorEntry, ...]
    unread: tuple[str, ...]


def layout_of(
    model: PreTrainedModel,
    stored: Mapping[str, Stored],
    candidate: LayerSubset,
    *,
    zeroed: Collection[str] = (),
    dropped: Collection[str] = (),
    narrowed: Mapping[str, Slice] = MappingProxyType({}),
    biases: Mapping[str, Stored] = MappingProxyType({}),
) -> Layout:
    """Plan the checkpoint of a candidate.

    Args:
        model: dense model, on the meta device.
        stored: tensors of the dense checkpoint by name.
        candidate: candidate of the dense model.
        zeroed: parameters of the dense model that become zeros.
        dropped: parameters of the dense model that are left out.
        narrowed: parts that parameters of narrow sublayers keep.
        biases: biases that replace those of the dense model, or that it does not have, by the name
            of the parameter.

    Raises:
        ModelError: a stored name does not contain the number of its block, or a narrow tensor is
            stored in pieces.
    """
    architecture, makes = architecture_of(model.config), parameters_of(model, stored)
    new_number = {old: new for new, old in enumerate(candidate.kept)}
    # Parameters outside the blocks with a part for each block lose the parts of dropped blocks.
    slices: dict[str, Slice] = dict(narrowed)
    if candidate.dropped:
        for name, axis in per_layer_tensors(model).items():
            slices[name] = Slice(axis, candidate.n_layers, candidate.kept)
    read = {parameter for parameter, _ in makes.values()}
    entries, unread = [], []
    # In the order on disk, so that the sources are read from front to back.
    for name, place in sorted(stored.items(), key=lambda item: (item[1].path, item[1].offset)):
        # A tensor that the model does not read stays, unless it belongs to a block.
        if name not in makes:
            if _names_a_block(name, architecture.blocks):
                unread.append(name)
            else:
                entries.append(TensorEntry(name, place))
            continue
        parameter, piece = makes[name]
        if parameter in dropped:
            continue
        # Stored experts that are kept get their new numbers.
        take, renamed = slices.get(parameter), name
        if piece is not None and take is not None:
            moved = _renumbered_expert(name, take)
            if moved is None:
                continue
            take, renamed = None, moved
        # A tensor outside the blocks keeps its name. That of a kept block gets the block's new
        # number.
        block = _block_of(parameter, architecture.blocks)
        if block is not None:
            if block not in new_number:
                continue
            renamed = _renumbered(renamed, block, new_number[block])
        if parameter in biases:
            entries.append(TensorEntry(renamed, biases[parameter]))
            continue
        entries.append(TensorEntry(renamed, place, take, parameter in zeroed))
        # A bias that the dense model does not have follows its weight.
        bias = f"{parameter.removesuffix('weight')}bias"
        if bias in biases and bias not in read:
            entries.append(TensorEntry(f"{renamed.removesuffix('weight')}bias", biases[bias]))
    return Layout(tuple(entries), tuple(unread))


def sublayer_parameters(
    model: PreTrainedModel, candidate: LayerSubset, *, norms: bool = False
) -> set[str]:
    """Return the names of the parameters of the sublayers that a candidate drops from kept blocks.

    Args:
        model: dense model.
        candidate: candidate of the dense model.
        norms: include the norms that belong to these sublayers alone.

    Raises:
        ModelError: the sublayers of this model type cannot be dropped one by one.
    """
    blocks, path = blocks_of(model), architecture_of(model.config).blocks
    names: set[str] = set()
    for kind, numbers in (("attention", candidate.attention), ("mlp", candidate.mlp)):
        for number in numbers:
            sublayer = sublayer_of(model, kind)
            for part in sublayer.parts if norms else sublayer.modules:
                # A block need not have each of these modules.
                for module in parts_of(blocks[number], (part,)):
                    for leaf, _ in module.named_parameters():
                        names.add(f"{path}.{number}.{part}.{leaf}")
    return names


def _block_of(parameter: str, path: str) -> int | None:
    """Return the index of the block that a parameter belongs to.

    It is None if the parameter is outside the blocks.
    """
    match = re.match(rf"{re.escape(path)}\.(\d+)\.", parameter)
    return int(match[1]) if match else None


def _renumbered_expert(name: str, take: Slice) -> str | None:
    """Change the number of an expert that is stored by itself.

    Args:
        name: stored name of a tensor of the expert.
        take: the experts that are kept.

    Returns:
        The new name; None if the expert is removed.

    Raises:
        ModelError: the tensor is another piece of a parameter than an expert.
    """
    match = _EXPERT.search(name)
    if match is None or take.axis != 0 or take.filled:
        raise ModelError(f"{name} is stored in pieces, so it cannot be narrowed: drop whole blocks")
    if int(match[1]) not in take.kept:
        return None
    number = take.kept.index(int(match[1]))
    return f"{name[: match.start(1)]}{number}{name[match.end(1) :]}"


def _names_a_block(name: str, path: str) -> bool:
    """Return whether a stored tensor belongs to a block of the language model, judged by its
    name.
    """
    if any(word in name for word in OTHER_PARTS):
        return False
    return re.search(rf"(?:^|\.){re.escape(path.rpartition('.')[2])}\.\d+\.", name) is not None


def _renumbered(name: str, old: int, new: int) -> str:
    """Change the block's number, which is the first number in a stored name.

    Raises:
        ModelError: the first number is not the block's.
    """
    parts = name.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if place is None or int(parts[place]) != old:
        raise ModelError(
            f"the stored name {name} does not begin with its block's number {old}: it cannot be "
            f"renamed"
        )
    parts[place] = str(new)
    return ".".join(parts)
