"""The parts of the dense model's tensors that narrow layers keep, and the biases that they get.

The weights of a narrow layer are those of its first channels and KV groups, in the channel order of
the candidate. The tensors of the dense model are in the model's own order if they come from its
files, and in the channel order if they come from the memory of a model that was scored.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from prunesearch.errors import ModelError
from prunesearch.export.layout import Slice
from prunesearch.layer_widths import LayerWidths
from prunesearch.models.channel_order import ChannelOrder
from prunesearch.models.narrowing import indices_of_groups, order_of
from prunesearch.models.safetensors_files import Stored, read, tensors_in
from prunesearch.models.structure import blocks_of
from prunesearch.models.weight_map import parameters_of
from prunesearch.models.width_shape import attention_of, mlp_of

_ROWS = 512
"""Rows of a matrix of which a bias is computed at once."""


@dataclass(frozen=True)
class NarrowPart:
    """The projections of a sublayer that loses channels or KV groups.

    Attributes:
        block: index of the block.
        kind: ``attention`` or ``mlp``.
        inputs: names of the projections into the sublayer. Each channel or group has rows of them.
        output: name of the projection out of it. Each channel or group has columns of it.
        count: number of channels or groups of the dense model.
        kept: indices of those that are kept, in the order of the narrow layer.
        removed: indices of the removed columns of the output projection.
        means: mean of the input of the output projection, one number for each column. None: no
            bias is added.
    """

    block: int
    kind: str
    inputs: tuple[str, ...]
    output: str
    count: int
    kept: tuple[int, ...]
    removed: torch.Tensor
    means: torch.Tensor | None


@dataclass(frozen=True)
class NarrowTensors:
    """What becomes of the stored tensors of narrow sublayers.

    Attributes:
        slices: parts that parameters of the dense model keep.
        biases: biases that replace those of the dense model, or that it does not have.
    """

    slices: Mapping[str, Slice] = field(default_factory=dict)
    biases: Mapping[str, Stored] = field(default_factory=dict)


@dataclass(frozen=True)
class Narrowing:
    """How stored tensors become those of narrow layers.

    Attributes:
        order: channel order of the candidate, in the model's own numbers.
        ordered: True if the stored tensors are in this order.
        folder: folder for a temporary file with the biases. It must not exist.
    """

    order: ChannelOrder
    ordered: bool
    folder: Path

    @classmethod
    def of(cls, model: PreTrainedModel, in_memory: bool, folder: Path) -> Self:
        """Return how the tensors of a scored model become those of narrow layers.

        Args:
            model: the dense model, whose channels are in the order of the candidate.
            in_memory: True if the tensors come from its memory, and not from its files.
            folder: see `Narrowing`.
        """
        order = order_of(model)
        assert order is not None, "the candidate was compared with the model's order"
        return cls(order, in_memory, folder)

    def tensors(
        self,
        model: PreTrainedModel,
        stored: Mapping[str, Stored],
        candidate: LayerWidths,
        *,
        filled: bool,
    ) -> NarrowTensors:
        """Return what becomes of the stored tensors, and write the biases.

        Args:
            model: dense model; it may be on the meta device.
            stored: tensors of the dense checkpoint by name.
            candidate: candidate of the dense model.
            filled: keep the shapes, and set what is removed to zero.

        Raises:
            ModelError: a layer of the model cannot be narrowed.
            OSError: a tensor cannot be read or written.
        """
        order = as_stored(model, self.order, self.ordered)
        parts = list(narrow_parts(model, candidate, order))
        slices: dict[str, Slice] = {}
        for part in parts:
            slices |= slices_of(model, part, filled=filled)
        return NarrowTensors(slices, write_biases(model, stored, parts, self.folder))


def narrow_parts(
    model: PreTrainedModel, candidate: LayerWidths, order: ChannelOrder
) -> Iterator[NarrowPart]:
    """Yield the sublayers of kept blocks that are narrower than in the dense model.

    Args:
        model: dense model; it may be on the meta device.
        candidate: candidate of the dense model.
        order: channel order of the candidate, as seen from the stored tensors (`as_stored`).

    Raises:
        ModelError: a layer of the model cannot be narrowed.
    """
    names = {id(module): name for name, module in model.named_modules()}
    for index, block in enumerate(blocks_of(model)):
        use = candidate.use(index)
        if use is None:
            continue
        if use.channels is not None:
            mlp = mlp_of(model, block)
            if mlp is None:
                raise _not_narrow(model, index, "MLP")
            channels = order.channels[index]
            yield NarrowPart(
                index,
                "mlp",
                tuple(names[id(module)] for module in mlp.inputs),
                names[id(mlp.output)],
                len(channels),
                tuple(channels[: use.channels].tolist()),
                channels[use.channels :],
                None if order.channel_means is None else order.channel_means[index],
            )
        if use.groups is not None:
            attention = attention_of(model, block)
            if attention is None:
                raise _not_narrow(model, index, "attention")
            groups = order.groups[index]
            inputs = (attention.query, attention.key, attention.value)
            yield NarrowPart(
                index,
                "attention",
                tuple(names[id(module)] for module in inputs),
                names[id(attention.output)],
                len(groups),
                tuple(groups[: use.groups].tolist()),
                indices_of_groups(groups[use.groups :], attention.query_rows),
                None if order.column_means is None else order.column_means[index],
            )


def _not_narrow(model: PreTrainedModel, index: int, what: str) -> ModelError:
    """Return the error of a sublayer without channels or groups."""
    kind = model.config.model_type
    return ModelError(f"the {what} of layer {index} of this {kind} model cannot be narrowed")


def as_stored(model: PreTrainedModel, order: ChannelOrder, ordered: bool) -> ChannelOrder:
    """Return a channel order as seen from tensors that may be in this order already.

    Args:
        model: dense model; it may be on the meta device.
        order: channel order, which counts channels in the model's own order.
        ordered: True if the tensors are in the channel order.
    """
    if not ordered:
        return order
    channel_means: list[torch.Tensor] = []
    column_means: list[torch.Tensor] = []
    for index, block in enumerate(blocks_of(model)):
        attention = attention_of(model, block)
        if order.channel_means is not None and order.column_means is not None:
            columns = order.groups[index]
            if attention is not None:
                columns = indices_of_groups(columns, attention.query_rows)
            channel_means.append(order.channel_means[index][order.channels[index]])
            column_means.append(order.column_means[index][columns])
    return ChannelOrder(
        order.criterion,
        tuple(torch.arange(len(channels)) for channels in order.channels),
        tuple(torch.arange(len(groups)) for groups in order.groups),
        tuple(channel_means) if order.biases else None,
        tuple(column_means) if order.biases else None,
    )


def slices_of(model: PreTrainedModel, part: NarrowPart, *, filled: bool) -> dict[str, Slice]:
    """Return what each parameter of a narrow sublayer keeps.

    Args:
        model: dense model; it may be on the meta device.
        part: sublayer.
        filled: keep the shapes, and set what is removed to zero.
    """
    kept = part.kept
    if filled:
        kept = tuple(sorted(kept))
    rows, columns = Slice(0, part.count, kept, filled), Slice(1, part.count, kept, filled)
    found = {f"{part.output}.weight": columns}
    for name in part.inputs:
        found[f"{name}.weight"] = rows
        module: nn.Module = model.get_submodule(name)
        if module.bias is not None:
            found[f"{name}.bias"] = rows
    return found


def write_biases(
    model: PreTrainedModel, stored: Mapping[str, Stored], parts: list[NarrowPart], folder: Path
) -> dict[str, Stored]:
    """Write the biases of the output projections of narrow sublayers to a file.

    A bias is what the projection makes of the mean of the removed columns, and the bias that it
    has.

    Args:
        model: dense model; it may be on the meta device.
        stored: tensors of the dense checkpoint by name.
        parts: narrow sublayers.
        folder: folder to create.

    Returns:
        The place of each bias by the name of the parameter. Empty if no sublayer has means.

    Raises:
        OSError: a tensor cannot be read or written.
    """
    places: dict[str, Stored] = {}
    for name, (parameter, _) in parameters_of(model, stored).items():
        places[parameter] = stored[name]
    biases: dict[str, torch.Tensor] = {}
    for part in parts:
        if part.means is None:
            continue
        weight_EC = read(places[f"{part.output}.weight"])
        means = part.means[part.removed].float()
        # The columns are converted a few rows at a time, as a matrix may be large.
        rows = []
        for some_RC in torch.split(weight_EC, _ROWS):
            rows.append(some_RC[:, part.removed].float() @ means)
        bias = torch.cat(rows).to(weight_EC.dtype)
        own = places.get(f"{part.output}.bias")
        if own is not None:
            bias = bias + read(own)
        biases[f"{part.output}.bias"] = bias
    if not biases:
        return {}
    folder.mkdir()
    save_file(biases, folder / "model.safetensors")
    return tensors_in(folder)
