"""`prunesearch work`: somebody's study is helped through the cache, and left alone."""

import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from prunesearch import events
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cli.main import main
from prunesearch.config.run_options import RunOptions
from prunesearch.pipeline import work
from prunesearch.runtime import failpoints, stopping
from prunesearch.studies import persistence
from prunesearch.studies.writer_process import Writer
from tests.support.cli import FAST, refused, run, run_json

STUDY = "tiny-llama-drop2-kl-pso"


def stop_at(number: int) -> Callable[[str, str], None]:
    """A failpoint handler: a signal comes when key `number` was leased."""
    left = [number]

    def reached(point: str, subject: str) -> None:
        if point == "after_acquire":
            left[0] -= 1
            if left[0] == 0:
                # The main thread handles signals, also while it waits for the event loop.
                main_thread = threading.main_thread().ident
                assert main_thread is not None
                # A signal that comes just before the main thread starts to wait is handled when
                # it wakes up, so it is sent until it is handled.
                while not stopping.requested():
                    signal.pthread_kill(main_thread, signal.SIGINT)
                    time.sleep(0.01)

    return reached


def stopped(monkeypatch: pytest.MonkeyPatch, number: int, *words: object) -> int:
    """Run as the installed command does until key `number` was leased; its exit status."""
    monkeypatch.setattr(sys, "argv", ["prunesearch", *map(str, words)])
    failpoints.enable(stop_at(number))
    with pytest.raises(SystemExit) as ended:
        main()
    failpoints.enable(None)
    return int(ended.value.code or 0)


def running(storage: str = "sqlite:///storage/study.db") -> int:
    """The number of running trials of the study."""
    trials = optuna.load_study(study_name=STUDY, storage=storage).trials
    return sum(trial.state == TrialState.RUNNING for trial in trials)


def entries(cache: str = "storage/cache") -> int:
    """The number of results in a cache."""
    with EvaluationCache(cache) as opened:
        return len(opened)


@pytest.fixture
def words(tiny_folder: Path, prose: Path) -> list[object]:
    """A search of twelve trials, four at once."""
    return ["search", tiny_folder, "--drop", 2, "--trials", 12, "--calibration", prose, *FAST]


def test_what_the_running_trials_lack_is_scored_and_the_search_finds_it(
    here: Path, words: Sequence[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The keys of the dense model, the latencies and the first generation come first.
    assert stopped(monkeypatch, 7, *words) == 130
    assert running() == 4
    before = entries()
    shown: list[events.Event] = []
    with events.subscribed(shown.append):
        report = run_json("work", STUDY, "--idle-exit", 0)
    assert (report["results"], report["candidates"], report["ended"]) == (4, 4, "idle")
    assert entries() == before + 4
    assert running() == 4, "the study itself is left alone"
    progress = [event for event in shown if isinstance(event, events.WorkProgress)]
    assert (progress[0].results, progress[-1].results, progress[-1].running) == (0, 4, 4)
    # The search has nothing to score of that generation.
    resumed = run_json(*words)
    assert (resumed["adopted"], resumed["hits"], resumed["computed"]) == (4, 4, 4)
    # A study that has its trials needs neither a model nor a search.
    monkeypatch.setattr(work, "open_session", None)
    report = run_json("work", STUDY)
    assert (report["ended"], report["trials"], report["results"]) == ("complete", 12, 0)
    assert "has its 12 trials" in run("work", STUDY).stdout


def test_a_race_is_helped_on_no_more_data_than_it_needs(
    here: Path, words: Sequence[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    raced = [*words, "--race", "--tokens", 6144]
    run(*raced, "--cache", "alone", "--storage", "sqlite:///alone.db")
    assert stopped(monkeypatch, 20, *raced) == 130
    assert run_json("work", STUDY, "--idle-exit", 0)["results"] > 0
    assert run_json(*raced)["adopted"] == 4
    assert entries() == entries("alone")


def test_ctrl_c_ends_the_work_and_keeps_what_was_scored(
    here: Path,
    words: Sequence[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert stopped(monkeypatch, 7, *words) == 130
    capsys.readouterr()
    assert stopped(monkeypatch, 1, "work", STUDY) == 130
    assert f"prunesearch work {STUDY}" in capsys.readouterr().err
    with EvaluationCache("storage/cache") as cache:
        assert cache.shared is None
        assert run_json("work", STUDY, "--idle-exit", 0)["results"] == 4, "no lease was left"


def test_other_content_is_refused_in_one_line(
    here: Path,
    tiny_folder: Path,
    words: Sequence[object],
    make_model: Callable[..., Path],
    prose: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert stopped(monkeypatch, 7, *words) == 130
    capsys.readouterr()
    other = make_model(name="tiny-llama", hidden_size=16)
    said = refused(capsys, monkeypatch, "work", STUDY, "--model", other)
    assert "is searched on other content than is here (model content:" in said
    text = here / "prose.txt"
    text.write_text(prose.read_text().replace("e", "a"))
    said = refused(capsys, monkeypatch, "work", STUDY, "--calibration", text)
    assert "(data content:" in said
    assert "--idle-exit" in refused(capsys, monkeypatch, "work", STUDY, "--idle-exit", -1)
    assert "tiny-llama-drop2" in refused(capsys, monkeypatch, "work", "tiny-llama-drop3-kl-pso")
    # The same content elsewhere, under another name, is accepted.
    copy = shutil.copytree(tiny_folder, here / "elsewhere")
    words = ["work", STUDY, "--model", copy, "--idle-exit", 0]
    assert run_json(*words)["results"] == 4


def test_a_helper_waits_for_the_next_trials_of_a_live_search(
    here: Path, words: Sequence[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a search writes the study, a helper that finds nothing goes on."""
    assert stopped(monkeypatch, 7, *words) == 130
    seen: list[events.WorkProgress] = []
    waits: list[float] = []

    def wait(seconds: float) -> None:
        # The search, which holds the study, ends after the third wait.
        waits.append(seconds)
        if len(waits) == 3:
            monkeypatch.setattr(persistence, "writer_of", lambda storage, name: None)

    monkeypatch.setattr(work, "_wait", wait)
    monkeypatch.setattr(work, "_WRITER_SECONDS", 0.0)
    monkeypatch.setattr(persistence, "writer_of", lambda storage, name: Writer(1, "h", 0))

    def note(event: events.Event) -> None:
        if isinstance(event, events.WorkProgress):
            seen.append(event)

    with events.subscribed(note):
        report = work.work(STUDY, RunOptions(), idle_exit=0.0)
    assert (report.ended, report.results) == ("idle", 4)
    assert len(waits) == 3
    assert waits == sorted(waits)
    assert seen[0].writer is not None
    assert seen[-1].writer is None
