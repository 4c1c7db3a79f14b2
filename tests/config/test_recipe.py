from collections.abc import Callable
from pathlib import Path

import pytest

from prunesearch.config.identity import differences, study_name
from prunesearch.config.objective import ScoreWeights
from prunesearch.config.recipe import Recipe
from prunesearch.config.recovery import HealRecipe
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import InputError, PruneSearchError, UnknownNameError
from prunesearch.runtime.json_values import Json


def recipe(**changes: object) -> Recipe:
    return Recipe(**{"model": "some/model", "drop": "8", **changes})


def _on_ray(**changes: object) -> RunOptions:
    return RunOptions(engine="ray", **changes)  # type: ignore[arg-type]


def test_unknown_keys_are_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'tokns': did you mean 'tokens'"):
        recipe(tokns=3)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sampler": "woaa"}, "did you mean 'woa'"),
        ({"objective": "perplexty"}, "did you mean 'perplexity'"),
        ({"dtype": "bf16"}, "unknown dtype 'bf16'"),
        ({"objective": "task"}, "`task` NAME"),
        ({"task": "hellaswag", "objective": "kl"}, "goes with `objective` task"),
        ({"tokens": 3}, "tokens = 3"),
        ({"limit": 200}, "`limit` goes with `task` NAME"),
        ({"task_data": "x.jsonl"}, "`task_data` goes with `task` NAME"),
        ({"objective": "task", "task": "hellaswag", "calibration": "x.txt"}, "not with `task`"),
        ({"weights": {"qualty": 1}}, "weights key 'qualty': did you mean 'quality'"),
        ({"population": 1}, "population = 1"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_bad_values_are_refused_in_one_line(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        recipe(**changes)
    assert "\n" not in str(caught.value)


def test_a_recipe_takes_what_the_command_takes() -> None:
    assert recipe(drop=8) == Recipe(model="some/model", drop=8) == recipe()
    assert recipe(task="hellaswag").objective.name == "task"
    assert recipe(protect=[0, 5]).search.protect == "0,5"
    assert recipe(protect=3).search.protect == "3"
    assert recipe(weights="size=0.2").objective.score_weights == ScoreWeights(size=0.2)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (
            lambda: Recipe(model="m", drop="8", tokns=3),
            "unknown recipe key 'tokns': did you mean 'tokens'?",
        ),
        (
            lambda: Recipe(model="m", drop="8", trials=3),
            "'trials' is not part of a Recipe: give it as run",
        ),
        (lambda: Recipe(model="m"), "drop is missing in section search: every recipe needs it"),
        (
            lambda: Recipe(model="m", drop="8", task_data="x"),
            "`task_data` goes with `task` NAME, and no task is given",
        ),
        (
            lambda: Recipe(model="m", drop="8", preselect=False, sampler="ga"),
            "`preselect=False` goes with `sampler` pso",
        ),
        (
            lambda: Recipe(model="m", drop="8", sampler="wao"),
            "unknown sampler 'wao': did you mean 'woa'?",
        ),
        (lambda: RunOptions(trials=0), "trials = 0"),
        (lambda: RunOptions(offload="disk", device_map="auto"), "leave `device_map` out"),
        (lambda: RunOptions(ray_address="auto"), "`ray_address` auto goes with `engine` ray"),
        (lambda: RunOptions(gpus_per_worker=1), "`gpus_per_worker` 1.0 goes with `engine` ray"),
        (lambda: RunOptions(workers=65), "at most 64; a cluster takes more, with `engine` ray"),
        (lambda: _on_ray(ray_address="ray://head:1"), "run the command on a node of the cluster"),
        (lambda: _on_ray(ray_address="head"), "'head' is not an address: give auto, or HOST:PORT"),
        (lambda: _on_ray(gpus_per_worker=1.5), "1.5: give a part of 1, or a whole number"),
        (lambda: _on_ray(gpus_per_worker=1, device="cpu"), "`device` cpu contradict each other"),
        (lambda: _on_ray(gpus_per_worker=0, device="cuda:1"), "cuda:1 contradict each other"),
        (lambda: _on_ray(gpus_per_worker=2, offload="cpu"), "`offload` cpu keeps it off them"),
        (lambda: RunOptions.of({"engine": "ry"}), "did you mean 'ray'"),
        (lambda: RunOptions(threads=10_000), "`threads` 10000 is more than this machine can use"),
        (lambda: RunOptions(study=" "), "study = ' ': give a name, or leave it out"),
        (
            lambda: RunOptions(study="a\nb"),
            "a name has no control characters, and this one has U+000A",
        ),
        (lambda: RunOptions(study="a\x1b[2J"), "U+001B"),
        (lambda: RunOptions(study="a\u202eb"), "U+202E"),
        (lambda: ScoreWeights(quality=-1), "quality = -1"),
    ],
)
def test_python_is_told_of_arguments(make: Callable[[], object], complaint: str) -> None:
    with pytest.raises(PruneSearchError) as caught:
        make()
    assert str(caught.value).startswith(complaint) or complaint in str(caught.value)
    assert "--" not in str(caught.value)


def test_what_travels_names_no_folder() -> None:
    for path in ("/home/me/customer/mails.txt", "data/mails.txt", "../mails"):
        assert recipe(calibration=path).portable().data.calibration == Path(path).name
    assert recipe(calibration="owner/texts").portable().data.calibration == "owner/texts"
    assert recipe().portable().model.path == "some/model"


def test_weights() -> None:
    assert ScoreWeights.parse("size=0.2") == ScoreWeights(quality=1.0, size=0.2, latency=0.0)
    assert ScoreWeights.parse("") == ScoreWeights()
    for text, complaint in [
        ("sise=1", "did you mean 'size'"),
        ("size=", "needs a number"),
        ("size=-1", "size"),
    ]:
        with pytest.raises(InputError, match=complaint):
            ScoreWeights.parse(text)


def test_identity_holds_what_determines_trials_and_no_location() -> None:
    before = recipe().identity()
    for location in ("model", "revision", "calibration"):
        assert recipe(**{location: "elsewhere"}).identity() == before
    task = {"objective": "task", "task": "hellaswag"}
    for location in ("task_data", "include_path"):
        assert recipe(**task, **{location: "elsewhere"}).identity() == recipe(**task).identity()
    changed = {
        "drop": "7",
        "seed": 1,
        "tokens": 2048,
        "sampler": "woa",
        "population": 8,
        "weights": ScoreWeights(size=1),
    }
    for field, value in changed.items():
        assert recipe(**{field: value}).identity() != before, field


def test_what_an_older_study_cannot_say_is_no_difference() -> None:
    old: dict[str, Json] = {"seed": 0}
    now: dict[str, Json] = {
        "seed": 0,
        "numpy version": "2.4",
        "lm-eval version": "0.4",
        "hellaswag task scoring": "0",
    }
    assert differences(old, now) == []
    assert differences({**now, "numpy version": "2.3"}, now) == [
        "numpy version: '2.3' in the study, '2.4' now"
    ]
    assert differences(old, {"seed": 0, "tokens": 1}) == ["tokens: None in the study, 1 now"]


def test_differences_are_named() -> None:
    named = differences(recipe().identity(), recipe(tokens=2048).identity())
    assert named == ["tokens: 1024 in the study, 2048 now"]
    assert differences({"data": "a" * 64}, {"data": "b" * 64}) == [
        "data: aaaaaaaaaaaa... in the study, bbbbbbbbbbbb... now"
    ]


def test_a_recipe_survives_json() -> None:
    made = recipe(weights=ScoreWeights(latency=0.5), protect="first:1")
    assert Recipe.model_validate_json(made.model_dump_json()) == made


def test_study_names_say_what_is_searched() -> None:
    assert (
        study_name(recipe(model="/some/SmolLM2-135M.gguf", drop="25%"))
        == "smollm2-135m-drop25pct-kl-pso"
    )
    named = recipe(objective="task", task="hellaswag", seed=3, sampler="woa")
    assert study_name(named) == "model-drop8-hellaswag-woa-s3"


def test_options_are_no_part_of_a_recipe() -> None:
    assert not set(RunOptions.model_fields) & set(Recipe.model_fields)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("/home/me/customer-x/mails.txt", "mails.txt"),
        ("C:\\Users\\me\\mails.txt", "mails.txt"),
        ("C:/Users/me/model", "model"),
        ("customer-x/mails.jsonl.gz", "mails.jsonl.gz"),
        ("../me/model", "model"),
        ("~/model", "model"),
        ("a/b/model", "model"),
        ("file:///home/me/model", "model"),
        ("models/me.GGUF", "me.GGUF"),
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("gpt2", "gpt2"),
        ("wikitext:wikitext-2-raw-v1:test", "wikitext:wikitext-2-raw-v1:test"),
        ("builtin", "builtin"),
    ],
)
def test_no_path_of_any_machine_travels(text: str, name: str) -> None:
    assert recipe(model=text).portable().model.path == name
    assert recipe(calibration=text).portable().data.calibration == name
    assert HealRecipe(data=text).portable()["data"] == name
    task = {
        "objective": "task",
        "task": "hellaswag",
        "task_data": "customer-x/documents",
        "include_path": "customer-x",
    }
    said = recipe(**task).portable()
    assert (said.data.task_data, said.data.include_path) == ("documents", "customer-x")
