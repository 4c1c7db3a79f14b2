"""A key names everything that can change a number, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunesearch.cache.keys import canonical_json, evaluation_key, latency_key
from prunesearch.candidate import LayerSubset
from prunesearch.config.flat import PLACES, stored_name
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.objectives import calibration, identity, logit_sums, request_chunks
from prunesearch.objectives import task as task_objective
from prunesearch.pipeline.session import load_for, objective_for
from prunesearch.runtime.json_values import Json

CANDIDATE = LayerSubset.of(6, [1, 4])
OPTIONS = RunOptions(device="cpu")


def keys(
    recipe: Recipe, options: RunOptions = OPTIONS, candidate: LayerSubset = CANDIDATE
) -> set[str]:
    """The keys of a candidate's results under a recipe."""
    loaded = load_for(recipe.model, options)
    objective = objective_for(recipe.objective, recipe.data, loaded, options)
    return {
        evaluation_key(loaded.fingerprint, candidate.canonical, chunk.identity).digest
        for chunk in objective.chunks
    }


@pytest.fixture
def text(prose: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.chdir(tmp_path)
    return Recipe(model=str(tiny_folder), drop="2", calibration=str(prose), tokens=256, window=64)


@pytest.fixture
def task(text: Recipe, hellaswag_like: Path) -> Recipe:
    data: dict[str, Any] = {
        "objective": "task",
        "task": "hellaswag",
        "task_data": str(hellaswag_like),
        "limit": 6,
    }
    return Recipe(model=text.model.path, drop="2", **data)


CHANGES_TEXT = {"dtype": "bfloat16", "tokens": 128, "window": 32, "kl_top": 8}
CHANGES_TASK = {
    "dtype": "bfloat16",
    "limit": 5,
    "num_fewshot": 1,
    "batch_tokens": 512,
    "task": "piqa",
}
KEEPS: dict[str, object] = {
    "drop": "3",
    "protect": "first:1",
    "units": "sublayers",
    "against": "latency",
    "sampler": "woa",
    "form": "keys",
    "preselect": False,
    "ranking": "none",
    "warm_start": "other",
    "asynchronous": True,
    "population": 4,
    "seed": 7,
    "objective": "perplexity",
    "race": True,
    "keep_pattern": True,
    "weights": {"size": 2.0},
    "trust_remote_code": True,
    "space": "widths",
    "target": "30%",
    "align": 2,
    "first_allocations": False,
    "llm_url": "http://127.0.0.1:1/v1",
    "llm_model": "other",
    "llm_timeout": 9.0,
    "llm_retries": 1,
    "llm_calls": 1,
    "llm_tokens": 1,
    "llm_cost": 1.0,
    "llm_seconds": 1.0,
    "llm_price": "1,2",
    "llm_required": True,
    "llm_temperature": 0.1,
    "llm_candidates": 2,
    "llm_attempts": 1,
    "llm_reflection": 1,
    "llm_history": 3,
    "llm_max_repair": 0.1,
    "llm_context": 1024,
    "llm_shuffle_scores": True,
    "llm_rename_layers": True,
    # These two change the channel order. Its digest is part of the keys of widths.
    "criterion": "taylor",
    "order_tokens": 64,
}
LOCATIONS = {
    "model",
    "revision",
    "calibration",
    "task_data",
    "include_path",
    "metric",
}  # tested by what lies there
KEEPS_RUN: dict[str, object] = {
    "storage": "sqlite:///other.db",
    "cache": "other",
    "study": "other",
    "warm_start_storage": "sqlite:///other.db",
    "trials": 3,
    "confirm": 0.5,
    "device_map": "cpu",
    "threads": 1,
    "offload": "disk",
    "state_memory": "1MiB",
    "compile": "on",
    "workers": 2,
    "engine": "ray",
    "ray_address": "head:6379",
    "gpus_per_worker": 0.5,
    "track": ("tensorboard",),
    "track_to": "runs",
}


def changed(recipe: Recipe, name: str, value: object) -> Recipe:
    """The recipe with another value of a setting, also where the settings do not go together."""
    section, field = PLACES[name]
    settings = getattr(recipe, section).model_copy(update={field: value})
    return recipe.model_copy(update={section: settings})


def test_every_field_is_sorted_into_what_changes_numbers_and_what_does_not() -> None:
    fields = {stored_name(section, field) for section, field in PLACES.values()}
    assert fields == {*CHANGES_TEXT, *CHANGES_TASK, *KEEPS, *LOCATIONS}
    assert set(RunOptions.model_fields) == {*KEEPS_RUN, "device"}, (
        "the device is part of the numerics class"
    )


def test_what_changes_numbers_changes_every_key(text: Recipe, task: Recipe) -> None:
    for recipe, changes in ((text, CHANGES_TEXT), (task, CHANGES_TASK)):
        before = keys(recipe)
        for field, value in changes.items():
            if field != "task":
                assert not before & keys(changed(recipe, field, value)), field
    assert not keys(text) & keys(task)


def test_what_cannot_change_numbers_changes_no_key(text: Recipe, task: Recipe) -> None:
    before = keys(text)
    for field, value in KEEPS.items():
        assert keys(changed(text, field, value)) == before, field
    for field, value in KEEPS_RUN.items():
        assert keys(text, OPTIONS.model_copy(update={field: value, "device": "cpu"})) == before, (
            field
        )
    assert keys(changed(task, "metric", "acc")) == keys(task)


def test_content_counts_and_places_do_not(
    text: Recipe, task: Recipe, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    moved = make_model(name="elsewhere")  # the same weights in another folder
    assert keys(changed(text, "model", str(moved))) == keys(text)
    other = make_model(name="other", seed=1)
    assert not keys(changed(text, "model", str(other))) & keys(text)
    copy = tmp_path / "copy.txt"
    copy.write_bytes(Path(text.data.calibration).read_bytes())
    assert keys(changed(text, "calibration", str(copy))) == keys(text)
    copy.write_bytes(b"Once more. " + copy.read_bytes())
    assert not keys(changed(text, "calibration", str(copy))) & keys(text)
    lines = Path(task.data.task_data or "").read_text()
    data = tmp_path / "data.jsonl"
    data.write_text(lines)
    assert keys(changed(task, "task_data", str(data))) == keys(task)
    data.write_text(lines.replace("sings a song", "sings two songs"))
    assert not keys(changed(task, "task_data", str(data))) & keys(task)


def test_the_class_of_arithmetic_counts(
    text: Recipe, task: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(text) | keys(task)
    monkeypatch.setattr(request_chunks, "SCORING_VERSION", identity.SCORING_VERSION + 1)
    monkeypatch.setattr(identity, "SCORING_VERSION", identity.SCORING_VERSION + 1)
    monkeypatch.setattr(logit_sums, "STATISTICS_VERSION", logit_sums.STATISTICS_VERSION + 1)
    assert not before & (keys(text) | keys(task))
    monkeypatch.undo()
    numerics = identity.numerics_of
    for name in numerics(load_for(text.model, OPTIONS).model):
        for module in (calibration, task_objective):
            monkeypatch.setattr(
                module, "numerics_of", lambda model, name=name: numerics(model) | {name: "other"}
            )
        assert not before & (keys(text) | keys(task)), name


def test_the_candidate_counts(text: Recipe) -> None:
    blocks = [LayerSubset.of(6, [1]), LayerSubset.of(6, [1, 5])]
    others = [*blocks, LayerSubset.of(6, [1], [4]), LayerSubset.of(6, [1], (), [4])]
    found = [next(iter(keys(text, candidate=c))) for c in (CANDIDATE, *others)]
    assert len(set(found)) == len(found)
    assert keys(text, candidate=LayerSubset.of(6, [4, 1])) == keys(text)


def test_every_part_of_a_key_counts() -> None:
    fields: dict[str, Json] = {
        "tokens": "t",
        "numerics": {"dtype": "bfloat16"},
        "version": 1,
        "kind": "calibration",
    }
    base = ("f", "blocks/6:1", fields)
    changed = [
        ("g", "blocks/6:1", fields),
        ("f", "blocks/6:2", fields),
        ("f", "blocks/7:1", fields),
        *(("f", "blocks/6:1", {**fields, field: "other"}) for field in fields),
    ]
    digests = {evaluation_key(*parts).digest for parts in [base, *changed]}
    assert len(digests) == 1 + len(changed)
    backwards = dict(reversed(fields.items()))
    assert evaluation_key(*base) == evaluation_key("f", "blocks/6:1", backwards)
    assert json.loads(evaluation_key(*base).preimage)["chunk"] == fields


def test_latencies_are_kept_per_machine_and_precision() -> None:
    made = {latency_key("f", m, {"dtype": d}, t).digest for m in "ab" for d in "cd" for t in (1, 2)}
    assert len(made) == 8


def test_json_that_is_not_portable_has_no_key() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": float("nan")})
