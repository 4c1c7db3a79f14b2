"""The key figures of a study, as optuna-dashboard serves them."""

import json
import logging
import shutil
import threading
from pathlib import Path
from typing import Any, NoReturn
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from optuna_dashboard import wsgi

from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.pipeline.run import run_stages
from prunesearch.pipeline.state import Request
from prunesearch.report import dashboard
from prunesearch.report.dashboard import DashboardFigures
from prunesearch.studies.optuna_internals.access import study_id_of

STORAGE = RunOptions().storage
FIGURES = ("quality", "steps")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, prose: Path) -> Path:
    """The storage of a small search with figures."""
    folder = tmp_path_factory.mktemp("searched")
    recipe = Recipe(
        model=str(tiny_folder), drop="2", calibration=str(prose), tokens=128, window=32,
        population=4,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(dashboard, "KEY_FIGURES", FIGURES)
        patch.setattr(dashboard, "LONGEST_WAIT", 300.0)
        run_stages("search", Request(RunOptions(trials=8, study="s", device="cpu"), (recipe,)))
    return folder / "storage"


@pytest.fixture
def study(searched: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> optuna.Study:
    """A copy of the study."""
    monkeypatch.setattr(dashboard, "KEY_FIGURES", FIGURES)
    shutil.copytree(searched, here / "storage")
    return optuna.load_study(study_name="s", storage=STORAGE)


def served(study: optuna.Study) -> dict[str, Any]:
    """Return the figures that the dashboard serves, by their ids."""
    request: dict[str, Any] = {
        "PATH_INFO": f"/api/studies/{study_id_of(study)}",
        "QUERY_STRING": "after=0",
    }
    setup_testing_defaults(request)
    body = b"".join(wsgi(STORAGE)(request, lambda *_: None))
    found = {}
    for each in json.loads(body)["plotly_graph_objects"]:
        found[each["id"]] = json.loads(each["graph_object"])
    return found


def test_the_dashboard_serves_the_key_figures_of_a_search(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = served(study)
    assert {name.rsplit("-", 1)[0] for name in figures} == {
        "prunesearch-quality",
        "prunesearch-steps",
    }
    for figure in figures.values():
        assert figure["data"]
        assert len(json.dumps(figure)) < 60_000
    titles = [figures[name]["layout"]["title"]["text"] for name in sorted(figures)]
    assert titles == [
        "Quality against evaluations",
        "Size of the weights (GiB) against evaluations",
        "Predicted latency (ms) against evaluations",
    ]
    # What has not changed is not written again.
    drawing = DashboardFigures(study)
    written: list[list[str]] = []
    monkeypatch.setattr(
        dashboard, "save_figures", lambda _, __, changed: written.append(sorted(changed))
    )
    drawing.write()
    drawing.write()
    assert written == [sorted(figures), []]


def test_a_figure_that_fails_is_reported_once_and_stops_nothing(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(dashboard, "read_study", fail)
    drawing = DashboardFigures(study)
    with caplog.at_level(logging.WARNING):
        drawing.write()
        drawing.write()
    (record,) = caplog.records
    assert "figures of study 's' were not drawn: no such thing" in record.getMessage()


def test_a_search_never_waits_for_a_drawing(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    under_way, go_on = threading.Event(), threading.Event()
    read: list[str] = []

    def wait(_: object, name: str) -> NoReturn:
        read.append(threading.current_thread().name)
        under_way.set()
        go_on.wait(60)
        raise ValueError(f"no study {name}")

    monkeypatch.setattr(dashboard, "read_study", wait)
    monkeypatch.setattr(dashboard, "SECONDS", 0.0)
    monkeypatch.setattr(dashboard, "LONGEST_WAIT", 0.01)
    drawing = DashboardFigures(study)
    drawing.now_and_then()
    assert under_way.wait(60)
    # A second drawing does not begin while one is under way, and the end waits for a bounded time.
    drawing.now_and_then()
    with caplog.at_level(logging.INFO):
        drawing.finish()
    assert "the figures of study 's' are still being drawn" in caplog.text
    assert read == ["figures of s"]
    # The last drawing comes after the one that was under way. The drawing that nobody waited for
    # any more may still follow it.
    go_on.set()
    monkeypatch.setattr(dashboard, "LONGEST_WAIT", 60.0)
    drawing.finish()
    assert len(read) >= 2
    for thread in threading.enumerate():
        if thread.name == "figures of s":
            thread.join(60)
    assert read == ["figures of s"] * 3


def test_drawings_take_at_most_a_hundredth_of_a_search(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    drawing = DashboardFigures(study)
    drawn: list[float] = []
    monkeypatch.setattr(drawing, "begin", lambda: drawn.append(now))
    for later, count in ((59.0, 0), (60.0, 1)):
        now = 1000.0 + later
        drawing.now_and_then()
        assert len(drawn) == count
    drawing.seconds = 2.0
    for later, count in ((199.0, 1), (200.0, 2)):
        now = 1000.0 + later
        drawing.now_and_then()
        assert len(drawn) == count
