import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.space import SearchSpace


def test_a_subset_knows_what_is_kept_and_how_it_is_spelled() -> None:
    subset = LayerSubset.of(6, [4, 1])
    assert (subset.dropped, subset.kept) == ((1, 4), (0, 2, 3, 5))
    assert (subset.text, subset.canonical) == ("1,4", "blocks/6:1,4")
    assert LayerSubset.of(6).text == "none"


@given(st.sets(st.integers(0, 11), max_size=11))
def test_text_is_read_back(dropped: set[int]) -> None:
    subset = LayerSubset.of(12, dropped)
    assert LayerSubset.parse(subset.text, 12) == subset


@pytest.mark.parametrize(
    ("dropped", "complaint"),
    [([6], "layers 0 to 5"), ([-1], "layers 0 to 5"), ([1, 1], "named once"), (range(6), "leaves none")],
)
def test_impossible_subsets_are_refused(dropped: list[int], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        LayerSubset.of(6, dropped)


def test_unreadable_layers_are_refused() -> None:
    with pytest.raises(InputError, match="3,7,12"):
        LayerSubset.parse("3;7", 30)


@given(st.integers(2, 40), st.data())
def test_params_are_read_back(n_layers: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n_layers - 1))
    space = SearchSpace(n_layers, k)
    candidate = LayerSubset.of(n_layers, data.draw(st.permutations(range(n_layers)))[:k])
    params = space.to_params(candidate)
    assert list(params) == sorted(params)
    assert sum(params.values()) == k
    assert space.from_params(params) == candidate


def test_percent_and_protection() -> None:
    space = SearchSpace.parse(30, "25%", "first:1,last:2,10-12,5")
    assert space.k == 8
    assert space.protected == {0, 28, 29, 10, 11, 12, 5}
    assert space.size == math.comb(23, 8)
    with pytest.raises(InputError, match="8 droppable"):
        space.from_params(space.to_params(LayerSubset.of(30, range(8))))


@pytest.mark.parametrize(
    ("drop", "protect", "complaint"),
    [
        ("0", "", "removes nothing"),
        ("-3", "", "removes nothing"),
        ("1%", "", "removes nothing"),
        ("6", "", "the largest is 5"),
        ("4", "first:2,last:1", "at most 3"),
        ("..6", "", "the largest is 5"),
        ("pareto:0", "", "removes nothing"),
        ("..", "", "cannot be read"),
        ("eight", "", "cannot be read"),
        ("2", "frist:1", "cannot be read"),
        ("2", "6", "layers 0 to 5"),
        ("2", "3-1", "layers 0 to 5"),
        ("2", "first:9", "only 6 layers"),
    ],
)
def test_impossible_spaces_are_refused(drop: str, protect: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        SearchSpace.parse(6, drop, protect)


def test_foreign_params_are_refused() -> None:
    with pytest.raises(InputError, match="no parameter drop_00"):
        SearchSpace(6, 2).from_params({"x": 1})
