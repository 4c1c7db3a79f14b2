"""Section `llm` of a recipe."""

from typing import Any

import pytest

from prunesearch.config.llm import DECIDING, LLMSection
from prunesearch.config.recipe import Recipe
from prunesearch.errors import InputError
from prunesearch.llm.limits import Limits, Price
from prunesearch.samplers.llm.settings import ProposalSettings


def recipe(**llm: Any) -> Recipe:  # noqa: ANN401 (of the section)
    search = {"drop": "8", "sampler": "llm"}
    return Recipe(model="some/model", search=search, llm={"model": "m", **llm})


def test_a_recipe_without_the_section_is_stored_as_before() -> None:
    plain = Recipe(model="some/model", search={"drop": "8"})
    assert "llm" not in plain.document()
    assert Recipe.of_stored(plain.document()) == plain


def test_a_section_is_stored_and_read() -> None:
    given = recipe(url="https://host/v1", calls=5, price="2.5/10", cost=3)
    assert Recipe.of_stored(given.document()) == given
    assert given.llm.prices == Price(2.5, 10.0)
    assert given.llm.limits == Limits(calls=5, cost=3.0)
    assert given.chosen()["llm"]["calls"] == 5  # type: ignore[call-overload, index]


def test_flat_names_begin_with_that_of_the_section() -> None:
    flat = Recipe(model="some/model", drop="8", sampler="llm", llm_model="m", llm_candidates=2)
    assert flat == recipe(candidates=2)
    assert flat.model.path == "some/model"
    assert flat.with_changes(llm_candidates=4) == recipe(candidates=4)


def test_a_study_is_held_to_nothing_of_the_section() -> None:
    """The sampler stores what decides its proposals, with the content of a local model."""
    assert recipe(url="https://host/v1", temperature=1.5).identity() == recipe().identity()
    assert set(DECIDING) == set(ProposalSettings().stored())
    defaults = LLMSection()
    for name, value in ProposalSettings().stored().items():
        assert getattr(defaults, name) == value


def test_a_portable_recipe_names_no_address_and_no_folder() -> None:
    assert recipe(url="https://inner.example/v1").portable().llm == LLMSection(model="m")
    local = recipe(model="/home/me/optimizer.gguf").portable()
    assert local.llm == LLMSection(model="optimizer.gguf")


@pytest.mark.parametrize(
    ("llm", "expected"),
    [
        ({"price": "1/2/3"}, "`llm_price` '1/2/3' cannot be read"),
        ({"price": "-1/2"}, "a price is not negative"),
        ({"price": "nan/2"}, "a price is not negative"),
        ({"calls": -1}, "calls = -1: it must be at least 0"),
        ({"url": "host"}, "is not the URL of an endpoint"),
        ({"modle": "m"}, "did you mean 'model'"),
    ],
)
def test_what_cannot_be_used_is_refused(llm: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        recipe(**llm)
