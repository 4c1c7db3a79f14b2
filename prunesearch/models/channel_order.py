"""The order of a model's channels and KV groups, most important first."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch


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


def _add(digest: "hashlib._Hash", tensors: Sequence[torch.Tensor] | None) -> None:
    """Add tensors to a digest."""
    if tensors is None:
        digest.update(b"none")
        return
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
