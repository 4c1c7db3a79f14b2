"""A recipe in sections, and the earlier form without sections."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from prunesearch.config.data import DataSection
from prunesearch.config.flat import PLACES, is_flat
from prunesearch.config.identity import study_name
from prunesearch.config.model import ModelSection
from prunesearch.config.objective import ObjectiveSection, ScoreWeights
from prunesearch.config.recipe import Recipe
from prunesearch.config.recovery import EvaluationSection, HealRecipe, Recovery
from prunesearch.config.run_options import RunOptions
from prunesearch.config.search import SearchSection
from prunesearch.errors import InputError

# Recipes of the version before sections: as given, as stored, and their identities.
EARLIER = json.loads((Path(__file__).parent / "files" / "flat_recipes.json").read_text())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", EARLIER)
def test_a_recipe_of_an_earlier_version_is_the_same_recipe(name: str) -> None:
    earlier = EARLIER[name]
    made = Recipe(**earlier["given"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Recipe.of_stored(earlier["stored"]) == made
    assert json.dumps(made.identity(), sort_keys=True) == json.dumps(
        earlier["identity"], sort_keys=True
    )
    assert study_name(made) == earlier["study name"]
    assert Recipe(**earlier["portable"]) == made.portable()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_sections_objects_and_flat_settings_make_the_same_recipe() -> None:
    sections = Recipe(
        model={"path": "m", "dtype": "float32"},
        data={"tokens": 2048},
        objective={"name": "kl", "score_weights": "size=2"},
        search={"drop": 8, "encoding": "keys", "protect": [0, 5]},
    )
    objects = Recipe(
        model=ModelSection(path="m", dtype="float32"),
        data=DataSection(tokens=2048),
        objective=ObjectiveSection(score_weights=ScoreWeights(size=2)),
        search=SearchSection(drop="8", encoding="keys", protect="0,5"),
    )
    flat = Recipe(
        model="m",
        dtype="float32",
        tokens=2048,
        weights={"size": 2},
        drop="8",
        form="keys",
        protect=[0, 5],
    )
    assert sections == objects == flat
    assert Recipe(**json.loads(json.dumps(sections.document()))) == sections


def test_earlier_names_warn_in_code_and_not_when_they_were_stored() -> None:
    with pytest.warns(DeprecationWarning, match="form is called encoding now") as caught:
        made = Recipe(model="m", drop="2", form="keys")
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Recipe.of_stored({"model": "m", "drop": "2", "form": "keys"}) == made


def test_a_model_and_an_objective_may_be_one_text() -> None:
    made = Recipe(model="m", objective="perplexity", search={"drop": "8"})
    assert (made.model.path, made.objective.name) == ("m", "perplexity")
    assert (
        Recipe(model="m", objective={"task": "piqa"}, search={"drop": 1}).objective.name == "task"
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ({"search": {"drop": 8, "tokens": 5}}, "`tokens` belongs to section data, not search"),
        ({"search": {"drop": 8}, "tokens": 5}, "`tokens` belongs to section data: write data"),
        (
            {"search": {"drop": 8, "smapler": "pso"}},
            "section search 'smapler': did you mean 'sampl",
        ),
        ({"search": {"drop": 8, "form": "keys"}}, "`form` is now called encoding in section sea"),
        ({"search": {"drop": 8}, "serach": {}}, "recipe key 'serach': did you mean 'search'"),
        ({"search": 5}, "search = 5 is not a section"),
        ({"search": {}}, "drop is missing in section search: every recipe needs it"),
        ({"model": {}, "search": {"drop": 8}}, "path is missing in section model"),
        ({"model": {"path": "m"}, "drop": 2}, "`drop` belongs to section search: write search: d"),
        ({"search": {"drop": 8, 1: 3}}, "unknown key 1 in section search"),
        ({"drop": 8, "encoding": "set", "form": "keys"}, "form keys and encoding set contradict"),
        ({"drop": 8, "weights": "size=1", "score_weights": "size=2"}, "give score_weights only"),
        ({"search": {"drop": 8}, "trials": 3}, "'trials' is not part of a Recipe"),
        ({"search": {"drop": 8}, "data": {"limit": 3}}, "`limit` goes with `task` NAME"),
        (
            {"search": {"drop": "pareto"}, "objective": {"score_weights": {"size": 1}}},
            "`score_weights` go with one objective",
        ),
        ({"search": {"drop": "..8"}}, "would drop a single layer"),
        ({"search": {"drop": "pareto"}, "recover": {}}, "`recover` goes with whole blocks"),
        (
            {"search": {"drop": 8}, "recover": {"finalist": 5}},
            "recovery key 'finalist': did you me",
        ),
        ({"search": {"drop": 8}, "recover": {"heal": {"rank": 0}}}, "rank of at least 1"),
    ],
)
def test_sections_are_refused_in_one_line(sections: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        Recipe(**{"model": "m", **sections})
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)


def test_changes_are_validated() -> None:
    made = Recipe(model="m", search={"drop": "8"})
    changed = made.with_changes(seed=3, revision="main", encoding="slots")
    assert (changed.search.seed, changed.model.revision) == (3, "main")
    assert changed.search.encoding == "slots"
    assert changed.data == made.data
    with pytest.raises(InputError, match="goes with `sampler` pso or woa"):
        changed.with_changes(sampler="ga")


def test_the_recovery_is_part_of_a_recipe_and_not_of_a_study() -> None:
    recovered = Recipe(
        model="m",
        search={"drop": "8"},
        recover={"heal": {"data": "/home/me/x.txt"}, "evaluate": {"task_data": "d/e", "task": "t"}},
    )
    plain = Recipe(model="m", search={"drop": "8"})
    assert recovered.recover is not None
    assert recovered.identity() == plain.identity()
    assert study_name(recovered) == study_name(plain)
    assert recovered.search_only() == plain
    assert "recover" not in plain.document()
    portable = recovered.portable().recover
    assert portable is not None and portable.heal is not None and portable.evaluate is not None
    assert (portable.heal.data, portable.evaluate.task_data) == ("x.txt", "e")


def test_only_what_was_chosen_is_shown() -> None:
    made = Recipe(model="m", search={"drop": "8"}, data={"tokens": 64})
    assert made.chosen() == {"model": "m", "data": {"tokens": 64}, "search": {"drop": "8"}}
    assert Recipe(**made.chosen()) == made


def test_an_evaluation_reads_a_task_or_text() -> None:
    assert EvaluationSection(task="piqa", limit=5).objective == ObjectiveSection(task="piqa")
    assert EvaluationSection(task="piqa", limit=5).data == DataSection(limit=5, tokens=4096)
    assert EvaluationSection(tokens=64).objective.name == "perplexity"
    with pytest.raises(InputError, match="`limit` goes with `task`"):
        EvaluationSection(limit=5)


def test_no_two_sections_share_a_setting() -> None:
    fields = [
        *ModelSection.model_fields,
        *DataSection.model_fields,
        *ObjectiveSection.model_fields,
        *SearchSection.model_fields,
    ]
    assert len(fields) == len(set(fields))
    assert not set(RunOptions.model_fields) & {*fields, *PLACES}


def test_what_has_sections_is_not_flat() -> None:
    assert is_flat({"model": "m", "drop": 8})
    assert is_flat({"model": "m", "drop": 8, "recover": {}})
    assert not is_flat({"model": "m", "search": {"drop": 8}})
    assert not is_flat({"model": {"path": "m"}, "drop": 8})


@pytest.mark.parametrize(
    ("earlier", "present"), [("stream", "disk"), ("host", "cpu"), ("memory", "none")]
)
def test_an_earlier_name_for_where_weights_wait_is_read(earlier: str, present: str) -> None:
    with pytest.warns(DeprecationWarning, match="called offload now") as caught:
        assert RunOptions(weights_in=earlier).offload == present  # type: ignore[call-arg]
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning):
        options = RunOptions(weights_in=earlier, offload=present)  # type: ignore
    assert options.offload == present


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"weights_in": "host", "offload": "disk"}, "weights_in host and offload disk contradict"),
        ({"weights_in": ["host"]}, r"offload = \['host'\]: it must be"),
        ({"offload": "host"}, "`offload` host: write `offload` cpu"),
        ({"trails": 3}, "unknown RunOptions key 'trails': did you mean 'trials'"),
    ],
)
def test_run_options_are_refused(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        RunOptions(**values)


def test_a_recovery_needs_something_to_do() -> None:
    assert Recovery().heal == HealRecipe(loss="distill")
    with pytest.raises(InputError, match="nothing is recovered"):
        Recovery(compensate=False, heal=None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"drop": "6"}, "6 blocks"),
        ({"drop": "1"}, "1 block"),
        ({"drop": "25%", "units": "sublayers"}, "25% of sublayers"),
        ({"drop": "..8"}, "up to 8 blocks"),
        ({"drop": "pareto:30%"}, "up to 30% of blocks"),
        ({"space": "blocks+widths", "target": "15%"}, "15% by blocks+widths"),
    ],
)
def test_what_is_removed_has_a_unit(settings: dict[str, str], words: str) -> None:
    assert SearchSection.model_validate(settings).removed == words
