"""The command line as a user meets it."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import prunesearch
from prunesearch.cli.main import cli, main
from tests.support.cli import FAST, refused, run, run_json


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


def test_every_command_and_option_has_help() -> None:
    def check(command: click.Command) -> None:
        assert command.help, command.name
        for option in command.params:
            if isinstance(option, click.Option) and option.name not in ("help", "version"):
                assert option.help, f"{command.name} {option.name}"
        for child in getattr(command, "commands", {}).values():
            check(child)

    check(cli)


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
