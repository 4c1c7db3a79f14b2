"""The order of a model's channels and KV groups, most important first."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ChannelOrder:
    """An order of the channels and groups of each block. A width is a prefix of it.

    Attributes:
        criterion: name of the importance score that made the order.
        channels, groups: for each block the indices of its channels and of its groups, most
            important first; empty if the block has none that can be removed.
        channel_means: for each block the mean input of the MLP's output projection, in the model's
            own order. None: what is removed is not compensated by a bias.
        column_means: for each block the mean input of the attention's output projection, one number
            a column, in the model's own order. It is given if `channel_means` is.
    """

    criterion: str
    channels: tuple[torch.Tensor, ...]
    groups: tuple[torch.Tensor, ...]
    channel_means: tuple[torch.Tensor, ...] | None = None
    column_means: tuple[torch.Tensor, ...] | None = None

    def __reduce__(self) -> "tuple[Callable[..., ChannelOrder], tuple[object, ...]]":
        """Pickle arrays, because torch would share the memory of tensors between processes."""
        arrays = []
        for tensors in (self.channels, self.groups, self.channel_means, self.column_means):
            arrays.append(None if tensors is None else [tensor.numpy() for tensor in tensors])
        return _of_arrays, (self.criterion, *arrays)

    @property
    def biases(self) -> bool:
        """True if a narrowed sublayer gets a bias that stands for the mean of what was removed."""
        return self.channel_means is not None

    @cached_property
    def digest(self) -> str:
        """Criterion and digest of the content, such as ``flap-0123456789abcdef``."""
        digest = hashlib.sha256()
        for tensors in (self.channels, self.groups, self.channel_means, self.column_means):
            _add(digest, tensors)
        return f"{self.criterion}-{digest.hexdigest()[:16]}"


def _of_arrays(criterion: str, *arrays: "Sequence[NDArray[Any]] | None") -> ChannelOrder:
    """Return an order from the arrays that were pickled."""
    parts = []
    for found in arrays:
        parts.append(None if found is None else tuple(torch.from_numpy(part) for part in found))
    channels, groups, channel_means, column_means = parts
    assert channels is not None
    assert groups is not None
    return ChannelOrder(criterion, channels, groups, channel_means, column_means)


def _add(digest: "hashlib._Hash", tensors: Sequence[torch.Tensor] | None) -> None:
    """Add tensors to a digest."""
    if tensors is None:
        digest.update(b"none")
        return
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
