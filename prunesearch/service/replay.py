"""Turns stored events of a job back into events, so that they are shown as those of a local run."""

import time

from prunesearch import events
from prunesearch.events import (
    HealProgress,
    Message,
    SearchProgress,
    StageFinished,
    StageProgress,
    StageStarted,
)
from prunesearch.runtime.json_values import (
    Json,
    JsonObject,
    as_float,
    as_int,
    as_list,
    as_text,
)
from prunesearch.runtime.masking import printable
from prunesearch.service.job import StoredEvent

_LONGEST = 2000  # characters of a text that are shown


class EventClock:
    """Clock of the job's process: the time of the last event, and the seconds since it came.

    The history of a job arrives at once. With this clock the speed of its search is estimated as if
    the events came when they happened.
    """

    def __init__(self) -> None:
        self._ahead = 0.0

    def set(self, at: float) -> None:
        """Set the clock to the time of an event, in seconds since 1970."""
        self._ahead = at - time.monotonic()

    def __call__(self) -> float:
        """Return the time in seconds since 1970."""
        return time.monotonic() + self._ahead


def event_from(stored: StoredEvent) -> events.Event | None:
    """Return the event that was stored; None for a kind that is not shown, or a damaged event.

    What controls a terminal is escaped.
    """
    try:
        match stored.kind:
            case "message":
                return Message(_shown(stored.data.get("text"), "text"))
            case "log":
                return Message(_shown(stored.data.get("line", stored.data.get("text")), "line"))
            case "state":
                return _state_message(stored.data)
            case "progress":
                return _stage_progress(stored.data)
            case "search":
                return _search_progress(stored.data)
            case "heal":
                return _heal_progress(stored.data)
            case "stage":
                return _stage(stored.data)
    except ValueError:
        # The server is newer than this client, or the event is damaged. The next one will do.
        return None
    return None


def _shown(value: Json, name: str) -> str:
    """Return a text of the server as one line of limited length."""
    text = printable(as_text(value, name))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _state_message(data: JsonObject) -> Message:
    state = _shown(data.get("state"), "state")
    error = data.get("error")
    return Message(f"{state}: {_shown(error, 'error')}" if error else state)


def _stage(data: JsonObject) -> StageStarted | StageFinished:
    name, state = _shown(data.get("name"), "name"), as_text(data.get("state"), "state")
    if state == "running":
        return StageStarted(name)
    seconds = data.get("seconds")
    spent = 0.0 if seconds is None else as_float(seconds, "seconds")
    return StageFinished(name, spent, state == "skipped")


def _stage_progress(data: JsonObject) -> StageProgress:
    return StageProgress(
        _shown(data.get("name"), "name"),
        as_int(data.get("done", 0), "done"),
        as_int(data.get("total", 0), "total"),
        _shown(data.get("unit", ""), "unit"),
    )


def _search_progress(data: JsonObject) -> SearchProgress:
    value, dropped = data.get("best_value"), data.get("best_dropped")
    return SearchProgress(
        study=_shown(data.get("study"), "study"),
        done=as_int(data.get("done"), "done"),
        total=as_int(data.get("total"), "total"),
        hits=as_int(data.get("hits", 0), "hits"),
        computed=as_int(data.get("computed", 0), "computed"),
        best_value=None if value is None else as_float(value, "best_value"),
        best_dropped=None if dropped is None else _shown(dropped, "best_dropped"),
        under_way=as_int(data.get("under_way", 0), "under_way"),
        front=as_int(data.get("front", 0), "front"),
    )


def _heal_progress(data: JsonObject) -> HealProgress:
    phase = as_text(data.get("phase"), "phase")
    loss = data.get("loss")
    watched = []
    for pair in as_list(data.get("watched", []), "watched"):
        step, value = as_list(pair, "pair of watched")
        watched.append((as_int(step, "step"), as_float(value, "loss")))
    return HealProgress(
        name=_shown(data.get("name"), "name"),
        phase="teacher" if phase == "teacher" else "training",
        done=as_int(data.get("done"), "done"),
        total=as_int(data.get("total"), "total"),
        loss=None if loss is None else as_float(loss, "loss"),
        watched=tuple(watched),
    )
