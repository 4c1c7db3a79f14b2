"""What is read from a reply."""

import pytest

from prunesearch.samplers.llm.parsing import candidates_in

ONE = ("removed",)
TWO = ("mlp", "kv")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"candidates":[{"parents":[1,2],"removed":[3,7]},{"removed":[4,5]}]}', [(3, 7), (4, 5)]),
        ('{"removed":[3,7]}', [(3, 7)]),
        ('[{"removed":[3,7]},{"removed":[1]}]', [(3, 7), (1,)]),
        ("[3,7]", [(3, 7)]),
        ("[[3,7],[4,5]]", [(3, 7), (4, 5)]),
        ("Sure! Here is one: [3, 7]. Good luck.", [(3, 7)]),
        ('```json\n{"candidates":[{"removed":[3,7]}]}\n```', [(3, 7)]),
        ('{"removed":[3.0,7]}', [(3, 7)]),
        # A reply that was cut off gives its complete candidates.
        ('{"candidates":[{"parents":[9,8],"removed":[3,7]},{"parents":[1,2],"rem', [(3, 7)]),
        # A bracket in a text is not one.
        ('{"why":"}{]","removed":[3,7]}', [(3, 7)]),
    ],
)
def test_candidates_are_found(text: str, expected: list[tuple[int, ...]]) -> None:
    found, invalid = candidates_in(text, ONE, 8)
    assert [numbers["removed"] for numbers in found] == expected
    assert not invalid


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot help with that.",
        '{"removed":"3,7"}',
        '{"removed":[true,7]}',
        '{"removed":[3.5]}',
        '{"removed":[NaN]}',
        '{"removed":[1e999]}',
        "{\"removed\":[\"__import__('os').system('true')\"]}",
        '{"removed":{"0":3}}',
        '{"candidates":[null]}',
        "[" * 50_000,
        "{" * 50_000,
        '["' * 20_000,
        '{"removed":[' + "9" * 5000 + "]}",
        '{"parents":[3,4],"rem',
        "null",
        "7",
    ],
    ids=range(17),
)
def test_everything_else_is_one_invalid_reply(text: str) -> None:
    found, invalid = candidates_in(text, ONE, 8)
    assert not found
    assert invalid >= 1


def test_a_candidate_has_all_its_lists() -> None:
    found, invalid = candidates_in(
        '[{"mlp":[1,2],"kv":[0,0]},{"mlp":[1,2]},{"kv":[1]},[1,2]]', TWO, 8
    )
    assert found == [{"mlp": (1, 2), "kv": (0, 0)}]
    assert invalid == 3


def test_a_limited_number_is_read() -> None:
    text = str([[number] for number in range(50)])
    assert len(candidates_in(text, ONE, 6)[0]) == 6
