"""The usual way of a user: search, look, export, evaluate, remove.

The commands run once, in this order; each test holds one promise about what they said.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import FAST, run, run_json

NAME = "tiny-llama-drop2-kl-pso"


@dataclass(frozen=True)
class Workflow:
    """What each command said: JSON documents, or text where it ends in ``_text``."""

    model: Path
    found: Any
    again_text: str
    other: Any
    listed: Any
    shown: Any
    shown_text: str
    best_text: str
    layers: Any
    layers_text: str
    exported: Any
    by_hand: Any
    manifest: str
    measured: Any
    removed: Any
    listed_after: Any


@pytest.fixture(scope="module")
def workflow(
    tiny_folder: Path, prose: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workflow]:
    search = ["search", tiny_folder, "--drop", 2, "--trials", 8, "--calibration", prose, *FAST]
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("here"))
    try:
        found = run_json(*search)
        exported_of: str = found["best"]["dropped"]
        yield Workflow(
            model=tiny_folder,
            found=found,
            again_text=run(*search).stdout,
            other=run_json(*search, "--study", "other"),
            listed=run_json("study", "list"),
            shown=run_json("study", "show", NAME, "--best", 3),
            shown_text=run("study", "show", NAME).stdout,
            best_text=run("study", "best", NAME).stdout,
            layers=run_json("study", "layers", NAME),
            layers_text=run("study", "layers", NAME).stdout,
            exported=run_json("export", NAME, "--out", "out"),
            by_hand=run_json("export", tiny_folder, "--layers", exported_of, "--out", "by-hand"),
            manifest=Path("out", "prunesearch.json").read_text(),
            measured=run_json("evaluate", "out", "--calibration", prose, *FAST[:4]),
            removed=run_json("study", "rm", NAME, "--yes"),
            listed_after=run_json("study", "list"),
        )
    finally:
        os.chdir(before)


def test_a_study_is_named_after_what_it_searches(workflow: Workflow) -> None:
    assert workflow.found["study"] == NAME


def test_a_new_search_computes_every_trial(workflow: Workflow) -> None:
    found = workflow.found
    assert (found["trials"], found["computed"], found["hits"]) == (8, 8, 0)


def test_the_value_of_a_search_is_the_metric_of_its_best(workflow: Workflow) -> None:
    assert workflow.found["best"]["metrics"]["kl"] == workflow.found["value"]


def test_the_best_is_smaller_than_the_dense_model(workflow: Workflow) -> None:
    found = workflow.found
    assert found["best"]["cost"]["params"] < found["dense"]["cost"]["params"]


def test_a_finished_search_evaluates_nothing_again(workflow: Workflow) -> None:
    assert "0 evaluated, 0 cache hits" in workflow.again_text


def test_a_search_names_the_next_commands(workflow: Workflow) -> None:
    assert f"prunesearch export {NAME} --out {NAME}" in workflow.again_text
    assert "optuna-dashboard sqlite:///storage/study.db" in workflow.again_text


def test_another_study_finds_the_scores_in_the_cache(workflow: Workflow) -> None:
    assert workflow.other["hits"] == 8


def test_studies_are_listed_by_name(workflow: Workflow) -> None:
    assert [study["name"] for study in workflow.listed] == ["other", NAME]


def test_study_show_has_the_best_trial_and_its_attributes(workflow: Workflow) -> None:
    best = workflow.shown["best"][0]
    assert best["dropped"] == workflow.found["best"]["dropped"]
    assert {"cache", "seconds", "kl", "perplexity", "bytes", "latency_ms"} <= set(
        best["attributes"]
    )
    assert best["dropped"] in workflow.shown_text


def test_study_best_prints_the_layers_alone(workflow: Workflow) -> None:
    assert workflow.best_text.strip() == workflow.found["best"]["dropped"]


def test_study_layers_has_every_layer(workflow: Workflow) -> None:
    layers = workflow.layers
    assert [layer["layer"] for layer in layers["layers"]] == ["0", "1", "2", "3", "4", "5"]
    assert (layers["metric"], layers["trials"]) == ("kl", 8)
    assert "what dropping each layer costs, from 8 trials" in workflow.layers_text


def test_a_study_exports_its_best(workflow: Workflow) -> None:
    assert workflow.exported["dropped"] == workflow.found["best"]["dropped"]


def test_an_export_by_hand_generates_the_same(workflow: Workflow) -> None:
    by_hand, exported = workflow.by_hand, workflow.exported
    assert by_hand["verification"]["generated"] == exported["verification"]["generated"]


def test_a_manifest_has_the_recipe_and_no_path(workflow: Workflow) -> None:
    assert json.loads(workflow.manifest)["recipe"]["search"]["drop"] == "2"
    assert str(workflow.model) not in workflow.manifest


def test_an_export_evaluates_to_what_the_search_found(workflow: Workflow) -> None:
    measured = workflow.measured
    assert measured["metrics"]["perplexity"] == pytest.approx(
        workflow.found["best"]["metrics"]["perplexity"], rel=1e-5
    )
    assert set(measured["stderr"]) == {"perplexity", "cross_entropy"}


def test_a_study_is_removed_with_its_trials(workflow: Workflow) -> None:
    assert workflow.removed == {"deleted": NAME, "trials": 8}
    assert [study["name"] for study in workflow.listed_after] == ["other"]
