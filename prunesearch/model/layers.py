"""The blocks of a model, wherever their weights lie: in memory, or on disk or in host memory and read one by one."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import nn

from prunesearch.errors import RunError, one_line
from prunesearch.model.checkpoint import Stored, read_into


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

    While a block computes, a thread reads the next one, so two are in memory at any time.

    Args:
        blocks: the blocks, without weights.
        stored: for each block, where each of its parameters lies: in a safetensors file, or as a tensor in host memory.
        device: where the blocks compute.
        dtype: in which precision.

    Attributes:
        bytes_read: bytes of weights read so far.
    """

    one_pass = True

    def __init__(
        self,
        blocks: nn.ModuleList,
        stored: Sequence[Mapping[str, Stored | torch.Tensor]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.bytes_read = 0
        self._blocks = list(blocks)
        self._stored = stored
        self._device, self._dtype = device, dtype
        self._slots: list[torch.Tensor | None] = [None, None]

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
                block = self._blocks[index]
                empty = dict(block.named_parameters())
                try:
                    _install(block, weights)
                    yield index, block
                finally:
                    _install(block, empty)

    def _read(self, index: int, slot: int) -> dict[str, torch.Tensor]:
        """Read a block's parameters into one of the two slots."""
        weights: dict[str, torch.Tensor] = {}
        offset = 0
        needed = sum(_aligned(s.nbytes) for s in self._stored[index].values() if isinstance(s, Stored))
        buffer = self._slot(slot, needed)
        for name, source in self._stored[index].items():
            if isinstance(source, Stored):
                try:
                    tensor = read_into(buffer[offset : offset + source.nbytes], source)
                except OSError as error:
                    raise RunError(f"cannot read block {index} from {source.path.name}: {one_line(error)}") from None
                offset += _aligned(source.nbytes)
            else:
                tensor = source
            self.bytes_read += tensor.nbytes
            weights[name] = tensor.to(self._device, self._dtype, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()  # the slot may be read into again
        return weights

    def _slot(self, slot: int, size: int) -> torch.Tensor:
        buffer = self._slots[slot]
        if buffer is None or buffer.nbytes < size:
            buffer = torch.empty(size, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
            self._slots[slot] = buffer
        return buffer


def _aligned(size: int) -> int:
    return -(-size // 64) * 64


def _install(block: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    for name, weight in weights.items():
        owner, _, leaf = name.rpartition(".")
        parameter = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
        setattr(block.get_submodule(owner), leaf, parameter)
