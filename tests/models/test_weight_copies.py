"""Copies of weights beside computing: a slot is filled after its use, and used after its filling."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from prunesearch.models.layers import StreamedLayers
from prunesearch.models.streaming import open_streamed
from prunesearch.models.weight_copies import CopiesBesideComputing, CopiesInOrder, copies_to


class NotedCopies(CopiesInOrder):
    """Notes what happens to each slot."""

    def __init__(self) -> None:
        self.of_slot: dict[int, list[str]] = {0: [], 1: []}
        self.settled = 0

    @contextmanager
    def filling(self, slot: int) -> Iterator[None]:
        yield
        self.of_slot[slot].append("filled")

    def begin_use(self, slot: int) -> None:
        self.of_slot[slot].append("begun")

    def end_use(self, slot: int) -> None:
        self.of_slot[slot].append("ended")

    def settle(self) -> None:
        self.settled += 1


@pytest.fixture
def layers(tiny_folder: Path) -> StreamedLayers:
    opened = open_streamed(str(tiny_folder), device="cpu").layers
    assert isinstance(opened, StreamedLayers)
    return opened


def test_each_slot_is_filled_used_and_filled_again(layers: StreamedLayers) -> None:
    layers._copies = copies = NotedCopies()
    for _ in layers.walk([0, 1, 3, 4, 5]):
        pass
    assert copies.of_slot == {
        0: ["filled", "begun", "ended"] * 3,
        1: ["filled", "begun", "ended"] * 2,
    }
    assert copies.settled == 1


def test_an_interrupted_pass_settles_its_copies(layers: StreamedLayers) -> None:
    layers._copies = copies = NotedCopies()
    walk = layers.walk(range(6))
    next(walk)
    walk.close()  # type: ignore[attr-defined]
    assert copies.settled == 1
    assert copies.of_slot[0] == ["filled", "begun", "ended"]


class Device:
    """What torch.cuda does, noted by stream."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.events = 0

    def stream_named(self, name: str) -> "NotedStream":
        return NotedStream(self, name)


class NotedStream:
    def __init__(self, device: Device, name: str) -> None:
        self._device, self.name = device, name

    def wait_event(self, event: "NotedEvent") -> None:
        self._device.notes.append(f"{self.name} waits for {event.number}")

    def wait_stream(self, other: "NotedStream") -> None:
        self._device.notes.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self._device.notes.append(f"{self.name} ends")


class NotedEvent:
    def __init__(self, device: Device) -> None:
        self._device, self.number = device, device.events
        device.events += 1

    def record(self, stream: NotedStream) -> None:
        self._device.notes.append(f"{stream.name} records {self.number}")


def test_streams_wait_for_each_other_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()

    @contextmanager
    def within(stream: NotedStream) -> Iterator[None]:
        device.notes.append(f"in {stream.name}")
        yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: device.stream_named("copies"))
    monkeypatch.setattr(torch.cuda, "Event", lambda: NotedEvent(device))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: device.stream_named("blocks"))
    monkeypatch.setattr(torch.cuda, "stream", within)
    copies = copies_to(torch.device("cuda"))
    assert isinstance(copies, CopiesBesideComputing)
    with copies.filling(1):
        device.notes.append("copy")
    copies.begin_use(1)
    copies.end_use(1)
    copies.finish()
    copies.settle()
    # Events 0 and 1 say that a slot is filled, 2 and 3 that it was used.
    assert device.notes == [
        "copies waits for 3",
        "in copies",
        "copy",
        "copies records 1",
        "blocks waits for 1",
        "blocks records 3",
        "copies ends",
        "blocks waits for copies",
    ]


def test_a_cpu_needs_no_order() -> None:
    assert isinstance(copies_to(torch.device("cpu")), CopiesInOrder)
