"""Following a job: no event is missed or doubled over lost connections, and it is shown as a local
run is.
"""

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from prunesearch import events
from prunesearch.errors import InputError, ServerError
from prunesearch.events import (
    HealProgress,
    Message,
    SearchProgress,
    StageFinished,
    StageProgress,
    StageStarted,
)
from prunesearch.report.progress import ProgressView
from prunesearch.runtime import stopping
from prunesearch.runtime.json_values import JsonObject, to_json
from prunesearch.service import client as client_module
from prunesearch.service import following
from prunesearch.service.client import Client
from prunesearch.service.credentials import ServerAddress
from prunesearch.service.following import follow
from prunesearch.service.job import StoredEvent
from prunesearch.service.replay import EventClock, event_from
from prunesearch.service.watching import watch
from tests.support.job_server import (
    JOB_ID,
    TOKEN,
    Answer,
    Asked,
    JobServer,
    job_document,
    job_server,
    sse,
)
from tests.support.signals import lose_a_signal

STREAM = f"GET /v1/jobs/{JOB_ID}/events"
JOB = f"GET /v1/jobs/{JOB_ID}"


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobServer]:
    monkeypatch.setattr(client_module, "_WAITS", (0.0, 0.0))
    monkeypatch.setattr(following, "_FIRST_WAIT", 0.0)
    with job_server() as running:
        running.on(JOB, Answer.of_json(job_document()))
        yield running


@pytest.fixture
def client(double: JobServer) -> Iterator[Client]:
    with Client(ServerAddress.parse(double.url), TOKEN) as made:
        yield made


def messages(first: int, last: int) -> list[bytes]:
    return [sse(seq, "message", text=f"line {seq}") for seq in range(first, last + 1)]


def test_events_over_lost_connections_are_neither_missed_nor_doubled(
    client: Client, double: JobServer
) -> None:
    double.on(
        STREAM,
        Answer.of_events(*messages(1, 3), b"id: 4\nevent: message\nda", cut=True),
        Answer.of_json({"title": "starting"}, 503),
        Answer(200, b"", {"Content-Type": "text/event-stream"}, cut=True),
        Answer.of_events(b": keep-alive\n\n", *messages(3, 5)),
        Answer.of_events(*messages(6, 6), sse(7, "state", state="finished"), *messages(8, 9)),
    )
    lost: list[ServerError] = []
    found = list(follow(client, JOB_ID, on_lost=lost.append))
    assert [event.seq for event in found] == [1, 2, 3, 4, 5, 6, 7]
    streams = [asked for asked in double.asked if "/events" in asked.path]
    assert [asked.headers["Last-Event-ID"] for asked in streams] == ["0", "3", "3", "3", "5"]
    assert lost


def test_an_event_that_the_server_left_out_is_noticed(client: Client, double: JobServer) -> None:
    double.on(STREAM, Answer.of_events(*messages(1, 2), *messages(4, 5)))
    with pytest.raises(ServerError, match="left out events 3 to 3"):
        list(follow(client, JOB_ID))


def test_a_stop_that_python_ignored_ends_the_stream(client: Client, double: JobServer) -> None:
    # After the first event the server sends signs of life only.
    double.on(STREAM, Answer.of_events(*messages(1, 1), *[b": keep-alive\n\n"] * 3))
    found = []
    with stopping.handled(), pytest.raises(stopping.StopRequested):
        for event in follow(client, JOB_ID):
            found.append(event.seq)
            lose_a_signal()
    assert found == [1]
    streams = [asked for asked in double.asked if "/events" in asked.path]
    assert len(streams) == 1


@pytest.mark.parametrize("answer", [Answer.of_events(), Answer(204)])
def test_a_job_whose_last_event_is_known_has_ended(
    client: Client, double: JobServer, answer: Answer
) -> None:
    double.on(STREAM, answer)
    double.on(JOB, Answer.of_json(job_document("finished", last_event=9)))
    assert list(follow(client, JOB_ID, after=9)) == []


def test_a_token_that_is_revoked_ends_the_stream(client: Client, double: JobServer) -> None:
    revoked = Answer.of_json({"title": "Unauthorized"}, 401)
    double.on(STREAM, Answer.of_events(*messages(1, 2), cut=True), revoked)
    with pytest.raises(InputError, match="does not accept the token"):
        list(follow(client, JOB_ID))


def test_a_server_that_stays_away_is_given_up(client: Client, double: JobServer) -> None:
    double.on(STREAM, Answer.of_json({"title": "starting"}, 503))
    with pytest.raises(ServerError, match="is busy"):
        list(follow(client, JOB_ID, patience=0.05))


@pytest.mark.parametrize(
    "stream",
    [
        Answer(200, b"<html>", {"Content-Type": "text/html"}),
        Answer.of_events(b"id: x\nevent: message\ndata: {}\n\n"),
        Answer.of_events(b"id: 1\nevent: message\ndata: {\n\n"),
        Answer.of_events(b"id: 1\nevent: message\ndata: [1]\n\n"),
    ],
)
def test_a_stream_that_is_not_understood_is_a_failure(
    client: Client, double: JobServer, stream: Answer
) -> None:
    double.on(STREAM, stream)
    with pytest.raises(ServerError):
        list(follow(client, JOB_ID))


@pytest.mark.parametrize(
    ("kind", "event"),
    [
        ("message", Message("two lines")),
        ("progress", StageProgress("loading the model", 3, 8, "shards")),
        ("search", SearchProgress("s", 4, 8, 1, 3, 0.25, "3,7", None, 2)),
        ("search", SearchProgress("s", 0, 8)),
        ("heal", HealProgress("heal", "training", 5, 10, 2.5, ((0, 3.0), (5, 2.5)))),
        ("heal", HealProgress("heal", "teacher", 5, 10)),
    ],
)
def test_a_stored_event_becomes_the_event_that_was_told(kind: str, event: events.Event) -> None:
    data = to_json(event)
    assert isinstance(data, dict)
    assert event_from(StoredEvent(1, 0.0, kind, data)) == event


@pytest.mark.parametrize(
    ("data", "event"),
    [
        ({"name": "heal", "state": "running", "seconds": None}, StageStarted("heal")),
        ({"name": "heal", "state": "finished", "seconds": 2.5}, StageFinished("heal", 2.5)),
        ({"name": "heal", "state": "skipped", "seconds": None}, StageFinished("heal", 0.0, True)),
    ],
)
def test_a_stage_becomes_the_event_that_was_told(data: JsonObject, event: events.Event) -> None:
    assert event_from(StoredEvent(1, 0.0, "stage", data)) == event


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("search", {}),
        ("search", {"study": "s", "done": "many", "total": 8}),
        ("heal", {"name": "heal", "phase": "training", "done": 1, "total": 2, "watched": [[1]]}),
        ("progress", {"name": 3}),
        ("message", {"text": None}),
        ("colours", {"text": "of a newer server"}),
    ],
)
def test_an_event_that_is_not_understood_is_passed_over(kind: str, data: JsonObject) -> None:
    assert event_from(StoredEvent(1, 0.0, kind, data)) is None


def screen_of(client: Client, width: int = 100, *, terminal: bool) -> str:
    """What a user sees who watches the job."""
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=terminal, width=width, color_system=None)
    clock = EventClock()
    with ProgressView(console, clock):
        watch(client, JOB_ID, clock.set)
    return shown.getvalue()


def finished(asked: Asked) -> Answer:
    return Answer.of_json(job_document("finished"))


@pytest.mark.parametrize("terminal", [True, False])
def test_watching_shows_what_a_local_run_shows(
    client: Client, double: JobServer, terminal: bool
) -> None:
    progress = {"study": "s", "total": 8, "best_value": 0.25, "best_dropped": "3,7"}
    double.on(
        STREAM,
        Answer.of_events(
            sse(1, "state", state="running"),
            sse(2, "search", **progress, done=0, hits=0, computed=0),
            *[sse(10 * n, "search", **progress, done=n, hits=0, computed=n) for n in range(1, 9)],
            sse(81, "state", state="finished"),
        ),
    )
    screen = screen_of(client, terminal=terminal)
    assert "best 0.2500 without 3,7" in screen
    assert "8/8" in screen
    assert "9.75 s/eval" in screen  # by the times of the events: 78 s for 8 trials


@pytest.mark.parametrize("terminal", [True, False])
def test_text_of_the_server_cannot_control_the_terminal(
    client: Client, double: JobServer, terminal: bool
) -> None:
    bad = "\x1b]0;owned\x07\x1b[2J[bold red]x[/bold red]\r\n\u202e"
    double.on(
        STREAM,
        Answer.of_events(
            sse(1, "message", text=bad),
            sse(2, "progress", name=bad, done=1, total=3, unit=bad),
            sse(3, "search", study=bad, done=1, total=2, best_value=1.0, best_dropped=bad),
            sse(4, "heal", name=bad, phase="training", done=1, total=2, loss=1.0, watched=[[0, 1]]),
            sse(5, "state", state="failed", error=bad),
        ),
    )
    screen = screen_of(client, width=400, terminal=terminal)
    assert "]0;owned" in screen
    for raw in ("\x1b]0;", "\x07", "\x1b[2J", "\u202e"):
        assert raw not in screen
    assert "[bold red]x[/bold red]" in screen
