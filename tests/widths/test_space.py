"""The space of widths: every projection meets the budget exactly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesearch.errors import InputError
from prunesearch.widths.shape import WidthShape
from prunesearch.widths.space import WidthSpace
from tests.support.width_shapes import SMOLLM2, TOTAL, N


def space(target: str, blocks: bool = False) -> WidthSpace:
    return WidthSpace.parse(SMOLLM2, target, TOTAL, 2, blocks=blocks)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    target=st.sampled_from(["5%", "20%", "40%", "26M", "50MiB"]),
    blocks=st.booleans(),
    random_ties=st.booleans(),
)
def test_projection_meets_the_budget(
    seed: int, target: str, blocks: bool, random_ties: bool
) -> None:
    found = space(target, blocks)
    rng = np.random.default_rng(seed)
    wanted_MG = rng.normal(0.5, 1.0, (4, found.n_genes)) * found.limit_G
    levels_MG = found.project(wanted_MG, rng if random_ties else None)
    assert levels_MG is not None
    assert (found.removed(levels_MG) == found.budget).all()
    assert (levels_MG >= 0).all() and (levels_MG <= found.limit_G).all()
    for levels_G in levels_MG:
        candidate = found.candidate(levels_G)
        assert (found.levels(candidate) == levels_G).all()
        assert found.from_params(found.to_params(candidate)) == candidate
        # A block that is kept keeps a step of channels and a group.
        for index in candidate.kept:
            assert candidate.channels[index] >= 64 and candidate.groups[index] >= 1


def test_what_meets_the_budget_is_not_changed() -> None:
    found = space("20%")
    levels_MG = found.project(np.random.default_rng(0).random((8, found.n_genes)) * found.limit_G)
    assert levels_MG is not None
    again_MG = found.project(levels_MG.astype(np.float64))
    assert again_MG is not None and (again_MG == levels_MG).all()


def test_budgets_are_near_the_targets() -> None:
    for target, wanted in (("20%", 0.2 * TOTAL), ("26M", 26e6), ("50MiB", 50 * 2**20 / 2)):
        assert abs(space(target).budget - wanted) < 64 * 1728 / 2


def test_attention_can_stay_whole_or_be_alike_if_mlps_can_hold_the_budget() -> None:
    for target in ("10%", "20%", "40%"):
        found = space(target)
        is_group_G = np.array([gene.attention for gene in found.genes])
        for level in (0, 1):
            wanted_G = np.where(is_group_G, level, 0.0)
            left = found.budget - wanted_G @ found.cost_G
            wanted_G[~is_group_G] = left / (N * 64 * 1728)
            levels_1G = found.project(wanted_G[None])
            assert levels_1G is not None and (levels_1G[0][is_group_G] == level).all()


def test_wanted_blocks_are_dropped() -> None:
    found = space("20%", blocks=True)
    wanted_1G = np.where(np.isin(found.block_G, (3, 7)), found.limit_G, 0.0)[None]
    levels_1G = found.project(wanted_1G)
    assert levels_1G is not None
    assert found.candidate(levels_1G[0]).dropped == (3, 7)


def test_if_no_block_is_wanted_as_many_are_dropped_as_the_budget_allows() -> None:
    found = space("20%", blocks=True)
    levels_1G = found.project(found.limit_G[None].astype(np.float64))
    assert levels_1G is not None and found.removed(levels_1G).tolist() == [found.budget]


@pytest.mark.parametrize("wanted", [[0, 0], [2, 4], [1, 4], [0.5, 3.9], [2, 0], [0, 4]])
def test_the_only_candidate_is_found_whatever_is_wanted(wanted: list[float]) -> None:
    """Block 0 is one attention, and block 1 one MLP. Without block 1 the budget cannot be met."""
    shape = WidthShape((0, 64), (2, 0), (96, 96), (3072, 3072), (96, 96), (3072, 3072), 32)
    found = WidthSpace(shape, 10752, (1, 16), blocks=True)
    assert found.size == 1
    for rng in (None, np.random.default_rng(0)):
        levels_1G = found.project(np.array([wanted]), rng)
        assert levels_1G is not None and levels_1G.tolist() == [[2, 3]]


def test_size_of_a_small_space() -> None:
    """Two blocks with 2 removable steps each, and 2 removable groups each that cost two steps."""
    shape = WidthShape((3, 3), (3, 3), (1, 1), (2, 2), (1, 1), (2, 2), 1)
    found = WidthSpace(shape, 2, (1, 1))
    # (2, 0), (1, 1), (0, 2) in channels, or one group of either block.
    assert found.size == 5


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("0%", "removes nothing"),
        ("150%", "less than 100%"),
        ("100%", "less than 100%"),
        ("200M", "less than all"),
        ("twenty", "cannot be read"),
        ("95%", "weights cannot be removed: at most"),
    ],
)
def test_bad_targets(target: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        space(target)


def test_align_must_divide_the_channels() -> None:
    with pytest.raises(InputError, match="`align` 100 does not divide the 1536 channels"):
        WidthSpace.parse(SMOLLM2, "20%", TOTAL, 2, align=100)
