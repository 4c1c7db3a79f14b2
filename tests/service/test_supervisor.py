"""The processes of a server: started, found again, restarted, and ended."""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prunesearch.errors import ConflictError
from prunesearch.service.supervisor import Program, Supervisor
from prunesearch.studies.writer_process import is_dead, process_name

SLEEP = ("-c", "import time; time.sleep(100)")
STORAGE = "sqlite:///study.db"


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    """Start supervisors, and end them after the test."""
    made: list[Supervisor] = []

    def start(*arguments: str) -> Supervisor:
        supervisor = Supervisor([Program("runner", arguments or SLEEP)], tmp_path, STORAGE)
        made.append(supervisor)
        supervisor.start()
        return supervisor

    yield start
    for supervisor in made:
        supervisor.stop()


def test_a_killed_process_is_started_again_at_once(started: Callable[..., Supervisor]) -> None:
    [child] = started().children
    first = child.pid
    os.kill(first, signal.SIGKILL)
    began = time.monotonic()
    until(lambda: child.pid != first)
    assert time.monotonic() - began < 2
    os.kill(child.pid, 0)


def test_another_server_finds_the_living_process(started: Callable[..., Supervisor]) -> None:
    first, second = started(), started()
    pid = first.children[0].pid
    assert second.children[0].pid == pid
    # It is another server's child, and ends all the same.
    identity = process_name(pid)
    second.stop()
    assert is_dead(identity)


def test_only_one_server_looks_after_the_processes_of_a_storage(tmp_path: Path) -> None:
    one, two = (Supervisor([Program("runner", SLEEP)], tmp_path, STORAGE) for _ in range(2))
    one.reserve()
    one.start()
    pid = one.children[0].pid
    with pytest.raises(ConflictError, match="another server has the runner"):
        two.reserve()
    # The refused server ends nothing of the other one.
    two.stop()
    os.kill(pid, 0)
    one.stop()
    two.reserve()
    two.stop()


@pytest.mark.parametrize("identity", ["{boot} pid:[1] {pid} 1", "x", "other-boot pid:[1] 1 1"])
@pytest.mark.parametrize("same_options", [True, False])
def test_a_file_of_before_a_restart_of_the_host_names_no_process(
    started: Callable[..., Supervisor], tmp_path: Path, identity: str, same_options: bool
) -> None:
    # The number belongs to another process now, here to this test: it must not be ended.
    pid, key = os.getpid(), hashlib.sha256(STORAGE.encode()).hexdigest()[:8]
    boot = process_name(pid).split(" ")[0]
    digest = Program("runner", SLEEP).digest if same_options else "x"
    record = {"process": identity.format(boot=boot, pid=pid), "pid": pid, "digest": digest}
    (tmp_path / f"runner-{key}.json").write_text(json.dumps(record))
    [child] = started().children
    assert child.pid not in (0, pid)
    os.kill(child.pid, 0)


def test_a_process_with_other_options_is_replaced(started: Callable[..., Supervisor]) -> None:
    first = started()
    pid, identity = first.children[0].pid, process_name(first.children[0].pid)
    first._stopping.set()
    second = started("-c", "import time; time.sleep(99)")
    assert second.children[0].pid != pid
    assert is_dead(identity)


def test_a_process_that_dies_at_once_is_reported_and_started_more_and_more_rarely(
    started: Callable[..., Supervisor],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prunesearch.service.supervisor._FIRST_PAUSE", 0.02)
    code = "import sys; sys.exit('no disk: postgresql://me:hunter2@host/db')"
    started("-c", code)
    until(lambda: len(caplog.records) >= 3)
    lines = [record.getMessage() for record in caplog.records]
    pauses = [line.partition("again in ")[2].split()[0] for line in lines[:3]]
    assert pauses == ["0.02", "0.04", "0.08"]
    assert "status 1 (no disk" in lines[0]
    assert "hunter2" not in str(lines)
    assert sys.executable not in lines[0]
