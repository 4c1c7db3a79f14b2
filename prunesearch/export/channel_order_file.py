"""The channel order of an export with narrow layers, kept in a file beside its weights.

With it the export can be compared with the dense model again. No program reads the file as weights:
its name has another suffix.
"""

from pathlib import Path

import torch

from prunesearch.errors import VerificationError
from prunesearch.models.channel_order import ChannelOrder
from prunesearch.objectives.tensor_files import read_tensors, write_tensors

NAME = "channel_order.tensors"
_CRITERION = "criterion"
_MEANS = ("channel_means", "column_means")


def write_order(folder: Path, order: ChannelOrder) -> None:
    """Write a channel order to a folder.

    Raises:
        OSError: the file cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    for kind, indices in (("channels", order.channels), ("groups", order.groups)):
        for index, tensor in enumerate(indices):
            # No layer has more channels than this type can count.
            tensors[f"{kind}.{index}"] = tensor.to(torch.int32)
    for kind, means in zip(_MEANS, (order.channel_means, order.column_means), strict=True):
        for index, tensor in enumerate(means or ()):
            tensors[f"{kind}.{index}"] = tensor
    write_tensors(folder / NAME, tensors, {_CRITERION: order.criterion})


def read_order(folder: Path, digest: str) -> ChannelOrder:
    """Read the channel order of an export.

    Args:
        folder: folder of the export.
        digest: digest of the order.

    Raises:
        VerificationError: the file is missing or damaged, or it holds another order.
    """
    found = read_tensors(folder / NAME)
    if found is None:
        raise VerificationError(f"{str(folder / NAME)!r} is missing or damaged: export again")
    tensors, notes = found
    by_kind: dict[str, list[torch.Tensor]] = {}
    for kind in ("channels", "groups", *_MEANS):
        by_kind[kind] = []
        while (name := f"{kind}.{len(by_kind[kind])}") in tensors:
            by_kind[kind].append(tensors[name])
    channel_means, column_means = (tuple(by_kind[kind]) or None for kind in _MEANS)
    order = ChannelOrder(
        notes.get(_CRITERION, ""),
        tuple(tensor.long() for tensor in by_kind["channels"]),
        tuple(tensor.long() for tensor in by_kind["groups"]),
        channel_means,
        column_means,
    )
    if order.digest != digest:
        raise VerificationError(
            f"{str(folder / NAME)!r} holds the order {order.digest}, and the export was made with "
            f"{digest}: export again"
        )
    return order
