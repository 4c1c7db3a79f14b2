"""The parts of the dense model's tensors that narrow layers keep, and the biases that they get.

The weights of a narrow layer are those of its first channels and KV groups, in the channel order of
the candidate. The stored tensors of the dense model are in the model's own order.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from prunesearch.export.layout import Slice
from prunesearch.models.experts import experts_of
from prunesearch.models.narrowing import narrow_outputs
from prunesearch.models.reordering import order_of
from prunesearch.models.safetensors_files import Stored, tensors_in
from prunesearch.models.structure import blocks_of
from prunesearch.models.width_shape import attention_of, mlp_of
from prunesearch.widths.layer_widths import LayerWidths


@dataclass(frozen=True)
class NarrowTensors:
    """What becomes of the stored tensors of narrow sublayers.

    Attributes:
        slices: parts that parameters of the dense model keep, by the name of the parameter.
        biases: biases that replace those of the dense model, or that it does not have.
    """

    slices: Mapping[str, Slice] = field(default_factory=dict)
    biases: Mapping[str, Stored] = field(default_factory=dict)


WHOLE = NarrowTensors()
"""No layer is narrower."""


@dataclass(frozen=True)
class _Sublayer:
    """A sublayer that loses channels or KV groups.

    Attributes:
        inputs: projections into it. Each channel or group has rows of them.
        output: projection out of it. Each channel or group has columns of it.
        order: channels or groups of the dense model, most important first.
        kept: number that is kept.
        bias: bias of the narrow output projection; None if it has none.
    """

    inputs: tuple[nn.Linear, ...]
    output: nn.Linear
    order: torch.Tensor
    kept: int
    bias: torch.Tensor | None


def narrow_tensors(
    model: PreTrainedModel,
    candidate: LayerWidths,
    folder: Path,
    *,
    filled: bool,
    empty: Mapping[str, tuple[int, ...]],
) -> NarrowTensors:
    """Return what becomes of the stored tensors of narrow sublayers, and write their biases.

    Args:
        model: the model that was scored, whose channels are in the order of the candidate.
        candidate: the candidate.
        folder: folder for a temporary file with the biases. It must not exist.
        filled: keep the shapes, and set what is removed to zero.
        empty: shapes of biases that the new model has and the dense one has not. They are zero
            where no bias stands for a removed part.

    Raises:
        OSError: the biases cannot be written.
    """
    names = {id(module): name for name, module in model.named_modules()}
    slices: dict[str, Slice] = {}
    biases: dict[str, torch.Tensor] = {}
    # Biases that only the new model has are zero at first.
    for name, shape in empty.items():
        biases[name] = torch.zeros(shape, dtype=model.dtype)
    for sublayer in _narrow_sublayers(model, candidate):
        # Each channel or group that is kept keeps its rows of the inputs.
        kept = sublayer.order[: sublayer.kept].tolist()
        if filled:
            kept = sorted(kept)
        count = len(sublayer.order)
        rows, columns = (Slice(axis, count, tuple(kept), filled) for axis in (0, 1))
        for module in sublayer.inputs:
            slices[f"{names[id(module)]}.weight"] = rows
            if module.bias is not None:
                slices[f"{names[id(module)]}.bias"] = rows
        # It keeps its columns of the output projection.
        output = names[id(sublayer.output)]
        slices[f"{output}.weight"] = columns
        # A projection's own bias is copied from the files, unless another one replaces it.
        if sublayer.bias is not None and sublayer.bias is not sublayer.output.bias:
            biases[f"{output}.bias"] = sublayer.bias.detach().cpu().contiguous()
    slices |= _of_experts(model, candidate, names)
    return NarrowTensors(slices, _stored(biases, folder))


def _of_experts(
    model: PreTrainedModel, candidate: LayerWidths, names: Mapping[int, str]
) -> dict[str, Slice]:
    """Return the parts that the parameters of experts and of their routers keep.

    Args:
        model: the model that was scored, whose experts are in the order of the candidate.
        candidate: the candidate.
        names: names of the modules by their ids.
    """
    order = order_of(model)
    assert order is not None, "the candidate was compared with the order of the model"
    slices: dict[str, Slice] = {}
    for index, block in enumerate(blocks_of(model)):
        use, experts = candidate.use(index), experts_of(model, block)
        if use is None or use.channels is None or experts is None:
            continue
        # An expert is a slice of the stacked weights, and a row of the router.
        kept = order.channels[index][: use.channels].tolist()
        for module, name, _ in experts.parameters:
            slices[f"{names[id(module)]}.{name}"] = Slice(0, experts.channels, tuple(kept))
    return slices


def _narrow_sublayers(model: PreTrainedModel, candidate: LayerWidths) -> Iterator[_Sublayer]:
    """Yield the sublayers of kept blocks that are narrower than in the dense model."""
    order = order_of(model)
    assert order is not None, "the candidate was compared with the order of the model"
    for index, block in enumerate(blocks_of(model)):
        of_attention, of_mlp = narrow_outputs(model, candidate, index)
        if of_attention is not None:
            attention = attention_of(model, block)
            assert attention is not None
            inputs = attention.query, attention.key, attention.value
            groups, kept = order.groups[index], candidate.groups[index]
            yield _Sublayer(inputs, attention.output, groups, kept, of_attention.bias)
        if of_mlp is not None:
            mlp = mlp_of(model, block)
            assert mlp is not None
            channels, kept = order.channels[index], candidate.channels[index]
            yield _Sublayer(mlp.inputs, mlp.output, channels, kept, of_mlp.bias)


def _stored(biases: dict[str, torch.Tensor], folder: Path) -> dict[str, Stored]:
    """Write biases to a file, and return the place of each."""
    if not biases:
        return {}
    folder.mkdir()
    save_file(biases, folder / "model.safetensors")
    return tensors_in(folder)
