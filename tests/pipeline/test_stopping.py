"""Ctrl-C and SIGTERM: nothing is lost, nothing runs on, and libraries' users keep their own
handlers.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prunesearch.cli.main import main
from prunesearch.pipeline import session
from prunesearch.runtime import failpoints, stopping
from tests.support.cli import FAST, run_json
from tests.support.signals import lose_a_signal


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Python's own handlers, also where the shell that runs the tests ignores signals."""
    before = [
        signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.signal(signal.SIGTERM, signal.SIG_DFL),
    ]
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


def stopped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object
) -> tuple[int, str, str]:
    """Run as the installed command does; its exit status, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["prunesearch", *map(str, words)])
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as ended:
        main()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_sets_the_flag_ends_a_search(
    here: Path,
    tiny_folder: Path,
    prose: Path,
    number: signal.Signals,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [
        "search",
        tiny_folder,
        "--drop",
        2,
        "--trials",
        12,
        "--calibration",
        prose,
        *FAST,
        "--json",
    ]

    def hit(point: str, detail: str) -> None:
        if (point, detail) == ("after_tell", "4"):
            signal.raise_signal(number)

    with monkeypatch.context() as patched:
        patched.setattr(failpoints, "hit", hit)
        status, out, err = stopped(capsys, monkeypatch, *words)
    assert status == 128 + number
    resume = err.strip().splitlines()[-1].strip()
    assert resume.startswith(f"prunesearch search {tiny_folder} --drop 2")
    assert json.loads(out) == {
        "error": "stopped",
        "kind": "StopRequested",
        "exit": 128 + number,
        "resume": resume,
    }
    found = run_json(*words)
    assert (found["trials"], found["adopted"] > 0) == (12, True)
    assert found["computed"] + found["hits"] <= 12 - 5 + found["adopted"]


def test_a_signal_while_loading_ends_it(
    here: Path,
    tiny_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("loading went on")

    monkeypatch.setattr(session, "load", load)
    assert stopped(capsys, monkeypatch, "search", tiny_folder, "--drop", 2)[0] == 143
    assert not (here / "storage").exists()


def test_what_a_handler_raises_may_be_lost_and_the_flag_is_not() -> None:
    with (
        pytest.raises(stopping.StopRequested) as caught,
        stopping.handled(),
        stopping.interruptible(),
    ):
        lose_a_signal()
    assert caught.value.number == signal.SIGINT


def test_a_wait_ends_although_python_ignored_what_the_handler_raised() -> None:
    with stopping.handled():
        lose_a_signal()
        assert stopping.requested()
        with pytest.raises(stopping.StopRequested):
            stopping.wait_for(threading.Event())


def test_a_wait_ends_with_its_event() -> None:
    event = threading.Event()
    threading.Timer(0.1, event.set).start()
    stopping.wait_for(event)
    assert event.is_set()


def test_a_second_signal_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[int] = []
    monkeypatch.setattr(os, "_exit", ends.append)
    monkeypatch.setattr(stopping, "_SAME_SECONDS", 0.05)
    with pytest.raises(stopping.StopRequested), stopping.handled(), stopping.deferred():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # timeout(1) sends it to the process and to its group
        assert ends == []
        time.sleep(0.1)
        signal.raise_signal(signal.SIGINT)
    assert ends == [130]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_before_and_after_a_command_end_it_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    ends: list[int] = []
    monkeypatch.setattr(os, "_exit", ends.append)
    monkeypatch.setattr(stopping._StopState, "ended", False)
    stopping.guard_process()
    signal.raise_signal(number)  # while it is imported
    with pytest.raises(stopping.StopRequested), stopping.handled():
        signal.raise_signal(number)
    signal.raise_signal(number)  # while Python ends
    assert ends == [128 + number] * 2
    assert capfd.readouterr().err == "stopped\n"


def test_signals_are_seen_to_before_the_command_line_is_imported() -> None:
    code = "import prunesearch.__main__, sys; print([name for name in ('click', 'pydantic') if name in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup does
    try:
        with stopping.handled(), stopping.deferred():
            signal.raise_signal(signal.SIGINT)
            assert not stopping.requested()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_waiting_loop_is_woken_and_threads_install_nothing() -> None:
    async def wait() -> float:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def wake() -> None:
            loop.call_soon_threadsafe(task.cancel)

        with stopping.waking(wake):
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            begun = time.monotonic()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                return time.monotonic() - begun
        return 30.0

    with pytest.raises(stopping.StopRequested), stopping.handled(), stopping.deferred():
        assert asyncio.run(wait()) < 5
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def inside() -> None:
        with stopping.handled():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]


def test_an_export_and_a_healing_end_between_two_steps(
    here: Path,
    tiny_folder: Path,
    prose: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prunesearch.export import writer
    from prunesearch.recovery import losses, training

    def signalled(function: Callable[..., Any], at: int) -> Callable[..., Any]:
        calls = iter(range(at))

        def call(*args: Any) -> Any:  # noqa: ANN401
            if next(calls, None) == at - 1:
                signal.raise_signal(signal.SIGTERM)
            return function(*args)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(writer, "_header", signalled(writer._header, 1))
        export = ["export", tiny_folder, "--layers", "1", "--out", "out"]
        assert stopped(capsys, patched, *export)[0] == 143
    assert not list(here.iterdir()), "no half export stays"
    heal = [
        "heal",
        tiny_folder,
        "--layers",
        "1",
        "--data",
        prose,
        "--steps",
        4,
        "--batch-size",
        2,
        "--window",
        32,
    ]
    heal += ["--held-out-tokens", 64, "--eval-every", 1, "--out", "healed"]
    with monkeypatch.context() as patched:
        patched.setattr(training, "loss_of", signalled(losses.loss_of, 3))
        assert stopped(capsys, patched, *heal)[0] == 143
    assert not Path("healed").exists()
    assert run_json(*heal)["healed"]["resumed_from"] > 0


def test_what_cannot_be_resumed_only_stops(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunesearch.pipeline import doctor

    monkeypatch.setattr(doctor, "examine", lambda *_: signal.raise_signal(signal.SIGINT))
    assert stopped(capsys, monkeypatch, "doctor") == (130, "", "\nstopped\n")
