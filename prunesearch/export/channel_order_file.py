"""The channel order of an export with narrow layers, kept beside its weights or in a GGUF file.

With it the export can be compared with the dense model again. No program reads the file as weights:
its name has another suffix.
"""

import base64
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from prunesearch.errors import VerificationError
from prunesearch.models.channel_order import ChannelOrder

NAME = "channel_order.tensors"
_MEANS = ("channel_means", "column_means")


def write_order(folder: Path, order: ChannelOrder) -> None:
    """Write a channel order to a folder.

    Raises:
        OSError: the file cannot be written.
    """
    (folder / NAME).write_bytes(save(_tensors(order)))


def read_order(folder: Path, digest: str) -> ChannelOrder:
    """Read the channel order of an export.

    Args:
        folder: folder of the export.
        digest: digest of the order.

    Raises:
        VerificationError: the file is missing or damaged, or it holds another order.
    """
    path = folder / NAME
    try:
        return _checked(load(path.read_bytes()), digest, path)
    except (OSError, ValueError, SafetensorError):
        raise VerificationError(f"{str(path)!r} is missing or damaged: export again") from None


def as_text(order: ChannelOrder) -> str:
    """Return a channel order as text, for the header of a GGUF file."""
    return base64.b64encode(zlib.compress(save(_tensors(order)))).decode()


def from_text(text: str, digest: str, path: Path) -> ChannelOrder:
    """Read a channel order from the header of a GGUF file.

    Args:
        text: what `as_text` gave.
        digest: digest of the order.
        path: path of the file, for messages.

    Raises:
        VerificationError: the text is damaged, or it holds another order.
    """
    try:
        return _checked(load(zlib.decompress(base64.b64decode(text, validate=True))), digest, path)
    except (ValueError, zlib.error, SafetensorError):
        raise VerificationError(
            f"the channel order in {str(path)!r} is damaged: export again"
        ) from None


def _tensors(order: ChannelOrder) -> dict[str, torch.Tensor]:
    """Return a channel order as tensors by name."""
    tensors: dict[str, torch.Tensor] = {}
    for kind, indices in (("channels", order.channels), ("groups", order.groups)):
        for index, tensor in enumerate(indices):
            # No layer has more channels than this type can count.
            tensors[f"{kind}.{index}"] = tensor.to(torch.int32)
    for kind, means in zip(_MEANS, (order.channel_means, order.column_means), strict=True):
        for index, tensor in enumerate(means or ()):
            tensors[f"{kind}.{index}"] = tensor
    return tensors


def _checked(tensors: Mapping[str, torch.Tensor], digest: str, path: Path) -> ChannelOrder:
    """Return the channel order of tensors by name.

    Args:
        tensors: the tensors.
        digest: digest of the order.
        path: path of the file, for messages.

    Raises:
        VerificationError: it is another order.
    """
    by_kind: dict[str, list[torch.Tensor]] = {}
    for kind in ("channels", "groups", *_MEANS):
        by_kind[kind] = []
        while (name := f"{kind}.{len(by_kind[kind])}") in tensors:
            by_kind[kind].append(tensors[name])
    channel_means, column_means = (tuple(by_kind[kind]) or None for kind in _MEANS)
    order = ChannelOrder(
        digest.rpartition("-")[0],
        tuple(tensor.long() for tensor in by_kind["channels"]),
        tuple(tensor.long() for tensor in by_kind["groups"]),
        channel_means,
        column_means,
    )
    if order.digest != digest:
        raise VerificationError(
            f"{str(path)!r} holds the order {order.digest}, and the export was made with "
            f"{digest}: export again"
        )
    return order
