"""A tracker that is slow, dead or broken never stops a command, and what is lost is counted."""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunesearch.events import Event, Message, subscribed
from prunesearch.tracking import delivery
from prunesearch.tracking.delivery import Delivery, Patience
from prunesearch.tracking.places import TrackerPlace
from prunesearch.tracking.records import Point, RunDocument, RunEnd, RunPoints, RunStart

PLACE = TrackerPlace("mlflow", "http://127.0.0.1:1", remote=True)
READY = "import sys, json\nsay = lambda **answer: print(json.dumps(answer), flush=True)\nsys.stdin.readline(); say(done=0)\n"
SILENT = READY + "sys.stdin.read()"
DEAD = "raise SystemExit(3)"
# It takes everything but documents.
BROKEN = READY + (
    "for line in sys.stdin:\n"
    "    batch = json.loads(line)\n"
    "    good = 0\n"
    "    while good < len(batch) and batch[good]['kind'] != 'document': good += 1\n"
    "    say(done=good, failure='' if good == len(batch) else 'no document is taken')\n"
)
# The real program, with a tracker that takes ten records a second.
SLOW = (
    "import time\n"
    "from types import SimpleNamespace\n"
    "from prunesearch.tracking import process\n"
    "run = SimpleNamespace(last_step=0, log=lambda points: time.sleep(0.1))\n"
    "tracker = SimpleNamespace(open_run=lambda start: run)\n"
    "entry = SimpleNamespace(open=lambda place, remote: tracker)\n"
    "process.REGISTRY = SimpleNamespace(get=lambda name: entry)\n"
    "process._let_the_command_go_first = lambda: None\n"
    "process.main()\n"
)
# It takes the beginnings of runs only, and says how often it was asked.
REFUSING = READY + (
    "for asked, line in enumerate(sys.stdin, 1):\n"
    "    batch = json.loads(line)\n"
    "    good = int(batch[0]['kind'] == 'start')\n"
    "    say(done=good, failure='' if good == len(batch) else f'{asked} times')\n"
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "GATHER", 0.01)
    monkeypatch.setattr(delivery, "_PAUSES", (0.01,))


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []

    def keep(event: Event) -> None:
        assert isinstance(event, Message)
        lines.append(event.text)

    with subscribed(keep):
        yield lines


def begin(script: str, capacity: int = 100) -> Delivery:
    sending = Delivery(PLACE, (sys.executable, "-c", script), capacity)
    sending.put(RunStart("r", "s", "search", "s", {}))
    return sending


def points(first: int, last: int) -> RunPoints:
    return RunPoints("r", tuple(Point(step, 0.0, {"value": 1.0}) for step in range(first, last)))


def test_a_server_that_never_answers_costs_no_time_and_is_counted(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "REMOTE", Patience(0.3, 1.0))
    sending = begin(SILENT, capacity=5)
    while sending._asked is None or sending._queue.qsize():  # the first record is under way
        time.sleep(0.01)
    began = time.monotonic()
    for number in range(1, 1001):
        sending.put(points(number, number + 1))
    assert time.monotonic() - began < 0.5
    assert sending.dropped >= 900
    began = time.monotonic()
    sending.close()
    assert time.monotonic() - began < 3
    assert not sending._thread.is_alive()
    (line,) = said
    assert line.startswith(
        "mlflow did not get 1001 of 1001 points and results at http://127.0.0.1:1"
    )
    assert line.endswith("it does not answer")


def test_a_library_that_loads_slowly_is_no_server_that_does_not_answer(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "REMOTE", Patience(0.3, 5.0))
    loads = "import time; time.sleep(1.5)\n" + READY
    takes = "for line in sys.stdin: say(done=len(json.loads(line)))\n"
    sending = begin(loads + takes)
    sending.put(points(1, 4))
    sending.close()
    assert said == []
    # A library that never loads is given up, too.
    monkeypatch.setattr(delivery, "LOADING", Patience(0.3, 0.3))
    sending = begin("import sys; sys.stdin.read()")
    sending.close()
    assert said[0].endswith("it does not answer")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the policy")
def test_the_process_runs_only_where_the_command_leaves_a_processor_free(tmp_path: Path) -> None:
    sending = Delivery(TrackerPlace("tensorboard", str(tmp_path), remote=False))
    assert sending._loaded.wait(60)
    assert sending._process is not None
    pid = sending._process.pid
    assert os.sched_getscheduler(pid) == os.SCHED_IDLE
    # The policy counts within a session, and Ctrl-C goes to a group of processes.
    assert os.getsid(pid) == os.getsid(0)
    assert os.getpgid(pid) == pid != os.getpgid(0)
    sending.close()


def test_a_process_that_ends_is_named_once(said: list[str]) -> None:
    sending = begin(DEAD)
    while not said:
        time.sleep(0.01)
    sending.put(points(1, 4))
    sending.close()
    assert len(said) == 2
    assert said[0] == (
        "mlflow fails at http://127.0.0.1:1: its process ended; the run goes on without it"
    )
    assert said[1].startswith("mlflow did not get 4 of 4 points")


def test_a_record_that_is_not_taken_does_not_stop_the_others(said: list[str]) -> None:
    sending = begin(BROKEN)
    sending.put(points(1, 3))
    sending.put(RunDocument("r", "a", "b"))
    sending.put(points(3, 5))
    sending.put(RunEnd("r", "finished"))
    while sending._taken < 6:
        time.sleep(0.01)
    sending.close()
    assert [line.partition(";")[0] for line in said] == [
        "mlflow fails at http://127.0.0.1:1: no document is taken",
        "mlflow did not get 1 of 7 points and results at http://127.0.0.1:1: no document is taken",
    ]


def test_a_record_that_is_not_taken_at_the_end_does_not_stop_the_others(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "REMOTE", Patience(60.0, 60.0))
    # The pause after the first failure lasts until the delivery is closed.
    monkeypatch.setattr(delivery, "_PAUSES", (1000.0,))
    sending = begin(BROKEN)
    sending.put(RunDocument("r", "recipe.yaml", "b"))
    while not said:
        time.sleep(0.01)
    # The documents of several runs come directly before the ends of the runs.
    sending.put(points(1, 3))
    for number in range(10):
        sending.put(RunDocument(f"{number}", "report.json", "b"))
    for number in range(10):
        sending.put(RunEnd(f"{number}", "finished"))
    sending.close()
    assert sending._taken == 1 + 2 + 10
    assert said[1:] == [
        "mlflow did not get 11 of 24 points and results at http://127.0.0.1:1: no document is taken"
    ]


def test_a_tracker_that_takes_nothing_is_asked_only_a_few_times_at_the_end(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "REMOTE", Patience(60.0, 60.0))
    monkeypatch.setattr(delivery, "_PAUSES", (1000.0,))
    sending = begin(REFUSING, capacity=1000)
    sending.put(points(0, 1))
    while not said:
        time.sleep(0.01)
    for number in range(1, 501):
        sending.put(points(number, number + 1))
    sending.put(RunEnd("r", "finished"))
    sending.close()
    assert said[1].startswith("mlflow did not get 502 of 503 points and results")
    asked = int(said[1].rpartition(": ")[2].removesuffix(" times"))
    assert 3 < asked < 20


def test_a_run_that_cannot_begin_is_not_asked_for_at_the_end(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_PAUSES", (1000.0,))
    fails = "for asked, line in enumerate(sys.stdin, 1): say(done=0, failure=f'{asked} times')\n"
    sending = begin(READY + fails)
    while not said:
        time.sleep(0.01)
    sending.put(points(1, 4))
    sending.close()
    assert said[1].startswith("mlflow did not get 4 of 4 points and results")
    assert said[1].endswith(": 1 times")


def test_the_end_gives_a_batch_under_way_the_whole_patience(
    said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(delivery, "REMOTE", Patience(30.0, 60.0))
    closing = tmp_path / "closing"
    sending = begin(
        "import os, time\n" + READY + "for line in sys.stdin:\n"
        f"    while not os.path.exists({str(closing)!r}): time.sleep(0.01)\n"
        "    say(done=len(json.loads(line)))\n"
    )
    assert sending._loaded.wait(60)
    while sending._asked is None or sending._queue.qsize():
        time.sleep(0.01)
    # The batch was sent an hour ago.
    sending._asked -= 3600.0
    threading.Timer(0.3, closing.touch).start()
    sending.close()
    assert said == []


def test_a_server_that_takes_its_time_for_each_record_gets_all(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "REMOTE", Patience(3.0, 60.0))
    sending = begin(SLOW)
    for number in range(1, 46):
        sending.put(points(number, number + 1))
    sending.close()
    assert said == []


def test_the_part_of_a_batch_that_was_taken_is_not_counted_as_lost(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "REMOTE", Patience(0.3, 1.0))
    sending = begin(READY + "sys.stdin.readline(); say(done=1); sys.stdin.read()")
    sending.put(points(1, 4))
    while sending._taken < 1:
        time.sleep(0.01)
    sending.close()
    assert said == [
        "mlflow did not get 3 of 4 points and results at http://127.0.0.1:1: it does not answer"
    ]


def test_mlflow_gives_up_on_a_server_that_accepts_and_never_answers(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setattr(delivery, "REMOTE", Patience(0.5, 60.0))
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = TrackerPlace("mlflow", f"http://127.0.0.1:{server.getsockname()[1]}", remote=True)
        sending = Delivery(place)
        sending.put(RunStart("r", "s", "search", "s", {}))
        connection, _ = server.accept()  # the library is loaded, and waits
        began = time.monotonic()
        sending.close()
        assert time.monotonic() - began < 5
        connection.close()
    assert said[0].startswith("mlflow did not get 1 of 1 points and results")
