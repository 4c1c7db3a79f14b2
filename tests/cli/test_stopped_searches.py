"""A search that is stopped or killed loses nothing, and resumes as if nobody had stopped it."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from tests.support.cli import run, run_json


def _start(here: Path, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "prunesearch.cli.main", *map(str, words)]
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    return subprocess.Popen(
        command,
        cwd=here,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )


def _count_finished(here: Path) -> int:
    """Finished trials, read without Optuna, which would make tables that the search is about to
    make.
    """
    try:
        with sqlite3.connect(f"file:{here}/storage/study.db?mode=ro", uri=True) as database:
            (count,) = database.execute(
                "SELECT count(*) FROM trials WHERE state != 'RUNNING'"
            ).fetchone()
    except sqlite3.OperationalError:
        return 0
    return int(count)


def _finished(here: Path) -> list[tuple[int, str, float | None]]:
    storage = f"sqlite:///{here}/storage/study.db"
    trials = optuna.load_study(study_name="tiny-llama-drop3-kl-pso", storage=storage).trials
    return [(t.number, t.user_attrs["dropped"], t.value) for t in trials if t.state.is_finished()]


def _slow_search(model: Path, text: Path) -> list[object]:
    """A search whose evaluations take long enough to be interrupted."""
    words = "--drop 3 --trials 18 --tokens 2048 --window 64 --population 4 --threads 1".split()
    return ["search", model, *words, "--calibration", text]


@pytest.fixture(scope="module")
def unbroken(
    tiny_folder: Path, prose: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[object]:
    """The trials of a search that nobody stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        run(*_slow_search(tiny_folder, prose))
    return list(_finished(folder))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_a_stopped_search_loses_nothing_and_resumes_identically(
    here: Path, tiny_folder: Path, prose: Path, how: signal.Signals, unbroken: list[object]
) -> None:
    words = _slow_search(tiny_folder, prose)
    process = _start(here, *words)
    deadline = time.monotonic() + 180
    while _count_finished(here) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    kept = _finished(here)
    assert 3 <= len(kept) < 18, said
    if how != signal.SIGKILL:
        assert process.returncode == 143
        assert said.splitlines()[-1].startswith("  prunesearch search ")
        assert "Traceback" not in said
    document = run_json(*words)  # in another process than the one that died
    whole = _finished(here)
    # The candidates of a generation finish in the order in which blocks can be shared.
    assert [trial for trial in whole if trial in kept] == kept
    assert document["trials"] == len(whole) == 18
    assert document["computed"] + document["hits"] == 18 - len(kept)
    assert whole == unbroken
