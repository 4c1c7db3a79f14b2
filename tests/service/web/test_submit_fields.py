"""From the fields of the submit page to a job, and from a message to its field."""

import pytest

from prunesearch.config.recipe import Recipe
from prunesearch.runtime.json_values import JsonObject
from prunesearch.service.job import JobRequest
from prunesearch.service.web.submit_fields import (
    Entered,
    FieldsError,
    field_of,
    recipe_text,
    request_of_fields,
    request_of_yaml,
)


def asked(**fields: str) -> JobRequest:
    return request_of_fields(Entered.of({"model": "tiny", **fields}))


def errors(**fields: str) -> dict[str, str]:
    with pytest.raises(FieldsError) as raised:
        asked(**fields)
    return raised.value.errors


def test_a_model_alone_is_a_job() -> None:
    request = asked()
    recipe = Recipe.of_stored(request.recipe)
    assert (request.command, request.trials, request.study) == ("run", None, None)
    assert recipe.chosen() == {"model": "tiny", "search": {"drop": "25%"}}


def test_every_field_has_its_place_in_the_recipe() -> None:
    request = asked(
        calibration="my.txt", tokens="2,048", drop=" 8 ", protect="first:1", sampler="woa",
        objective="perplexity", trials="300", seed="7", after="heal", steps="100",
        healing_text="long.txt", finalists="3", evaluate="perplexity", study="mine",
    )  # fmt: skip
    recipe = Recipe.of_stored(request.recipe)
    assert (request.trials, request.study) == (300, "mine")
    assert (recipe.data.calibration, recipe.data.tokens) == ("my.txt", 2048)
    assert (recipe.search.drop, recipe.search.protect) == ("8", "first:1")
    assert (recipe.search.sampler, recipe.search.seed) == ("woa", 7)
    assert recipe.objective.name == "perplexity"
    assert recipe.recover is not None
    assert recipe.recover.heal is not None
    assert recipe.recover.evaluate is not None
    assert (recipe.recover.heal.data, recipe.recover.heal.steps) == ("long.txt", 100)
    assert (recipe.recover.finalists, recipe.recover.evaluate.task) == (3, None)


def test_a_task_reads_documents_instead_of_text() -> None:
    recipe = Recipe.of_stored(
        asked(objective="task", task="hellaswag", task_data="h.jsonl", evaluate="x").recipe
    )
    assert (recipe.objective.task, recipe.data.task_data) == ("hellaswag", "h.jsonl")
    assert recipe.recover is None


def test_only_a_search() -> None:
    assert asked(after="nothing", drop="pareto").command == "search"
    assert asked(after="nothing", units="sublayers").recipe["search"]["units"] == "sublayers"  # type: ignore[index,call-overload]


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"model": ""}, {"model"}),
        ({"drop": ""}, {"drop"}),
        ({"drop": "lots"}, {"drop"}),
        ({"protect": "second"}, {"protect"}),
        ({"sampler": "psoo"}, {"sampler"}),
        ({"sampler": "greedy", "drop": "pareto", "after": "nothing"}, {"sampler"}),
        ({"objective": "kll"}, {"objective"}),
        ({"objective": "task"}, {"task"}),
        ({"task": "hellaswag"}, {"task"}),
        ({"tokens": "4", "trials": "0", "seed": "-1"}, {"tokens", "trials", "seed"}),
        ({"trials": "1e9"}, {"trials"}),
        ({"trials": "٣"}, {"trials"}),
        ({"after": "everything"}, {"after"}),
        ({"drop": "pareto"}, {"after"}),
        ({"units": "sublayers"}, {"after"}),
        ({"units": "neurons"}, {"units"}),
        ({"after": "heal", "finalists": "65"}, {"finalists"}),
        ({"after": "heal", "steps": "0"}, {"steps"}),
        ({"model": "a\0b"}, {"model"}),
    ],
)
def test_mistakes_are_placed_at_their_fields(fields: dict[str, str], wrong: set[str]) -> None:
    assert set(errors(**fields)) == wrong


def test_a_key_that_is_not_one_is_replaced() -> None:
    key = "0123456789abcdef" * 2
    assert Entered.of({"key": key}).key == key
    assert Entered.of({"key": "x" * 9000}).key != "x" * 9000
    assert Entered.of({"nosuch": "1"}).model == ""


def test_pasted_recipes() -> None:
    document: JsonObject = {"model": "tiny", "search": {"drop": 4}}
    request = request_of_yaml(Entered(command="search", trials="9"), document)
    assert (request.command, request.trials) == ("search", 9)
    for entered, wrong in ((Entered(command="rm"), "command"), (Entered(trials="x"), "trials")):
        with pytest.raises(FieldsError) as raised:
            request_of_yaml(entered, document)
        assert set(raised.value.errors) == {wrong}
    with pytest.raises(FieldsError, match="unknown sampler"):
        request_of_yaml(Entered(), {"model": "tiny", "search": {"drop": 4, "sampler": "psoo"}})


def test_a_recipe_is_shown_without_its_defaults() -> None:
    recipe = Recipe(model="tiny", drop="2").document()
    assert recipe_text(recipe) == "model: tiny\nsearch:\n  drop: '2'\n"
    assert recipe_text({"newer": {"key": 1}}) == "newer:\n  key: 1\n"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("`sampler` greedy cannot search `drop` pareto: use pso", "sampler"),
        ("population = 'x': it must be a valid integer", "drop"),
        ("search.drop: pareto gives a front, not one best", "drop"),
        ("unknown model 'x': known: tiny", "model"),
        ("unknown text in data.calibration 'x'", "calibration"),
        ("study = 'a/b': a name begins with a letter", "study"),
        ("unknown text in recover.heal.data 'x'", "healing_text"),
        ("steps = 0: it must be at least 1", "steps"),
        ("task hellaswag reads its documents from the hub", "task"),
    ],
)
def test_the_field_of_a_message(message: str, field: str) -> None:
    assert field_of(message) == field
