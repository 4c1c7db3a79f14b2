"""The command `runner`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import refused


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_runner_says_what_it_does_and_ends_at_once(
    tmp_path: Path, number: signal.Signals
) -> None:
    words = [sys.executable, "-m", "prunesearch", "runner", "--jobs-per-device", "2", "--json"]
    environment = {**os.environ, "PRUNESEARCH_STORAGE": f"sqlite:///{tmp_path}/study.db"}
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    lines = ""
    while not lines.endswith("}\n"):
        lines += process.stdout.readline()
    said = json.loads(lines)
    assert said["pid"] == process.pid
    assert said["slots"] == 2
    assert said["database"] == f"sqlite:///{tmp_path}/service.db"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert (out, err) == ("", "stopping; jobs that run go on in the next runner\n")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--devices", "cpu,cpu"], "twice"),
        (["--storage", "nosuch://x"], "nosuch"),
        (["--jobs-per-device", "0"], "--jobs-per-device"),
    ],
)
def test_a_runner_refuses_bad_settings_with_one_line(
    words: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert named in refused(capsys, monkeypatch, "runner", *words)
