"""The order of copies of weights to a device, and of the computations that use them.

On a GPU a copy runs on a stream of its own. It then overlaps with the blocks that compute, and no
call waits for the device. Two slots are filled in turns. A slot may be filled again only after the
block that it holds has computed, and a block may compute only after its slot has been filled.
Events keep this order on the device.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

SLOTS = 2
"""Places that weights are copied to: one computes while the other is filled."""


class WeightCopies(Protocol):
    """Keeps copies into slots and the use of the slots in order."""

    def filling(self, slot: int) -> AbstractContextManager[None]:
        """Return a context in which a slot is filled, after its last use."""
        ...

    def begin_use(self, slot: int) -> None:
        """Let what computes next wait until a slot is filled."""
        ...

    def end_use(self, slot: int) -> None:
        """Note that what was computed so far may use a slot."""
        ...

    def finish(self) -> None:
        """Wait until the host memory of all copies may be written again."""
        ...

    def settle(self) -> None:
        """Let what computes next wait for all copies, also for those that nothing uses."""
        ...


class CopiesInOrder:
    """Copies on a device that computes one thing after the other, such as a CPU."""

    @contextmanager
    def filling(self, slot: int) -> Iterator[None]:
        """Return a context that changes nothing."""
        yield

    def begin_use(self, slot: int) -> None:
        """Do nothing: the slot is filled."""

    def end_use(self, slot: int) -> None:
        """Do nothing: what used the slot has ended."""

    def finish(self) -> None:
        """Do nothing: no copy is under way."""

    def settle(self) -> None:
        """Do nothing: no copy is under way."""


class CopiesBesideComputing:
    """Copies on a stream of their own. The slots are filled by one thread, and used by another.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # An event that was never recorded is not waited for.
        self._filled = [_event() for _ in range(SLOTS)]
        self._used = [_event() for _ in range(SLOTS)]

    @contextmanager
    def filling(self, slot: int) -> Iterator[None]:
        """Return a context in which copies run on the stream of copies, after the slot's use."""
        self._stream.wait_event(self._used[slot])
        with torch.cuda.stream(self._stream):
            yield
        self._filled[slot].record(self._stream)

    def begin_use(self, slot: int) -> None:
        """Let the current stream wait until a slot is filled."""
        torch.cuda.current_stream(self._device).wait_event(self._filled[slot])

    def end_use(self, slot: int) -> None:
        """Record what the current stream computed so far."""
        self._used[slot].record(torch.cuda.current_stream(self._device))

    def finish(self) -> None:
        """Wait until all copies have ended."""
        self._stream.synchronize()

    def settle(self) -> None:
        """Let the current stream wait for the stream of copies."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


def _event() -> torch.cuda.Event:
    """Return an event that was not recorded yet."""
    event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    return event


def copies_to(device: torch.device) -> WeightCopies:
    """Return what keeps copies to a device in order."""
    return CopiesBesideComputing(device) if device.type == "cuda" else CopiesInOrder()
