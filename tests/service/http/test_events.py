"""Streams of events: replay, their end, many streams, a database that is away, lost tokens."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from prunesearch.service.job import StoredEvent
from tests.support.http_service import HttpService, made_service
from tests.support.live_server import LiveServer, live_server


@dataclass(frozen=True)
class Received:
    """An event that a client received."""

    id: int
    kind: str
    data: dict[str, object]


def parsed(lines: Iterator[str]) -> Iterator[Received | None]:
    """Yield the events of a stream, and None for each comment."""
    found: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            yield None
        elif line:
            name, _, value = line.partition(": ")
            found[name] = value
        elif "event" in found:
            yield Received(int(found["id"]), found["event"], json.loads(found["data"]))
            found = {}


def read(service: HttpService, job: str, query: str = "", **headers: str) -> list[Received]:
    """Read a stream to its end."""
    path = f"/v1/jobs/{job}/events{query}"
    answer = service.client.get(path, headers=service.headers("viewer", **headers))
    assert answer.status_code == 200
    events = []
    for event in parsed(iter(answer.text.split("\n"))):
        if event is not None:
            events.append(event)
    return events


def test_a_stream_is_replayed_after_any_event(service: HttpService) -> None:
    job = service.submit()
    for number in range(5):
        service.jobs.add_event(job, "search", number=number)
    service.jobs.finish(job)
    every = read(service, job)
    assert [event.id for event in every] == [1, 2, 3, 4, 5, 6, 7]
    assert every[-1].data["state"] == "finished"
    assert read(service, job, **{"Last-Event-ID": "4"}) == every[4:]
    assert read(service, job, "?after=6") == every[6:]
    assert read(service, job, "?after=2", **{"Last-Event-ID": "5"}) == every[5:]
    # The final state is always sent.
    assert [event.id for event in read(service, job, "?kinds=log")] == [1, 7]
    assert read(service, job, "?kinds=search,state") == every
    headers = service.headers("viewer", **{"Last-Event-ID": "7"})
    path = f"/v1/jobs/{job}/events"
    assert service.client.get(path, headers=headers).status_code == 204
    page = service.client.get(
        f"{path}?after=2&limit=3", headers=service.headers("viewer", Accept="application/json")
    ).json()
    assert ([event["seq"] for event in page["events"]], page["next"]) == ([3, 4, 5], 5)


def test_texts_in_events_cannot_begin_another_event(service: HttpService) -> None:
    job = service.submit()
    text = "a\n\nevent: state\ndata: {}\r\r\n\u2028</script>"
    service.jobs.add_event(job, "log", text=text)
    service.jobs.finish(job)
    events = read(service, job)
    assert [event.kind for event in events] == ["state", "log", "state"]
    assert events[1].data["text"] == text


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[HttpService, LiveServer]]:
    """A service on a real socket."""
    service = made_service(tmp_path)
    with live_server(service.app) as live:
        yield service, live


def test_many_streams_share_one_poller_and_miss_nothing(
    served: tuple[HttpService, LiveServer],
) -> None:
    service, live = served
    job = service.submit()
    streams, received = 50, dict[int, list[int]]()
    open_ = threading.Barrier(streams + 1)

    def follow(index: int) -> None:
        headers = service.headers("viewer")
        with live.client.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as answer:
            ids = received.setdefault(index, [])
            for event in parsed(answer.iter_lines()):
                if event is not None:
                    ids.append(event.id)
                    if event.id == 1:
                        open_.wait()

    threads = [threading.Thread(target=follow, args=(index,)) for index in range(streams)]
    for thread in threads:
        thread.start()
    open_.wait()
    reads = service.jobs.reads
    for number in range(200):
        service.jobs.add_event(job, "search", number=number)
    service.jobs.finish(job)
    for thread in threads:
        thread.join(30)
    assert all(received[index] == list(range(1, 203)) for index in range(streams))
    # Each stream alone would have read the database several times.
    assert service.jobs.reads - reads < 2 * streams


def test_a_stream_lives_through_an_outage_of_the_database(
    served: tuple[HttpService, LiveServer],
) -> None:
    service, live = served
    job = service.submit()
    headers = service.headers("viewer")
    with live.client.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as answer:
        events = parsed(answer.iter_lines())
        first = next(events)
        assert first is not None and first.id == 1
        service.jobs.failing = OperationalError("x", None, Exception("gone"))
        assert live.client.get("/v1/jobs", headers=headers).status_code == 503
        assert live.client.get("/readyz").status_code == 503
        assert live.client.get("/healthz").status_code == 200
        service.jobs.add_event(job, "search", number=0)
        # Comments come in the meantime, and no events.
        assert [next(events), next(events)] == [None, None]
        service.jobs.failing = None
        service.jobs.finish(job)
        assert [event.id for event in events if event is not None] == [2, 3]


@pytest.mark.parametrize("kind", ["token", "session"])
def test_a_stream_ends_when_its_token_is_revoked(
    kind: str, served: tuple[HttpService, LiveServer]
) -> None:
    service, live = served
    job = service.submit()
    headers = service.headers("viewer")
    if kind == "session":
        secret = service.access.sessions.begin(service.tokens["viewer"])
        headers = {"Cookie": f"prunesearch_session={secret}"}
    with live.client.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as answer:
        events = parsed(answer.iter_lines())
        assert next(events) is not None
        service.access.tokens.revoke("a-viewer")
        service.jobs.add_event(job, "log", text="too late")
        assert [event for event in events if event is not None and event.id > 2] == []
    assert live.client.get(f"/v1/jobs/{job}/events", headers=headers).status_code == 401


def test_a_stream_ends_when_its_job_is_deleted(
    served: tuple[HttpService, LiveServer],
) -> None:
    service, live = served
    job = service.submit()
    service.jobs.pause(job)
    headers = service.headers()
    with live.client.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as answer:
        events = parsed(answer.iter_lines())
        assert next(events) is not None
        assert live.client.delete(f"/v1/jobs/{job}", headers=headers).status_code == 204
        rest = [event for event in events if event is not None]
    assert [event.id for event in rest] == [2]


def test_a_feed_keeps_a_limited_number_of_events() -> None:
    from prunesearch.service.http.event_feed import EventFeed

    feed = EventFeed()
    assert feed.since(0) is None
    feed.last = 0
    feed.add([StoredEvent(seq, 0.0, "log", {"text": "x"}) for seq in range(1, 5001)])
    assert feed.since(5000) == []
    assert feed.since(10) is None  # the database has it
    assert [event.seq for event in feed.since(4998) or []] == [4999, 5000]
    feed.add([StoredEvent(5001, 0.0, "log", {"text": "x" * 5_000_000})])
    assert feed.since(4999) is None
