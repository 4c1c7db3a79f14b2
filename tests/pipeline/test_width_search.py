"""A search over widths from end to end on a tiny model."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest

from prunesearch import Recipe, RunOptions
from prunesearch.config.identity import study_name
from prunesearch.pipeline.run import report_of
from prunesearch.pipeline.session import open_session
from prunesearch.pipeline.state import Request
from prunesearch.pipeline.width_search import first_widths, harm_of_units
from prunesearch.report.removals import Removal
from prunesearch.report.results import SearchReport
from prunesearch.widths.space import WidthSpace
from tests.support.cli import refused, run, run_json


def recipe_for(folder: Path, text: Path, **search: Any) -> Recipe:  # noqa: ANN401
    section = {"space": "widths", "target": "20%", "align": 8, "population": 4, **search}
    data = {"calibration": str(text), "tokens": 128, "window": 64}
    return Recipe(model=str(folder), data=data, search=section)


@pytest.fixture
def words(tiny_folder: Path, prose: Path, tmp_path: Path) -> list[str]:
    """A search of the command line, without its sampler."""
    return [
        *("search", str(tiny_folder), "--space", "widths", "--target", "20%", "--align", "8"),
        *("--calibration", str(prose), "--tokens", "128", "--window", "64", "--population", "4"),
        *("--storage", f"sqlite:///{tmp_path}/study.db", "--cache", str(tmp_path / "cache")),
        *("--trials", "14"),
    ]


def test_the_command_line_searches_resumes_and_exports(words: list[str], tmp_path: Path) -> None:
    found = run_json(*words, "--sampler", "pso")
    assert found["study"] == "tiny-llama-widths20pct-flap-kl-pso"
    assert found["computed"] == found["trials"] == 14
    # Nothing is computed again, and a second sampler finds the first candidates in the cache.
    again = run_json(*words, "--sampler", "pso")
    assert (again["computed"], again["value"]) == (0, found["value"])
    other = run_json(*words, "--sampler", "evolution")
    assert other["hits"] >= 8
    # The best candidate is the one that is reported, and what is removed is counted exactly.
    best, dense = found["best"], found["dense"]
    widths = Removal.of(best["dropped"]).widths
    removed = sum((64 - channels) * 96 for channels, _ in widths.values())
    removed += sum((2 - groups) * 1536 for _, groups in widths.values())
    biases = sum(channels < 64 for channels, _ in widths.values())
    biases += sum(groups < 2 for _, groups in widths.values())
    assert dense["cost"]["params"] - best["cost"]["params"] == removed - 32 * biases
    assert removed == pytest.approx(0.2 * dense["cost"]["params"], abs=384)
    place = ("--storage", words[words.index("--storage") + 1])
    shown = run("study", "show", found["study"], *place).stdout
    assert "search.space" in shown and "Kept of each layer" in shown
    assert "20% widths" in run("study", "list", *place).stdout
    layers = run_json("study", "layers", found["study"], *place)["layers"]
    assert [layer["layer"] for layer in layers][:7] == ["0a", "1a", "2a", "3a", "4a", "5a", "0m"]
    cache = ("--cache", words[words.index("--cache") + 1])
    out = tmp_path / "out"
    run("export", found["study"], "--out", out, *place, *cache)
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] != "llama" and out.is_dir()


def test_worker_processes_find_the_same(tiny_folder: Path, prose: Path, tmp_path: Path) -> None:
    found = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        recipe = recipe_for(tiny_folder, prose, space="blocks+widths")
        options = RunOptions(
            trials=8, workers=workers, storage=f"sqlite:///{folder}.db", cache=str(folder)
        )
        report = report_of("search", Request(options, (recipe,)))
        assert isinstance(report, SearchReport)
        assert report.computed == 8
        study = optuna.load_study(study_name=study_name(recipe), storage=options.storage)
        found.append([(trial.params, trial.values) for trial in study.trials])
    assert found[0] == found[1]


def test_a_study_is_held_to_its_channel_order(
    words: list[str],
    prose: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_json(*words, "--sampler", "random", "--study", "s")
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/study.db")
    identity = json.loads(study.user_attrs["identity"])
    assert identity["channel order"].startswith("flap-")
    study.set_user_attr("identity", json.dumps({**identity, "channel order": "flap-0"}))
    line = refused(capsys, monkeypatch, *words, "--sampler", "random", "--study", "s")
    assert "channel order: 'flap-0' in the study" in line


def test_the_session_orders_channels_and_starts_from_fixed_allocations(
    tiny_folder: Path, prose: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(tiny_folder, prose, criterion="magnitude")
    options = RunOptions(cache=str(tmp_path / "c"), storage=f"sqlite:///{tmp_path}/s.db")
    with open_session(recipe, options) as session:
        space = session.space_of(recipe.search)
        assert isinstance(space, WidthSpace)
        assert not space.biases and space.order.startswith("magnitude-")
        assert space.n_units == 6 * (7 + 1)
        first = first_widths(space, session.layers)
        assert {space.count(widths) for widths in first} == {space.budget}
        harm = harm_of_units(space, session.layers)
        assert len(harm) == space.n_units and min(harm) > 0
        # The next step of an MLP is more important than the one before it.
        assert harm[0] <= harm[1] <= harm[6]


def test_identities_of_other_searches_know_nothing_of_widths(
    tiny_folder: Path, prose: Path
) -> None:
    plain = Recipe(model="m", search={"drop": "2"})
    assert not {"space", "target", "criterion", "align", "first_allocations"} & set(
        plain.identity()
    )
    assert plain == Recipe(model="m", search={"drop": "2", "space": "blocks"})
    widths = recipe_for(tiny_folder, prose)
    assert widths.identity()["target"] == "20%"
    assert Recipe.of_stored(widths.document()) == widths
    assert widths.with_changes(seed=3).search.target == "20%"
    assert study_name(recipe_for(tiny_folder, prose, space="blocks+widths")).endswith(
        "blocks-widths20pct-flap-kl-pso"
    )
