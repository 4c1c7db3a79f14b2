"""The command line as a user meets it."""

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import optuna
import pytest
from click.testing import CliRunner

import prunesearch
from prunesearch.cli import main as cli_module
from prunesearch.cli.main import cli, main
from prunesearch.errors import PruneSearchError
from tests.support.cli import FAST, refused, run, run_json

LONG, DIGITS = "x" * 300, "9" * 5000
"""Longer than a file's name may be, and than a number that Python reads."""


def test_a_study_is_removed_only_after_a_yes(
    here: Path,
    tiny_folder: Path,
    prose: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    search = ["search", tiny_folder, "--drop", 2, "--trials", 2, "--calibration", prose, *FAST]
    run_json(*search, "--study", "other")
    assert "add --yes" in refused(capsys, monkeypatch, "study", "rm", "other")
    monkeypatch.setattr("prunesearch.cli.study._has_terminal", lambda: True)
    kept = CliRunner().invoke(cli, ["study", "rm", "other"], input="n\n")
    assert "nothing was deleted" in kept.stderr
    assert [s["name"] for s in run_json("study", "list")] == ["other"]


def test_a_grid_is_searched_at_once(
    here: Path,
    tiny_folder: Path,
    prose: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = [
        "search",
        str(tiny_folder),
        "--sampler",
        "pso,random",
        "--calibration",
        str(prose),
        *FAST,
    ]
    for bad, complaint in {"1,1": "would be searched twice", "1,9": "9", "1,": "drop"}.items():
        assert complaint in refused(capsys, monkeypatch, *grid, "--drop", bad)
    assert "leave it out" in refused(capsys, monkeypatch, *grid, "--drop", "1,2", "--study", "s")
    assert not (here / "storage" / "study.db").exists(), "nothing was begun"
    together = run_json(*grid, "--drop", "1,2", "--trials", 6)["searches"]
    assert {s["study"] for s in together} == {
        f"tiny-llama-drop{k}-kl-{s}" for k in (1, 2) for s in ("pso", "random")
    }
    assert all(s["trials"] == 6 for s in together)
    one = [
        "search",
        tiny_folder,
        "--drop",
        2,
        "--calibration",
        prose,
        *FAST,
        "--trials",
        6,
        "--study",
        "alone",
    ]
    alone = run_json(*one)
    (same,) = (s for s in together if s["study"] == "tiny-llama-drop2-kl-pso")
    assert alone["best"]["metrics"] == same["best"]["metrics"], (
        "searching together changes no trial"
    )
    assert alone["hits"] == 6, "and what was scored together is found"
    assert "4 studies over one engine" in run(*grid, "--drop", "1,2", "--trials", 6).stdout


def test_a_recipe_file_is_run_to_the_end(here: Path, tiny_folder: Path, prose: Path) -> None:
    Path("recipe.yaml").write_text(
        f"model: {tiny_folder}\ndrop: 2\nsampler: woa\npopulation: 4\n"
        f"calibration: {prose}\ntokens: 256\nwindow: 64\nweights: {{quality: 1, size: 0.5}}\n"
    )
    document = run_json("run", "recipe.yaml", "--out", "out", "--trials", 6)
    assert document["trials"] == 6
    assert document["export"]["dropped"] == document["best"]["dropped"]
    assert document["value"] != document["best"]["metrics"]["kl"], "the size saved counts"
    assert (here / "out" / "config.json").is_file()


def test_a_task_search_and_evaluation(here: Path, tiny_folder: Path, hellaswag_like: Path) -> None:
    task = ["--task", "hellaswag", "--task-data", hellaswag_like, "--limit", 8]
    found = run_json("search", tiny_folder, "--drop", 2, "--trials", 4, "--population", 4, *task)
    assert found["study"] == "tiny-llama-drop2-hellaswag-pso"
    assert found["value"] == found["best"]["metrics"]["acc_norm"]
    study = optuna.load_study(study_name=found["study"], storage="sqlite:///storage/study.db")
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    measured = run_json("evaluate", tiny_folder, "--layers", found["best"]["dropped"], *task)
    assert measured["cached"]
    assert measured["stderr"]["acc_norm"] == found["best"]["stderr"]["acc_norm"]
    assert "acc_norm" in run("evaluate", tiny_folder, *task).stdout


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["search", "MISSING", "--drop", "2"], "no model folder or file"),
        (["search", "cut.gguf", "--drop", "2"], "not a whole GGUF"),
        (["search", "MODEL", "--drop", "6"], "leaves no layer"),
        (["search", "MODEL", "--drop", "0"], "removes nothing"),
        (["search", "MODEL", "--drop", "2", "--sampler", "wao"], "did you mean 'woa'"),
        (["search", "MODEL", "--drop", "2", "--objective", "k"], "unknown objective 'k'"),
        (
            ["search", "MODEL", "--drop", "..3"],
            "--score-weights quality=1,size=2, or use --drop pareto",
        ),
        (["search", "MODEL", "--drop", "pareto", "--sampler", "greedy"], "use pso, woa, "),
        (
            ["search", "MODEL", "--drop", "pareto", "--score-weights", "size=1"],
            "weighs quality against size",
        ),
        (["search", "MODEL", "--drop", "2", "--against", "latency"], "goes with --drop pareto"),
        (
            ["search", "MODEL", "--drop", "2", "--sampler", "ga", "--encoding", "keys"],
            "--encoding goes with --sampler pso or woa",
        ),
        (["search", "MODEL", "--drop", "2", "--encoding", "key"], "did you mean 'keys'"),
        (["search", "MODEL", "--drop", "2", "--ranking", "tailor"], "did you mean 'taylor'"),
        (
            ["search", "MODEL", "--drop", "2", "--sampler", "tpe", "--ranking", "taylor"],
            "cannot start --sampler tpe",
        ),
        (["search", "MODEL", "--drop", "2", "--units", "layers"], "unknown units 'layers'"),
        (["study", "best", "x", "--max-loss", "little"], "--max-loss 'little' cannot be read"),
        (
            ["study", "best", "x", "--max-size", "100 bananas"],
            "--max-size '100 bananas' cannot be read",
        ),
        (["search", "MODEL", "--drop", "2", "--task", "helaswag"], "did you mean 'hellaswag'"),
        (
            ["search", "MODEL", "--drop", "2", "--score-weights", "qualty=1"],
            "did you mean 'quality'",
        ),
        (["search", "MODEL", "--drop", "2", "--calibration", "short.txt"], "is too short"),
        (
            ["search", "MODEL", "--drop", "2", "--task", "hellaswag", "--task-data", "bad.jsonl"],
            "field 'ctx_a'",
        ),
        (["search", "MODEL", "--drop", "2", "--storage", "foo://x"], "unknown database 'foo'"),
        (
            ["search", "MODEL", "--drop", "2", "--storage", "sqlite:////proc/no/study.db"],
            "cannot write",
        ),
        (["search", "MODEL", "--drop", "2", "--cache", "/proc/no"], "cannot write"),
        (["search", "MODEL", "--drop", "2", "--trials", "0"], "trials = 0: it must be at least 1"),
        (["search", "short.txt", "--drop", "2"], "'short.txt' is not a model"),
        (["search", "MODEL", "--drp", "2"], "--drop"),
        (["search", "MODEL", "--drop", "2", "--threads", "10000"], "--threads 10000 is more than"),
        (["demo", "--threads", "10000"], "cores; give at most"),
        (["search", "MODEL"], "Missing option '--drop'"),
        (["serach", "MODEL"], "Did you mean 'search'"),
        (["study", "delete", "x"], "known: best, layers, list, resume, rm, show"),
        (["study", "show", "x", "--best", "0"], "0 is not in the range"),
        (["plan", "MODEL", "--drop", "pareto"], "plan needs a number or a share"),
        (["study", "list", "--storage", "sqlite:///short.txt"], "': file is not a database"),
        (["export", "MODEL", "--layers", "1", "--out", "new.gguf"], "add --gguf"),
        (["export", "MODEL", "--layers", "1", "--out", "new", "--gguf"], "write --out NAME.gguf"),
        (["export", "MODEL", "--layers", "1", "--out", "cut.gguf", "--gguf"], "exists already"),
        (
            ["heal", "MODEL", "--layers", "1", "--out", "new", "--distill-weight", ".3"],
            "goes with --loss mix",
        ),
        (
            ["heal", "MODEL", "--layers", "1", "--out", "new", "--kl-top", "8"],
            "goes with --loss distill or mix",
        ),
        (
            ["heal", "MODEL", "--layers", "1", "--out", "new", "--lr", "0"],
            "learning_rate = 0.0: it must be more than 0",
        ),
        (["export", "MODEL", "--layers", "1", "--out", "full"], "is not empty"),
        (["export", "MODEL", "--layers", "7", "--out", "new"], "layers 0 to 5"),
        (["export", "MODEL", "--layers", "", "--out", "new"], "cannot read layers ''"),
        (
            ["export", "MODEL", "--layers", "1", "--print", "mergekit", "--out", "new"],
            "leave out --out",
        ),
        (["export", "MODEL", "--layers", "1", "--out", "n" * 300], "File name too long"),
        (
            ["export", "MODEL", "--layers", "1", "--out", "loop/x"],
            "Too many levels of symbolic links",
        ),
        (["export", "MODEL", "--layers", "1", "--out", "not-\udcff-utf8"], "the name is not UTF-8"),
        (["analyze", "n" * 300], "File name too long"),
        (["export", "two\nlines\x1b[2J", "--out", "new"], "no study database"),
        (["search", "./two\nlines\x1b[2J", "--drop", "1"], "two\\nlines\\x1b[2J"),
        (["export", "nostudy", "--out", "new"], "no study database"),
        (["evaluate", "MODEL", "--layers", "9"], "layers 0 to 5"),
        (["analyze", "MISSING"], "no model folder or file"),
        (
            ["run", "none.yaml", "--out", "new"],
            "cannot read recipe 'none.yaml': No such file or directory",
        ),
        (["run", "typo.yaml", "--out", "new"], "did you mean 'sampler'"),
        (["run", "twice.yaml", "--out", "new"], "'drop' is given twice"),
        (["run", "deep.yaml", "--out", "new"], "cannot read recipe"),
        (["run", "nul.yaml", "--out", "new"], "model 'a\\x00' holds a character"),
        (["run", "out.yaml"], "out = ['a']"),
        (["search", "MODEL", "--drop", "2", "--study", "s" * 513], "at most 512 characters"),
        (["analyze", LONG], "no file can have the name"),
        (["export", "MODEL", "--layers", "2", "--out", LONG], "File name too long"),
        (["study", "list", "--storage", f"sqlite:///{LONG}"], "ile"),
        (["export", LONG, "--out", "new"], "no study database"),
        (["search", "MODEL", "--drop", DIGITS], "cannot be read"),
        (["search", "MODEL", "--drop", f"{DIGITS}%"], "cannot be read"),
        (["evaluate", "MODEL", "--layers", DIGITS], "cannot read layers"),
        (["plan", "MODEL", "--memory", DIGITS], "cannot be read"),
        (["search", "MODEL", "--drop", "2", "--protect", f"0-{DIGITS}"], "--protect"),
        (["study", "list"], "no study database"),
        (["study", "list", "--storage", "sqlite:///loop"], "no study database"),
        (["search", "MODEL", "--drop", "2", "--limit", "9"], "--limit goes with --task"),
        (["export", "nostudy", "--dtype", "float32", "--out", "new"], "go with MODEL --layers"),
    ],
    ids=lambda value: " ".join(value)[:90] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(
    here: Path,
    tiny_folder: Path,
    words: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (here / "full").mkdir()
    (here / "full" / "file").write_text("x")
    (here / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00\x05")
    (here / "short.txt").write_text("hello")
    (here / "loop").symlink_to("loop")
    (here / "bad.jsonl").write_text('{"a": 1}\n')
    (here / "typo.yaml").write_text("model: m\nsearch: {drop: 2, samplr: pso}\n")
    (here / "twice.yaml").write_text("model: m\nsearch: {drop: 2, drop: 3}\n")
    (here / "deep.yaml").write_text(f"model: {'[' * 2000}\n")
    (here / "nul.yaml").write_text('model: "a\\0"\nsearch: {drop: 2}\n')
    (here / "out.yaml").write_text("model: m\nsearch: {drop: 2}\nrun: {out: [a]}\n")
    before = sorted(here.rglob("*"))
    location = {"MODEL": str(tiny_folder), "MISSING": str(here / "missing")}
    assert complaint in refused(capsys, monkeypatch, *(location.get(word, word) for word in words))
    assert sorted(here.rglob("*")) == before


def test_a_study_of_other_settings_or_model_is_not_resumed(
    here: Path,
    tiny_folder: Path,
    prose: Path,
    make_model: object,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["--drop", "2", "--trials", "2", "--calibration", prose, "--study", "s", *FAST]
    run("search", tiny_folder, *words)
    other = make_model(name="other", seed=5)  # type: ignore[operator]
    assert "model content: " in refused(capsys, monkeypatch, "search", other, *words)
    assert "seed: 0 in the study, 1 now" in refused(
        capsys, monkeypatch, "search", tiny_folder, *words, "--seed", 1
    )
    assert "did you mean 's'" in refused(capsys, monkeypatch, "study", "show", "ss")
    assert "'s' is a study" in refused(
        capsys, monkeypatch, "export", "s", "--layers", "2", "--out", "new"
    )
    said = refused(
        capsys, monkeypatch, "search", tiny_folder, *words, "--seed", 1, "--protect", "0"
    )
    assert "to resume it give --seed 0 and no --protect;" in said
    with pytest.raises(PruneSearchError, match=r"run takes a Recipe, not str"):
        prunesearch.run("recipe.yaml")  # type: ignore[arg-type]


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
    words = f"--drop 3 --trials 18 --tokens 4096 --window 64 --population 4 --calibration {text}".split()
    return ["search", model, *words]


@pytest.fixture(scope="module")
def unbroken(
    tiny_folder: Path, prose: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[object]:
    """The trials of a search that nobody stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    _start(folder, *_slow_search(tiny_folder, prose)).communicate(timeout=120)
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
    document = json.loads(_start(here, *words, "--json").communicate(timeout=120)[0])
    whole = _finished(here)
    assert whole[: len(kept)] == kept
    assert document["trials"] == len(whole) == 18
    assert document["computed"] + document["hits"] == 18 - len(kept)
    assert whole == unbroken


def test_the_python_call_works_where_an_event_loop_runs(
    here: Path, tiny_folder: Path, prose: Path
) -> None:
    """As in a notebook."""

    async def notebook_cell() -> Any:  # noqa: ANN401
        recipe = prunesearch.Recipe(
            model=str(tiny_folder),
            drop="2",
            calibration=str(prose),
            tokens=128,
            window=64,
            population=2,
        )
        return prunesearch.run(recipe, prunesearch.RunOptions(trials=3))

    outcome, exported = asyncio.run(notebook_cell())
    assert outcome.trials == 3
    assert exported.folder == Path("storage/exports/tiny-llama-drop2-kl-pso")
    assert (here / exported.folder / "config.json").is_file()


@pytest.fixture(scope="module")
def searched(tiny_folder: Path, prose: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ``model`` was searched as study ``s``."""
    folder = tmp_path_factory.mktemp("searched")
    shutil.copytree(tiny_folder, folder / "model")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        run(
            "search",
            "model",
            "--drop",
            2,
            "--trials",
            4,
            "--calibration",
            prose,
            "--study",
            "s",
            *FAST,
        )
    return folder


def test_a_study_is_used_from_another_folder(
    here: Path,
    searched: Path,
    make_model: object,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"sqlite:///{searched}/storage/study.db"
    exported = run_json("export", "s", "--out", "out", "--storage", url)
    assert exported["dropped"] == run("study", "best", "s", "--storage", url).stdout.strip()
    (searched / "model").rename(here / "moved")
    gone = refused(capsys, monkeypatch, "export", "s", "--out", "out2", "--storage", url)
    assert f"it was {searched}/model)" in gone
    assert "give --model PATH" in gone
    other = make_model(name="other", seed=5)  # type: ignore[operator]
    differs = refused(
        capsys, monkeypatch, "export", "s", "--model", other, "--out", "out2", "--storage", url
    )
    assert "its weights differ (fingerprint " in differs
    assert (
        run_json("export", "s", "--model", "moved", "--out", "out2", "--storage", url)["dropped"]
        == exported["dropped"]
    )
    assert "--model goes with STUDY" in refused(
        capsys, monkeypatch, "export", "moved", "--layers", "1", "--model", "moved", "--out", "out3"
    )
    resumed = run_json("study", "resume", "s", "--model", "moved", "--storage", url)
    assert (resumed["trials"], resumed["computed"]) == (4, 0), "as many as were asked for"
    (here / "moved").rename(searched / "model")
    assert run_json("study", "resume", "s", "--trials", 6, "--storage", url)["trials"] == 6


def test_what_a_study_refuses_is_said_before_loading(
    here: Path,
    tiny_folder: Path,
    searched: Path,
    prose: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prunesearch.pipeline import session
    from prunesearch.studies import persistence

    monkeypatch.setattr(session, "load", lambda *_, **__: pytest.fail("it was loaded"))
    url = f"sqlite:///{searched}/storage/study.db"
    words = [
        "search",
        tiny_folder,
        "--drop",
        2,
        "--calibration",
        prose,
        "--study",
        "s",
        *FAST,
        "--storage",
        url,
    ]
    said = refused(capsys, monkeypatch, *words, "--tokens", 128)
    assert "to resume it give --tokens 256; for a new one give --study s-" in said
    with persistence.sole_writer(persistence.open_storage(url, create=False), "s"):
        assert "is being searched" in refused(capsys, monkeypatch, *words)


def test_too_few_trials_for_a_result_are_refused_with_the_number(
    here: Path,
    tiny_folder: Path,
    prose: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["search", tiny_folder, "--drop", 2, "--calibration", prose, *FAST]
    said = refused(capsys, monkeypatch, *words, "--sampler", "greedy", "--trials", 6)
    assert "takes 7 trials here until the first result and 11 in all: give --trials 11" in said
    assert "until the first result and 7 in all" in refused(
        capsys, monkeypatch, *words, "--ranking", "single", "--trials", 6
    )
    assert not (here / "storage" / "study.db").exists()
    part = run(*words, "--sampler", "greedy", "--trials", 8).stdout
    assert "not finished: greedy has 3 trials of its rounds to go" in part
    assert "--trials 11" in part
    assert run_json(*words, "--sampler", "greedy", "--trials", 8)["missing"] == 3
    assert run_json(*words, "--sampler", "greedy", "--trials", 11)["missing"] == 0


def test_a_recipe_file_says_all_that_the_command_says(
    here: Path,
    tiny_folder: Path,
    prose: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("recipe.yaml").write_text(
        f"model: {tiny_folder}\nsearch: {{drop: [1, 2], sampler: [pso, random], population: 4}}\n"
        f"data: {{calibration: {prose}, tokens: 256, window: 64}}\n"
        "run: {trials: 3, storage: 'sqlite:///my.db', out: made}\n"
    )
    document = run_json("run", "recipe.yaml", "--trials", 4)
    assert [(s["sampler"], s["trials"]) for s in document["searches"]] == [("pso", 4)] * 2 + [
        ("random", 4)
    ] * 2
    assert (here / "my.db").is_file()
    for number, made in zip((1, 2), document["exports"], strict=True):
        assert made["folder"] == f"made/drop{number}"
        found = [s for s in document["searches"] if f"drop{number}-" in s["study"]]
        assert made["dropped"] == min(found, key=lambda s: s["value"])["best"]["dropped"]
    Path("recipe.yaml").write_text(
        f"model: {tiny_folder}\nsearch: {{drop: [1, 2]}}\nrecover: {{}}\n"
    )
    assert "one sampler and one number" in refused(capsys, monkeypatch, "run", "recipe.yaml")


def test_python_runs_a_recipe_into_a_folder_and_is_told_of_arguments(
    here: Path, tiny_folder: Path, prose: Path
) -> None:
    recipe = prunesearch.Recipe(
        model=str(tiny_folder), drop=2, calibration=str(prose), tokens=128, window=64, population=2
    )
    _, exported = prunesearch.run(recipe, prunesearch.RunOptions(trials=2), out="dir")
    assert exported is not None
    assert exported.folder == Path("dir")
    with pytest.raises(
        prunesearch.PruneSearchError, match="`trials` 2 would give no result: `sampler` greedy"
    ):
        prunesearch.run(recipe.with_changes(sampler="greedy"), prunesearch.RunOptions(trials=2))


def test_ranges_of_layers_are_dropped(
    here: Path,
    tiny_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["evaluate", tiny_folder, "--tokens", 128, "--window", 64]
    assert run_json(*words, "--layers", "1-3,5")["dropped"] == "1,2,3,5"
    for bad, complaint in {
        "1-9": "layers 0 to 5",
        "3-1": "layers 0 to 5",
        "1a-3": "as in 3,7,12 or 1-4,9",
    }.items():
        assert complaint in refused(capsys, monkeypatch, *words, "--layers", bad)
    assert "--drop 200% leaves no layer: the model has 6" in refused(
        capsys, monkeypatch, "search", tiny_folder, "--drop", "200%"
    )
    assert "try cpu" in (said := refused(capsys, monkeypatch, *words, "--device", "nosuch"))
    assert "cuda" not in said


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prunesearch", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("prunesearch, version")


SECRET = "postgresql+psycopg://me:s3,cret@127.0.0.1:9/team"


@pytest.mark.parametrize(
    "words",
    [
        ["search", "MODEL", "--drop", "2", "--storage", SECRET],
        ["search", "MODEL", "--drop", "2", "--cache", f"mine,{SECRET}"],
        ["study", "list", "--storage", SECRET],
        [
            "study",
            "list",
            "--storage",
            "postgresql+psycopg://127.0.0.1:9/team?user=me&password=s3,cret",
        ],
        ["study", "list", "--storage", "postgresql+psycopg://me:s3,cret@host:port/team"],
        ["study", "list", "--storage", "me:s3,cret@host/team"],
        ["cache", "stats", "--cache", SECRET],
        ["cache", "verify", "--cache", f"mine,{SECRET}"],
    ],
    ids=lambda words: " ".join(words[:4]),
)
def test_no_error_holds_a_password(
    here: Path,
    tiny_folder: Path,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = refused(
        capsys, monkeypatch, *(str(tiny_folder) if word == "MODEL" else word for word in words)
    )
    assert "cret" not in said
    assert not any("cret" in path.name for path in here.rglob("*"))


def test_storage_and_cache_come_from_the_environment(
    here: Path, tiny_folder: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNESEARCH_STORAGE", "sqlite:///team.db")
    monkeypatch.setenv("PRUNESEARCH_CACHE", "shared")
    found = run_json(
        "search", tiny_folder, "--drop", 2, "--trials", 2, "--calibration", prose, *FAST
    )
    assert found["storage"] == "sqlite:///team.db"
    assert run_json("cache", "path")["folder"] == str(here / "shared")
    assert [study["name"] for study in run_json("study", "list")] == [found["study"]]
    assert {path.name for path in here.iterdir()} >= {"team.db", "shared"}
    assert not (here / "storage").exists()
    with_storage = [
        command for command in _commands(cli) if any(o.name == "storage" for o in command.params)
    ]
    for command in with_storage:
        assert [o.envvar for o in command.params if o.name == "storage"] == [
            "PRUNESEARCH_STORAGE"
        ], command.name


def _commands(command: click.Command) -> list[click.Command]:
    children = getattr(command, "commands", {}).values()
    return [command, *(found for child in children for found in _commands(child))]


def test_errors_are_a_document_with_json(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["prunesearch", "study", "list", "--json"])
    with pytest.raises(SystemExit):
        main()
    captured = capsys.readouterr()
    assert captured.err.startswith("error: no study database")
    document = json.loads(captured.out)
    assert (document["kind"], document["exit"]) == ("StorageError", 2)
    assert captured.err == f"error: {document['error']}\n"


def test_an_unforeseen_fault_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise KeyError("password=s3cret")

    monkeypatch.setattr(cli_module.cli, "main", fail)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("failed: KeyError: 'password=***'")
    assert said.count("\n") == 1


def test_every_command_and_option_has_help() -> None:
    def check(command: click.Command) -> None:
        assert command.help, command.name
        for option in command.params:
            if isinstance(option, click.Option) and option.name not in ("help", "version"):
                assert option.help, f"{command.name} {option.name}"
        for child in getattr(command, "commands", {}).values():
            check(child)

    check(cli)


def test_failures_are_one_line_with_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunesearch.errors import ScoringError

    def fail(**_: object) -> None:
        raise ScoringError("out of memory")

    monkeypatch.setattr(cli_module.cli, "main", fail)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "failed: out of memory\n"


def test_a_front_is_searched_shown_and_chosen_from(
    here: Path, tiny_folder: Path, prose: Path
) -> None:
    search = [
        "search",
        tiny_folder,
        "--drop",
        "pareto:4",
        "--trials",
        24,
        "--calibration",
        prose,
        *FAST,
    ]
    found = run_json(*search)
    name = found["study"]
    assert name == "tiny-llama-droppareto4-kl-pso"
    front = found["front"]
    assert len(front) >= 2
    assert [t["values"][0] for t in front] == sorted(t["values"][0] for t in front)
    assert [t["values"][1] for t in front] == sorted((t["values"][1] for t in front), reverse=True)
    assert found["best"]["dropped"] in {t["dropped"] for t in front}
    study = optuna.load_study(study_name=name, storage="sqlite:///storage/study.db")
    assert {t.user_attrs["dropped"] for t in study.best_trials} >= {t["dropped"] for t in front}

    text = run(*search).stdout
    assert "0 evaluated, 0 cache hits" in text
    assert f"prunesearch study best {name} --max-loss 10%" in text
    shown = run("study", "show", name).stdout
    assert all(t["dropped"] in shown for t in front)
    assert run_json("study", "show", name)["best"] == front

    trials = [t for t in study.trials if t.values]
    limit = sorted(t.user_attrs["bytes"] for t in trials)[len(trials) // 2]
    within = min(
        (t for t in trials if t.user_attrs["bytes"] <= limit), key=lambda t: (t.values[0], t.number)
    )
    assert (
        run("study", "best", name, "--max-size", limit).stdout.strip()
        == within.user_attrs["dropped"]
    )
    loose = run_json("study", "best", name, "--max-loss", "1000%")
    assert loose["attributes"]["bytes"] == min(t.user_attrs["bytes"] for t in trials)
    tight = front[0]["values"][0] + 1e-9
    assert run_json("study", "best", name, "--max-loss", f"{tight:.9f}")["values"][0] <= tight
    exported = run_json("export", name, "--max-size", limit, "--out", "out")
    assert exported["dropped"] == within.user_attrs["dropped"]
    assert exported["bytes"] <= limit


def test_sublayers_are_searched_and_evaluated_but_not_exported(
    here: Path,
    tiny_folder: Path,
    prose: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [
        tiny_folder,
        "--drop",
        3,
        "--units",
        "sublayers",
        "--trials",
        8,
        "--calibration",
        prose,
        *FAST,
    ]
    found = run_json("search", *words)
    assert found["study"] == "tiny-llama-drop3-sublayers-kl-pso"
    assert any(letter in found["best"]["dropped"] for letter in "am")
    measured = run_json(
        "evaluate",
        tiny_folder,
        "--layers",
        found["best"]["dropped"],
        "--calibration",
        prose,
        *FAST[:4],
    )
    assert measured["metrics"]["kl"] == found["value"]
    assert measured["params"] == found["best"]["cost"]["params"]
    assert "--as zeroed" in refused(capsys, monkeypatch, "export", found["study"], "--out", "out")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("sampler", "partial"),
    [
        ("greedy", 6),
        ("one-shot", 6),
        ("evolution", 0),
        ("cmaes", 0),
        ("woa --encoding keys", 0),
        ("pso --asynchronous", 0),
    ],
)
def test_every_kind_of_sampler_runs_from_the_command_line(
    here: Path, tiny_folder: Path, prose: Path, sampler: str, partial: int
) -> None:
    search = ["search", tiny_folder, "--drop", 2, "--trials", 9, "--calibration", prose, *FAST]
    found = run_json(*search, "--sampler", *sampler.split(), "--study", "s")
    assert found["trials"] == 9
    (summary,) = run_json("study", "list")
    assert (summary["partial_subsets"], summary["trials"]) == (partial, 9 - partial)
    assert len(found["best"]["dropped"].split(",")) == 2
    assert run_json(*search, "--sampler", *sampler.split(), "--study", "s")["computed"] == 0


@pytest.mark.parametrize("ranking", ["magnitude", "taylor", "single", "none"])
def test_searches_start_from_any_ranking(
    here: Path, tiny_folder: Path, prose: Path, ranking: str
) -> None:
    words = [
        "search",
        tiny_folder,
        "--drop",
        2,
        "--trials",
        8,
        "--calibration",
        prose,
        *FAST,
        "--ranking",
        ranking,
    ]
    assert run_json(*words)["trials"] == 8
    assert run_json(*words)["computed"] == 0
    study = optuna.load_study(
        study_name="tiny-llama-drop2-kl-pso", storage="sqlite:///storage/study.db"
    )
    assert ("ranking" in study.user_attrs) == (ranking in ("magnitude", "taylor"))


def test_an_enqueued_subset_is_evaluated(here: Path, tiny_folder: Path, prose: Path) -> None:
    words = ["search", tiny_folder, "--drop", 2, "--calibration", prose, *FAST]
    name = run_json(*words, "--trials", 3)["study"]
    study = optuna.load_study(study_name=name, storage="sqlite:///storage/study.db")
    study.enqueue_trial({f"drop_{i:02d}": int(i in (1, 5)) for i in range(6)})
    study.enqueue_trial({"drop_00": 1})
    run(*words, "--trials", 9)
    states = [t.state.name for t in study.trials]
    assert states == ["COMPLETE"] * 4 + ["FAIL"] + ["COMPLETE"] * 4
    assert study.trials[3].user_attrs["dropped"] == "1,5"
    assert "no parameter drop_01" in study.trials[4].user_attrs["failure"]


@pytest.mark.parametrize(
    "words", [[], ["study"], ["cache"]], ids=lambda words: " ".join(words) or "alone"
)
def test_a_group_without_a_command_prints_its_help(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["prunesearch", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.startswith("Usage: ")
    assert "error" not in said.splitlines()[0]
    assert "\nCommands:\n" in said
