"""Tracking of a command: checks the trackers, starts them, and closes them at the end."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prunesearch import events
from prunesearch.runtime import stopping
from prunesearch.tracking.delivery import Delivery
from prunesearch.tracking.places import TrackerPlace, check_places, parse_places, unused_variable
from prunesearch.tracking.recording import Recorder, send_to_all
from prunesearch.tracking.records import RunState
from prunesearch.tracking.registry import REGISTRY


def check_tracking(track: Sequence[str], track_to: str | None) -> None:
    """Refuse trackers that cannot work, before anything is loaded.

    Raises:
        InputError: see `places.parse_places` and `places.check_places`.
    """
    check_places(parse_places(track, track_to))


@contextmanager
def tracked(track: Sequence[str], track_to: str | None) -> Iterator[None]:
    """Let trackers follow the work of a ``with`` block.

    A tracker that fails, or does not answer, neither stops the work nor slows it.

    Args:
        track: names of trackers.
        track_to: where they write; see `places.parse_places`.
    """
    if not track:
        yield
        return
    places = parse_places(track, track_to)
    for place in places:
        _announce(place)
    if (line := unused_variable(places)) is not None:
        events.tell(events.Message(line))
    deliveries = [Delivery(place) for place in places]
    recorder = Recorder(send_to_all([delivery.put for delivery in deliveries]))
    state: RunState = "failed"
    try:
        with events.subscribed(recorder.handle):
            yield
        state = "finished"
    except (KeyboardInterrupt, stopping.StopRequested):
        state = "stopped"
        raise
    finally:
        recorder.end(state)
        for delivery in deliveries:
            delivery.close(interrupted=state == "stopped")


def _announce(place: TrackerPlace) -> None:
    """Say where a tracker writes, and what shows it."""
    entry = REGISTRY.get(place.tracker)
    command = entry.view(place.where) if place.folder is not None else ""
    shows = f"; see it with: {command}" if command else ""
    events.tell(events.Message(f"tracking with {entry.name} in {place.shown}{shows}"))
