"""The channel order of a model, kept in a file.

The scores of a criterion order the channels and KV groups of each block. The order, the scores and
what the pass told about each block are kept in a file whose name is the digest of all that can
change them. A damaged file counts as missing, so it is computed again.

Shapes: B windows of L tokens, C channels, G KV groups.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from prunesearch.errors import ScoringError, StorageError, one_line
from prunesearch.importance.criteria.registry import (
    REGISTRY,
    CriterionEntry,
    ExpertInputs,
    SublayerInputs,
)
from prunesearch.importance.gradients import BlockGradients, block_gradients
from prunesearch.importance.layer_statistics import LayerStatistics
from prunesearch.importance.moments import InputMoments
from prunesearch.importance.statistics import BlockStatistics, block_statistics
from prunesearch.models.channel_order import ChannelOrder
from prunesearch.models.experts import NarrowableExperts
from prunesearch.models.loading import LoadedModel
from prunesearch.models.reordering import restore
from prunesearch.models.width_shape import block_parts, width_shape_of
from prunesearch.objectives.calibration_data import check_fits
from prunesearch.objectives.digests import content_digest
from prunesearch.objectives.identity import numerics_of, tokens_digest
from prunesearch.objectives.tensor_files import read_tensors, write_tensors

VERSION = 1
"""Increased whenever a change of this folder may change an order or a stored number."""


@dataclass(frozen=True, eq=False)
class MeasuredOrder:
    """A channel order, and the statistics that were measured with it.

    Attributes:
        order: the channel order.
        layers: statistics of each block.
    """

    order: ChannelOrder
    layers: tuple[LayerStatistics, ...]


def channel_order(
    loaded: LoadedModel, windows_BL: torch.Tensor, criterion: str, folder: Path | None
) -> MeasuredOrder:
    """Return the channel order of a model by a criterion: from its file, or computed.

    A model whose channels are in an order gets its own order back before one is computed.

    Args:
        loaded: the dense model.
        windows_BL: token ids of the calibration text, shape (B, L).
        criterion: name of the criterion.
        folder: folder of the files, which is created. None: nothing is kept.

    Raises:
        UnknownNameError: the criterion does not exist.
        ModelError: no block of the model has a part that can be removed.
        DataError: the windows do not fit the model.
        InputError: the criterion needs gradients, and the blocks are streamed.
        ScoringError: scores are not finite.
        StorageError: the file cannot be written.
    """
    # Refuse what cannot be ordered before any work.
    entry = REGISTRY.get(criterion)
    width_shape_of(loaded.model)
    check_fits(loaded.model, windows_BL)
    # Look for the file of an earlier computation.
    path: Path | None = None
    if folder is not None:
        path = folder / f"{_key(loaded, windows_BL, criterion)}.safetensors"
        found = read_tensors(path)
        if found is not None:
            return _unpacked(criterion, found[0])
    # Indices are those of the model's own order.
    restore(loaded.model)
    tensors = _measured(loaded, windows_BL, entry)
    if path is not None:
        try:
            write_tensors(path, tensors, {"criterion": criterion})
        except OSError as error:
            raise StorageError(
                f"cannot keep the channel order in {str(folder)!r}: "
                f"{error.strerror or one_line(error)}; free space or give another `cache`"
            ) from None
    return _unpacked(criterion, tensors)


def kept_order(folder: Path, digest: str) -> MeasuredOrder | None:
    """Return the order with a digest from the files of a folder; None if there is none."""
    criterion = digest.rpartition("-")[0]
    for path in sorted(folder.glob("*.safetensors")):
        found = read_tensors(path)
        if found is not None and found[1].get("criterion") == criterion:
            measured = _unpacked(criterion, found[0])
            if measured.order.digest == digest:
                return measured
    return None


def _key(loaded: LoadedModel, windows_BL: torch.Tensor, criterion: str) -> str:
    """Return the digest of all that can change the order."""
    numerics = numerics_of(loaded.model)
    # Scores are computed in the model's own order, whatever order it is in now.
    numerics.pop("channels", None)
    return content_digest(
        {
            "criterion": criterion,
            "kind": "channel order",
            "model": loaded.content,
            "numerics": numerics,
            "tokens": tokens_digest(windows_BL.tolist()),
            "version": VERSION,
        }
    )


def _measured(
    loaded: LoadedModel, windows_BL: torch.Tensor, entry: CriterionEntry
) -> dict[str, torch.Tensor]:
    """Compute an order and its statistics, as tensors by name."""
    # The backward pass comes first, because it needs all blocks at once.
    gradients: list[BlockGradients] = []
    if entry.gradients:
        gradients = block_gradients(loaded, windows_BL)
    tensors: dict[str, torch.Tensor] = {}
    per_block: list[list[float]] = []
    for found in block_statistics(loaded, windows_BL):
        of_block = gradients[found.index] if gradients else None
        if entry.biases:
            tensors |= _means(loaded, found)
        for kind, scores in _scores(loaded, found, entry, of_block):
            scores_U = scores.to("cpu", torch.float32)
            if not scores_U.isfinite().all():
                raise ScoringError(
                    f"the scores of layer {found.index} by the criterion {entry.name} are not "
                    "finite: load the model with `dtype` float32, or search whole layers"
                )
            # Equal scores keep the order of their indices.
            ordered = scores_U.sort(descending=True, stable=True)
            tensors[f"{kind}.{found.index}"] = ordered.indices
            tensors[f"{kind}_scores.{found.index}"] = ordered.values
        per_block.append([found.influence, found.outlier_share])
    tensors["blocks"] = torch.tensor(per_block, dtype=torch.float64)
    # Tensors of an inference pass could not be trained with, so they are copied.
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _scores(
    loaded: LoadedModel,
    found: BlockStatistics,
    entry: CriterionEntry,
    gradients: BlockGradients | None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the scores of the channels (or experts) and of the KV groups of a block, if any."""
    of_channels = None if gradients is None else gradients.channels
    of_groups = None if gradients is None else gradients.groups
    mlp, attention = block_parts(loaded.model, found.block)
    if isinstance(mlp, NarrowableExperts):
        assert found.router_use is not None
        norm_U = _norms(mlp)
        use = ExpertInputs(found.router_use.score_U, norm_U, of_channels)
        yield "channels", entry.score_experts(use)
    elif mlp is not None:
        inputs = _inputs(mlp.output, found.moments, mlp.channels, of_channels)
        yield "channels", entry.score(inputs)
    if attention is not None:
        inputs = _inputs(attention.output, found.moments, attention.groups, of_groups)
        yield "groups", entry.score(inputs)


def _norms(part: NarrowableExperts) -> torch.Tensor:
    """Return the L2 norm of all weights of each expert, float64."""
    squares_U = torch.zeros(part.channels, dtype=torch.float64)
    for _, _, parameter in part.parameters:
        squares_U += (
            parameter.detach().float().square().flatten(1).sum(1, dtype=torch.float64).cpu()
        )
    return squares_U.sqrt()


def _means(loaded: LoadedModel, found: BlockStatistics) -> dict[str, torch.Tensor]:
    """Return the mean inputs of the output projections of a block. Experts have none."""
    means: dict[str, torch.Tensor] = {}
    mlp, attention = block_parts(loaded.model, found.block)
    if mlp is not None and not isinstance(mlp, NarrowableExperts):
        means[f"channels_means.{found.index}"] = found.moments[mlp.output].mean_C.float().cpu()
    if attention is not None:
        output = found.moments[attention.output]
        means[f"groups_means.{found.index}"] = output.mean_C.float().cpu()
    return means


def _inputs(
    output: nn.Linear,
    moments: Mapping[nn.Module, InputMoments],
    units: int,
    gradients_U: torch.Tensor | None,
) -> SublayerInputs:
    """Return what the units of a sublayer are scored by.

    Args:
        output: output projection of the sublayer.
        moments: moments of the inputs of linear layers.
        units: number of units.
        gradients_U: sums of |w dL/dw| of the units.
    """
    found = moments[output]
    weight_EC = output.weight.detach().to(found.mean_C.device)
    return SublayerInputs(weight_EC, found, units, gradients_U)


def _unpacked(criterion: str, tensors: Mapping[str, torch.Tensor]) -> MeasuredOrder:
    """Return the order and the statistics of tensors by name."""
    # Blocks without channels or groups have no tensors of this kind.
    n_layers = len(tensors["blocks"])
    none = torch.zeros(0)
    layers: list[LayerStatistics] = []
    for index in range(n_layers):
        influence, outlier_share = tensors["blocks"][index].tolist()
        layers.append(
            LayerStatistics(
                influence,
                outlier_share,
                tensors.get(f"channels_scores.{index}", none).numpy(),
                tensors.get(f"groups_scores.{index}", none).numpy(),
            )
        )

    def of_blocks(kind: str, missing: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensors.get(f"{kind}.{index}", missing) for index in range(n_layers))

    biases = REGISTRY.get(criterion).biases
    order = ChannelOrder(
        criterion,
        of_blocks("channels", none.long()),
        of_blocks("groups", none.long()),
        of_blocks("channels_means", none) if biases else None,
        of_blocks("groups_means", none) if biases else None,
    )
    return MeasuredOrder(order, tuple(layers))
