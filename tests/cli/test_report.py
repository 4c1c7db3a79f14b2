"""`prunesearch report`: what it writes, and what it refuses."""

import json
import shutil
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from prunesearch.config.run_options import RunOptions
from prunesearch.execution.speed import measure_speeds
from prunesearch.report.page.folder import MARKER
from prunesearch.studies import measurements
from tests.support.cli import refused, run, run_json
from tests.support.html_page import Element, parse
from tests.support.synthetic_studies import SyntheticStudy, write_study

HOSTILE = "<b onclick=alert(1)>x</b> $y$ --out"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("studies") / "study.db"
    write_study(path, SyntheticStudy("pso-0", trials=12))
    write_study(path, SyntheticStudy("pso-1", seed=1, trials=12))
    write_study(path, SyntheticStudy("other", trials=3, model="another"))
    write_study(path, SyntheticStudy("empty", trials=0, asked=10, running=1))
    write_study(path, SyntheticStudy(HOSTILE, "woa", trials=7, asked=12, running=2))
    write_study(path, SyntheticStudy("front", "nsga2", trials=12, pareto=True))
    return f"sqlite:///{path}"


def page_of(out: Path) -> Element:
    """The page without plotly.js."""
    text = (out / "index.html").read_text()
    start = text.index("<script>/**")
    end = text.index("</script>", start)
    return parse(text[:start] + text[end + len("</script>") :])


def test_a_report_has_a_page_images_tables_and_markdown(storage: str, tmp_path: Path) -> None:
    out = tmp_path / "report"
    done = run_json("report", "pso-0", "pso-1", "--out", out, "--storage", storage)
    written = {str(path) for path in out.rglob("*") if path.is_file() and path.name != MARKER}
    assert set(done["files"]) == written
    assert {"index.html", "report.md", "quality.png", "quality.csv", "steps.png"} <= {
        Path(path).name for path in written
    }
    best = done["key_figures"][0]
    assert (best["study"], best["role"], best["badge"]) == ("pso-0", "best", "searched on")
    page = page_of(out)
    assert page.one("h1").text == "Searches pso-0, pso-1"
    summary = page.one("section", id="summary").text
    assert f"the best candidate drops layers {best['dropped']}" in summary or "pso-1" in summary
    assert "27 ms instead of 33 ms (82%)" in summary
    assert "No number of this report is held out." in summary
    # No folder of this machine is named.
    for name in ("index.html", "report.md"):
        text = (out / name).read_text()
        assert "/home/someone" not in text
        assert str(tmp_path) not in text
    again = 'prunesearch report --out report --storage "$PRUNESEARCH_STORAGE" pso-0 pso-1'
    assert again in page.one("section", id="reproduce").text
    # A second report replaces the first.
    shown = run("report", "pso-0", "--out", out, "--storage", storage)
    assert f"open {out / 'index.html'}" in shown.stdout
    assert page_of(out).one("h1").text == "Search pso-0"


def test_a_half_finished_study_with_markup_in_its_name(storage: str, tmp_path: Path) -> None:
    out = tmp_path / "report"
    run("report", "--out", out, "--storage", storage, "--", HOSTILE)
    page = page_of(out)
    assert page.one("h1").text == f"Search {HOSTILE}"
    assert page.all("b") == []
    (note, *_) = page.all("p", class_="notice")
    assert "is half-finished: 7 of 12 evaluations are done and 2 are under way" in note.text
    heading, *_ = (out / "report.md").read_text().splitlines()
    assert heading == r"# Search &lt;b onclick=alert\(1\)&gt;x&lt;/b&gt; \$y\$ --out"


def test_a_front_has_no_best_candidate(storage: str, tmp_path: Path) -> None:
    out = tmp_path / "report"
    done = run_json("report", "front", "--out", out, "--storage", storage)
    assert done["key_figures"] == []
    assert "see its front" in done["not_shown"]["Quality against evaluations"]
    assert "The front of study front has" in page_of(out).one("section", id="summary").text


def test_what_cannot_be_reported_is_refused(
    storage: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "report"
    at = ("--out", out, "--storage", storage)
    line = refused(capsys, monkeypatch, "report", "empty", *at)
    assert line == "error: study 'empty' has no finished trial yet: run its search first"
    line = refused(capsys, monkeypatch, "report", "pso-0", "other", *at)
    assert "are of different models (tiny, another)" in line
    assert "give --joint" in line
    line = refused(capsys, monkeypatch, "report", "pso-2", *at)
    assert "unknown study 'pso-2': did you mean 'pso-1'?" in line
    assert not out.exists()
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    line = refused(capsys, monkeypatch, "report", "pso-0", *at)
    assert "holds other files than a report: name a new or empty folder" in line
    assert "--out" in line
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_studies_of_different_models_stand_together_if_asked(storage: str, tmp_path: Path) -> None:
    out = tmp_path / "report"
    run("report", "pso-0", "other", "--joint", "--out", out, "--storage", storage)
    page = page_of(out)
    assert [title.text for title in page.one("section", id="quality").all("h3")] == [
        "tiny", "another",
    ]  # fmt: skip
    assert "--joint" in page.one("section", id="reproduce").text


def test_what_cannot_be_reported_is_refused_before_it_is_measured(
    storage: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prunesearch.pipeline.measuring.measure", None)
    at = ("--storage", storage, "--score", "--out")
    line = refused(capsys, monkeypatch, "report", "pso-0", "other", *at, tmp_path / "report")
    assert "are of different models" in line
    line = refused(capsys, monkeypatch, "report", "empty", *at, tmp_path / "report")
    assert "has no finished trial yet" in line
    (tmp_path / "file").write_text("mine")
    line = refused(capsys, monkeypatch, "report", "pso-0", *at, tmp_path / "file" / "report")
    assert "cannot write to" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_damaged_cache_costs_no_report_and_no_comparison(storage: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    (folder / "cache.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 8000)
    at = ("--storage", storage, "--cache", folder)
    done = run_json("report", "pso-0", "pso-1", "--out", tmp_path / "report", *at)
    assert done["key_figures"]
    compared = run_json("compare", "pso-0", "pso-1", *at)
    assert len(compared["studies"]) == 2


def test_a_report_with_scores_measures_what_is_missing_once(
    here: Path, tiny_folder: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunesearch.objectives.greedy_texts.TOKENS", 2)
    monkeypatch.setattr("prunesearch.execution.speed.NEW_TOKENS", 2)
    monkeypatch.setattr(
        "prunesearch.pipeline.study_measuring.measure_speeds", partial(measure_speeds, most=2)
    )
    words = ["--drop", "2", "--calibration", prose, "--tokens", "128", "--window", "32"]
    words += ["--population", "4", "--trials", "4", "--study", "s", "--device", "cpu"]
    run("search", tiny_folder, *words)
    again = ("report", "s", "--out", here / "report", "--score", "--held-out-tokens", "64")
    done = run_json(*again, "--device", "cpu")
    badges = {figure["badge"] for figure in done["key_figures"]}
    assert badges == {"searched on", "held out"}
    assert "held out" in page_of(here / "report").one("section", id="summary").text
    # The same again loads no model.
    with monkeypatch.context() as patch:
        patch.setattr("prunesearch.pipeline.searched_model.load_for", None)
        assert run_json(*again, "--device", "cpu")["key_figures"] == done["key_figures"]
    # The study keeps what evaluate measures of its export, wherever the study is.
    run("export", "s", "--out", here / "out", "--device", "cpu")
    shutil.copy("storage/study.db", "other.db")
    run("evaluate", here / "out", *words[2:6], "--device", "cpu", "--storage", "sqlite:///other.db")
    found = measurements.of_role(measurements.read("sqlite:///other.db", "s"), "exported")
    assert {(kept.metric, kept.badge) for kept in found} == {
        ("cross_entropy", "searched on"),
        ("perplexity", "searched on"),
    }


@pytest.mark.parametrize(
    "words",
    [
        ("--held-out-tokens", "64"),
        ("--held-out", "text.txt"),
        ("--held-out-data", "documents.jsonl"),
        ("--held-out-limit", "5"),
        ("--exported", "folder"),
        ("--model", "folder"),
        ("--calibration", "new.txt"),
        ("--task-data", "new.jsonl"),
    ],
)
def test_options_of_scores_are_refused_without_them(
    storage: str,
    tmp_path: Path,
    words: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "report"
    line = refused(
        capsys, monkeypatch, "report", "pso-0", *words, "--out", out, "--storage", storage
    )
    assert line.startswith(f"error: {words[0]} goes with --score: without it, no model is loaded")
    assert not out.exists()


def test_a_report_needs_no_cache_and_no_torch(storage: str, tmp_path: Path) -> None:
    words = ["report", "pso-0", "--out", str(tmp_path / "r"), "--storage", storage, "--json"]
    words += ["--cache", str(tmp_path / "nowhere")]
    code = (
        "import sys\nfrom prunesearch.cli.main import cli\n"
        f"cli({words!r}, standalone_mode=False)\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    document, _, loaded = done.stdout.rstrip().rpartition("\n")
    assert loaded == "False False"
    assert json.loads(document)["files"]
    assert RunOptions().storage.startswith("sqlite:///storage/")
    # The report changed nothing in the database.
    with sqlite3.connect(storage.removeprefix("sqlite:///")) as connection:
        query = "SELECT COUNT(*) FROM trials"
        assert connection.execute(query).fetchone() == (12 + 12 + 3 + 1 + 9 + 12,)
    connection.close()
