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
    [
        ([6], "layers 0 to 5"),
        ([-1], "layers 0 to 5"),
        ([1, 1], "named once"),
        (range(6), "leaves none"),
    ],
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


def test_blocks_go_in_whole_periods() -> None:
    space = SearchSpace.parse(14, "8", "0,13", period=4)
    assert (space.n_units, space.k, space.droppable) == (3, 2, (1, 2))
    assert space.param_names == ("drop_00-03", "drop_04-07", "drop_08-11")
    candidate = space.candidate((1, 2))
    assert candidate.dropped == tuple(range(4, 12)), "the two blocks that are left over stay"
    assert space.from_params(space.to_params(candidate)) == candidate
    assert SearchSpace.parse(14, "pareto", "0", period=4).k == 2
    with pytest.raises(InputError, match="a multiple of 4, such as 8"):
        SearchSpace.parse(14, "9", period=4)


def test_foreign_params_are_refused() -> None:
    with pytest.raises(InputError, match="no parameter drop_00"):
        SearchSpace(6, 2).from_params({"x": 1})


def test_sublayers_have_one_spelling() -> None:
    subset = LayerSubset.parse("7a, 3,12m", 20)
    assert (subset.dropped, subset.attention, subset.mlp) == ((3,), (7,), (12,))
    assert subset.text == "3,7a,12m"
    assert LayerSubset.parse(subset.text, 20) == subset
    assert LayerSubset.of(20, (), attention=(5, 2), mlp=(5,)) == LayerSubset(
        20, (5,), attention=(2,)
    )
    assert LayerSubset.of(20, (5,), attention=(5,)) == LayerSubset(20, (5,)), (
        "a dropped block has no attention left"
    )
    assert not subset.whole_blocks
    for wrong in ("7b", "a7", "3,,4"):
        with pytest.raises(InputError, match="write indices with commas"):
            LayerSubset.parse(wrong, 20)
    with pytest.raises(InputError, match="layers 0 to 19"):
        LayerSubset(20, (), mlp=(20,))


@given(st.integers(0, 2**16 - 1))
def test_sublayer_candidates_and_params_are_two_spellings(bits: int) -> None:
    space = SearchSpace(8, 15, frozenset(), "up to", "sublayers")
    units = [unit for unit in range(16) if bits >> unit & 1]
    if not 1 <= len(units) <= 15:
        return
    candidate = space.candidate(units)
    params = space.to_params(candidate)
    assert [unit for unit, name in enumerate(space.param_names) if params[name]] == units
    assert space.from_params(params) == candidate
    assert space.count(candidate) == len(units)


def test_budgets() -> None:
    up_to = SearchSpace.parse(12, "..25%", "first:1")
    assert (up_to.k, up_to.k_min, up_to.budget) == (3, 1, "up to")
    assert up_to.size == 11 + 55 + 165
    everything = SearchSpace.parse(12, "pareto", "0-1")
    assert (everything.k, everything.k_min, everything.budget) == (10, 1, "pareto")
    assert SearchSpace.parse(12, "pareto").k == 11, "one layer stays"
    halves = SearchSpace.parse(12, "50%", "last:1", "sublayers")
    assert (halves.k, halves.n_units, len(halves.droppable)) == (12, 24, 22)
    assert halves.param_names[:3] == ("drop_00_attn", "drop_00_mlp", "drop_01_attn")
    assert SearchSpace.parse(12, "pareto", "last:1", "sublayers").k == 22
    with pytest.raises(InputError, match="up to 3 droppable"):
        up_to.from_params(up_to.to_params(LayerSubset.of(12, [1, 2, 3, 4])))


def test_a_space_speaks_of_its_argument_and_the_command_of_its_option() -> None:
    with pytest.raises(InputError, match=r"^k = 6 leaves no layer"):
        SearchSpace(6, 6)
    with pytest.raises(InputError, match=r"^`drop` 150% leaves no layer: the model has 6 layers"):
        SearchSpace.parse(6, "150%")
