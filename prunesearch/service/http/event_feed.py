"""The latest events of one job, ready to be sent to any number of streams."""

import asyncio
import json
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from prunesearch.runtime.json_values import to_json
from prunesearch.service.job import FINAL, StoredEvent

_MOST_EVENTS = 1000
_MOST_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class EncodedEvent:
    """An event in the format of an event stream.

    Attributes:
        seq: sequence number in the job.
        kind: kind of the event.
        final: whether the job has ended with it.
        content: the event as it is sent.
    """

    seq: int
    kind: str
    final: bool
    content: bytes


def encoded(event: StoredEvent) -> EncodedEvent:
    """Return an event in the format of an event stream.

    JSON escapes line breaks, so no text in an event can begin another one.
    """
    data = json.dumps(to_json({"at": event.at, **event.data}), separators=(",", ":"))
    final = event.kind == "state" and event.data.get("state") in FINAL
    content = f"id: {event.seq}\nevent: {event.kind}\ndata: {data}\n\n".encode()
    return EncodedEvent(event.seq, event.kind, final, content)


class EventFeed:
    """The latest events of one job.

    It keeps a limited number of them. A stream at an earlier position reads the database.

    Attributes:
        last: sequence number of the last known event. None: the database was not asked yet.
        streams: number of streams that read the feed.
    """

    def __init__(self) -> None:
        self.last: int | None = None
        self.streams = 0
        self._tail: deque[EncodedEvent] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()

    def add(self, events: Collection[StoredEvent]) -> None:
        """Add the events that follow the last one, and wake the streams."""
        for event in events:
            ready = encoded(event)
            self._tail.append(ready)
            self._bytes += len(ready.content)
            self.last = event.seq
        while len(self._tail) > _MOST_EVENTS or self._bytes > _MOST_BYTES:
            self._bytes -= len(self._tail.popleft().content)
        self.wake()

    def since(self, position: int) -> list[EncodedEvent] | None:
        """Return the events after a position.

        Returns:
            None if the feed does not reach back so far.
        """
        if self.last is None:
            return None
        if position >= self.last:
            return []
        if not self._tail or self._tail[0].seq > position + 1:
            return None
        first = position + 1 - self._tail[0].seq
        return [self._tail[index] for index in range(first, len(self._tail))]

    def wake(self) -> None:
        """Wake all streams that wait for a change."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def ticket(self) -> asyncio.Event:
        """Return what `wait` waits for. Take it before looking for events, so that none is missed
        in between.
        """
        return self._changed


async def wait(ticket: asyncio.Event, seconds: float) -> bool:
    """Wait for a change of a feed, and return whether there was one.

    Args:
        ticket: see `EventFeed.ticket`.
        seconds: longest time to wait.
    """
    try:
        async with asyncio.timeout(seconds):
            await ticket.wait()
    except TimeoutError:
        return False
    return True
