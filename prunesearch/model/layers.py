"""The blocks of a model, wherever their weights lie: in memory, or on disk or in host memory and read one by one."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import nn

from prunesearch.errors import RunError, one_line
from prunesearch.model.checkpoint import Stored, read_into
from prunesearch.model.sources import Source, read_source


class Layers(Protocol):
    """The blocks of a model, to be gone through in order."""

    one_pass: bool
    """Whether getting at them is dear, so that all data should pass while they are there."""

    def walk(self, wanted: Sequence[int]) -> Iterator[tuple[int, nn.Module]]:
        """Yield the wanted blocks in order; each can be called until the next is asked for."""
        ...


class ResidentLayers:
    """Blocks that are in memory."""

    one_pass = False

    def __init__(self, blocks: nn.ModuleList) -> None:
        self._blocks = list(blocks)

    def walk(self, wanted: Sequence[int]) -> Iterator[tuple[int, nn.Module]]:
        """Yield the blocks."""
        for index in wanted:
            yield index, self._blocks[index]


class StreamedLayers:
    """Blocks on the meta device whose weights are there only while they are used.

    While a block computes, a thread reads the next one, so two are in memory at any time, and of what must be
    converted or moved to a GPU one tensor more.

    Args:
        blocks: the blocks, without weights: they tell shapes and types.
        sources: for each block, where each of its parameters is.
        device: where the blocks compute.

    Attributes:
        bytes_read: bytes of weights read so far, as stored.
    """

    one_pass = True

    def __init__(
        self,
        blocks: nn.ModuleList,
        sources: Sequence[Mapping[str, Source]],
        device: torch.device,
    ) -> None:
        self.bytes_read = 0
        self._blocks = list(blocks)
        self._empty = [dict(block.named_parameters()) for block in blocks]
        self._sources = [dict(sorted(of_block.items(), key=lambda item: _place(item[1]))) for of_block in sources]
        self._device = device
        self._slot_bytes = max(sum(_aligned(p.nbytes) for p in empty.values()) for empty in self._empty)
        self._slots: list[torch.Tensor | None] = [None, None]
        self._staging = torch.empty(0, dtype=torch.uint8)

    def walk(self, wanted: Sequence[int]) -> Iterator[tuple[int, nn.Module]]:
        """Yield the blocks, each with its weights.

        Raises:
            RunError: the checkpoint cannot be read, or changed under us.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="prunesearch-weights") as reader:
            coming: Future[dict[str, torch.Tensor]] | None = None
            for place, index in enumerate(wanted):
                weights = (coming or reader.submit(self._read, index, place % 2)).result()
                ahead = wanted[place + 1 : place + 2]
                coming = reader.submit(self._read, ahead[0], (place + 1) % 2) if ahead else None
                try:
                    _install(self._blocks[index], weights)
                    yield index, self._blocks[index]
                finally:
                    _install(self._blocks[index], self._empty[index])

    def release(self) -> None:
        """Give back the memory that blocks are read into; the next walk takes it again."""
        self._slots = [None, None]
        self._staging = torch.empty(0, dtype=torch.uint8)

    def _read(self, index: int, slot: int) -> dict[str, torch.Tensor]:
        """Read a block's parameters into one of the two slots."""
        weights: dict[str, torch.Tensor] = {}
        offset = 0
        for name, source in self._sources[index].items():
            wanted = self._empty[index][name]
            if isinstance(source, torch.Tensor) and source.device == self._device and source.dtype == wanted.dtype:
                weights[name] = source
            else:
                room = self._slot(slot)[offset : offset + wanted.nbytes]
                offset += _aligned(wanted.nbytes)
                weights[name] = room.view(wanted.dtype).view(wanted.shape)
                try:
                    self._fill(room, weights[name], source)
                except OSError as error:
                    raise RunError(f"cannot read block {index} of the checkpoint: {one_line(error)}") from None
            self.bytes_read += source.nbytes
        return weights

    def _fill(self, room: torch.Tensor, weight: torch.Tensor, source: Source) -> None:
        """Bring a parameter to its place; a copy to a GPU ends before the next, so that one staging buffer will do."""
        if isinstance(source, Stored) and source.dtype == weight.dtype and self._device.type == "cpu":
            read_into(room, source)
        elif isinstance(source, Stored):
            if self._staging.nbytes < source.nbytes:
                self._staging = torch.empty(source.nbytes, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
            weight.copy_(read_into(self._staging[: source.nbytes], source))
        else:
            weight.copy_(read_source(source))

    def _slot(self, slot: int) -> torch.Tensor:
        buffer = self._slots[slot]
        if buffer is None:
            buffer = self._slots[slot] = torch.empty(self._slot_bytes, dtype=torch.uint8, device=self._device)
        return buffer


def _place(source: Source) -> tuple[str, int]:
    """Read a file from front to back."""
    if isinstance(source, torch.Tensor):
        return "", 0
    stored = source if isinstance(source, Stored) else source.pieces[0][1]
    return str(stored.path), stored.offset


def _aligned(size: int) -> int:
    return -(-size // 64) * 64


def _install(block: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    for name, weight in weights.items():
        owner, _, leaf = name.rpartition(".")
        parameter = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
        setattr(block.get_submodule(owner), leaf, parameter)
