"""Recipes that were sent as text: what is refused before it costs time or memory."""

import pytest

from prunesearch.errors import InputError
from prunesearch.service.recipe_text import read_recipe


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x [1]\nb: *x", "references"),
        ("a: !!python/object/apply:os.system [id]", "not YAML"),
        ("a, " * 40_000, "larger than"),
        ("seed: 1" + "1" * 5000, "cannot be read"),
        # Numbers that Python reads, but refuses to write with their digits.
        ("seed: 0x" + "f" * 5000, "number"),
        ("seed: 1" + ":1" * 5000, "number"),
        ("seed: 1" + ":1" * 5000 + ".5", "cannot be read"),
        ("- " * 2000, "cannot be read"),
        ("when: 2001-99-99", "cannot be read"),
    ],
)
def test_texts_that_cost_much_or_hold_code_are_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as raised:
        read_recipe(text)
    assert len(str(raised.value)) < 300


def test_a_usual_recipe_is_read() -> None:
    assert read_recipe("model: a\nsearch: {drop: 2, seed: 9223372036854775807}") == {
        "model": "a",
        "search": {"drop": 2, "seed": 2**63 - 1},
    }
