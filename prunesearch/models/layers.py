"""Access to the blocks of a model, whose weights are in memory or are streamed one block at a time.

Streamed weights come from disk or from host memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeGuard

import torch
from torch import nn

from prunesearch.errors import RunError, one_line
from prunesearch.models.safetensors_files import Stored, read_into
from prunesearch.models.weight_copies import SLOTS, copies_to
from prunesearch.models.weight_map import Source, read_source


class Layers(Protocol):
    """The blocks of a model, which are visited in order."""

    streamed_once: bool
    """True if loading a block is expensive (streamed from disk).

    Callers should then run all batches through a block while it is in memory.
    """

    def walk(self, wanted: Sequence[int]) -> Iterator[tuple[int, nn.Module]]:
        """Yield the wanted blocks in order. Each can be called until the next one is requested."""
        ...


class ResidentLayers:
    """Blocks whose weights stay in memory."""

    streamed_once = False

    def __init__(self, blocks: nn.ModuleList) -> None:
        self._blocks = list(blocks)

    def walk(self, wanted: Sequence[int]) -> Iterator[tuple[int, nn.Module]]:
        """Yield the wanted blocks in order."""
        for index in wanted:
            yield index, self._blocks[index]


class StreamedLayers:
    """Blocks on the meta device whose weights are loaded only while they are used.

    A thread reads the next block while a block computes, so two blocks are in memory at any time.
    One more tensor is in memory if weights must be converted or moved to a GPU. Copies to a GPU run
    beside what computes (`models.weight_copies`).

    Args:
        blocks: blocks without weights, which give the shapes and dtypes.
        sources: for each block, the source of each of its parameters.
        device: device on which the blocks compute.

    Attributes:
        bytes_read: bytes of weights read so far, as stored.
    """

    streamed_once = True

    def __init__(
        self,
        blocks: nn.ModuleList,
        sources: Sequence[Mapping[str, Source]],
        device: torch.device,
    ) -> None:
        self.bytes_read = 0
        self._blocks = list(blocks)
        self._empty = [dict(block.named_parameters()) for block in blocks]
        # The parameters of a block are read in the order in which they lie in the files.
        self._sources: list[dict[str, Source]] = []
        for of_block in sources:
            in_file_order = sorted(of_block.items(), key=lambda item: _place(item[1]))
            self._sources.append(dict(in_file_order))
        self._device = device
        # A slot holds the largest block.
        self._slot_bytes = max(map(_aligned_bytes, self._empty))
        self._slots: list[torch.Tensor | None] = [None] * SLOTS
        self._staging = torch.empty(0, dtype=torch.uint8)
        self._copies = copies_to(device)

    def walk(self, wanted: Sequence[int]) -> Iterator[tuple[int, nn.Module]]:
        """Yield the wanted blocks in order, each with its weights.

        Raises:
            RunError: the checkpoint cannot be read, or it changed in the meantime.
        """
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="prunesearch-weights") as reader:
                coming: Future[dict[str, torch.Tensor]] | None = None
                for place, index in enumerate(wanted):
                    # Wait for this block. Nothing was read ahead for the first one.
                    slot = place % SLOTS
                    if coming is None:
                        coming = reader.submit(self._read, index, slot)
                    weights = coming.result()
                    # Read the next block into the other slot while this one computes.
                    coming = None
                    if place + 1 < len(wanted):
                        coming = reader.submit(self._read, wanted[place + 1], (place + 1) % SLOTS)
                    # The block has its weights until the caller asks for the next one.
                    self._copies.begin_use(slot)
                    try:
                        _install(self._blocks[index], weights)
                        yield index, self._blocks[index]
                    finally:
                        _install(self._blocks[index], self._empty[index])
                        self._copies.end_use(slot)
        finally:
            # An interrupted pass leaves a copy under way, whose memory may be freed next.
            self._copies.settle()

    def release(self) -> None:
        """Free the memory that blocks are read into. The next walk allocates it again."""
        self._slots = [None] * SLOTS
        self._staging = torch.empty(0, dtype=torch.uint8)

    def _read(self, index: int, slot: int) -> dict[str, torch.Tensor]:
        """Read the parameters of a block into one of the two slots."""
        with self._copies.filling(slot):
            return self._fill_slot(index, slot)

    def _fill_slot(self, index: int, slot: int) -> dict[str, torch.Tensor]:
        """Return the parameters of a block, as they are or as views of a slot."""
        weights: dict[str, torch.Tensor] = {}
        offset = 0
        for name, source in self._sources[index].items():
            wanted = self._empty[index][name]
            if self._is_ready(source, wanted.dtype):
                weights[name] = source
            else:
                # Each parameter has a part of the slot of its own.
                room = self._slot(slot)[offset : offset + wanted.nbytes]
                offset += _aligned(wanted.nbytes)
                weights[name] = room.view(wanted.dtype).view(wanted.shape)
                try:
                    self._fill(room, weights[name], source)
                except OSError as error:
                    raise RunError(
                        f"cannot read block {index} of the checkpoint: {one_line(error)}"
                    ) from None
            self.bytes_read += source.nbytes
        return weights

    def _is_ready(self, source: Source, dtype: torch.dtype) -> TypeGuard[torch.Tensor]:
        """Return whether a source is a tensor that can be used as it is."""
        return (
            isinstance(source, torch.Tensor)
            and source.device == self._device
            and source.dtype == dtype
        )

    def _fill(self, room: torch.Tensor, weight: torch.Tensor, source: Source) -> None:
        """Read a parameter into its part of a slot.

        A copy from the staging buffer ends before it is filled again, so one buffer is enough.

        Args:
            room: bytes of the slot that the parameter takes.
            weight: view of `room` with the parameter's dtype and shape.
            source: source of the parameter.
        """
        if (
            isinstance(source, Stored)
            and source.dtype == weight.dtype
            and self._device.type == "cpu"
        ):
            read_into(room, source)
        elif isinstance(source, Stored):
            # The bytes must be converted or moved, so they are read into the staging buffer first.
            self._copies.finish()
            if self._staging.nbytes < source.nbytes:
                pin = self._device.type == "cuda"
                self._staging = torch.empty(source.nbytes, dtype=torch.uint8, pin_memory=pin)
            staged = read_into(self._staging[: source.nbytes], source)
            weight.copy_(staged, non_blocking=True)
        else:
            weight.copy_(read_source(source), non_blocking=True)

    def _slot(self, slot: int) -> torch.Tensor:
        """Return the bytes of a slot, which are allocated when they are first used."""
        buffer = self._slots[slot]
        if buffer is None:
            buffer = self._slots[slot] = torch.empty(
                self._slot_bytes, dtype=torch.uint8, device=self._device
            )
        return buffer


def _place(source: Source) -> tuple[str, int]:
    """Return the file and the offset of a source, by which sources are read from front to back."""
    if isinstance(source, torch.Tensor):
        return "", 0
    # A tensor that is stored in pieces counts where its first piece lies.
    stored = source if isinstance(source, Stored) else source.pieces[0][1]
    return str(stored.path), stored.offset


def _aligned(size: int) -> int:
    """Round a size in bytes up to a multiple of 64."""
    return -(-size // 64) * 64


def _aligned_bytes(parameters: Mapping[str, nn.Parameter]) -> int:
    """Return the bytes of a slot that holds these parameters."""
    return sum(_aligned(parameter.nbytes) for parameter in parameters.values())


def _install(block: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Set the parameters of a block."""
    for name, weight in weights.items():
        owner, _, leaf = name.rpartition(".")
        parameter = weight
        if not isinstance(parameter, nn.Parameter):
            parameter = nn.Parameter(parameter, requires_grad=False)
        setattr(block.get_submodule(owner), leaf, parameter)
