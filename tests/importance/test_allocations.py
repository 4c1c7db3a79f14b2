"""Fixed allocations against their formulas, and that all meet the budget of any space."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesearch.errors import UnknownNameError
from prunesearch.importance.allocations.atp import largest_beta, ramp
from prunesearch.importance.allocations.flap_global import standardised
from prunesearch.importance.allocations.owl import rates as owl_rates
from prunesearch.importance.allocations.registry import REGISTRY, allocate, fixed_allocations
from prunesearch.importance.layer_statistics import LayerStatistics
from prunesearch.importance.rates import levels_of_rates, sizes_of_blocks
from prunesearch.widths.layer_widths import LayerWidths
from prunesearch.widths.shape import WidthShape
from prunesearch.widths.space import WidthSpace

L = 10
CHANNEL, GROUP = 96, 3072  # weights of a channel and of a group


def shape_of(channels: tuple[int, ...], groups: tuple[int, ...]) -> WidthShape:
    n = len(channels)
    return WidthShape(
        channels, groups, (CHANNEL,) * n, (GROUP,) * n, (CHANNEL,) * n, (GROUP,) * n, 32
    )


def space_of(target: str, protected: frozenset[int] = frozenset()) -> WidthSpace:
    shape = shape_of((256,) * L, (4,) * L)
    return WidthSpace.parse(shape, target, shape.weights, 4, align=16, protected=protected)


def layer(seed: int, channels: int = 256, groups: int = 4) -> LayerStatistics:
    rng = np.random.default_rng(seed)
    return LayerStatistics(
        float(rng.uniform(0.02, 0.5)),
        float(rng.uniform(0.0, 0.03)),
        np.sort(rng.exponential(size=channels).astype(np.float32))[::-1],
        np.sort(rng.exponential(size=groups).astype(np.float32))[::-1],
    )


LAYERS = [layer(seed) for seed in range(L)]


def removed_of_blocks(candidate: LayerWidths) -> list[int]:
    return [
        (256 - channels) * CHANNEL + (4 - groups) * GROUP
        for channels, groups in zip(candidate.channels, candidate.groups, strict=True)
    ]


def one(name: str, space: WidthSpace) -> LayerWidths:
    (found,) = allocate(name, space, LAYERS)
    return found.candidate


@pytest.mark.parametrize("target", ["10%", "20%", "40%"])
def test_uniform_removes_the_same_of_every_block(target: str) -> None:
    space = space_of(target)
    removed = removed_of_blocks(one("uniform", space))
    assert sum(removed) == space.budget
    # Rounding to a step of channels is all that differs.
    assert max(removed) - min(removed) <= 16 * CHANNEL
    groups = set(one("uniform", space).groups)
    assert len(groups) == 1, "all attentions are alike"


def test_uniform_mlp_leaves_attention_whole_while_mlps_can_hold_the_budget() -> None:
    candidate = one("uniform-mlp", space_of("40%"))
    assert set(candidate.groups) == {4}
    assert max(candidate.channels) - min(candidate.channels) <= 16
    full = one("uniform-mlp", space_of("80%"))
    assert set(full.channels) == {16}
    assert set(full.groups) == {1, 2}


def test_rounding_a_group_is_made_up_for_by_the_mlp() -> None:
    space = space_of("20%")
    sizes = sizes_of_blocks(space)
    rates_L = np.linspace(0.1, 0.3, L)
    levels_G = levels_of_rates(space, rates_L)
    removed_L = np.bincount(space.block_G, levels_G * space.cost_G)
    np.testing.assert_allclose(removed_L, rates_L * sizes.size_L)
    groups = levels_G[[gene.attention for gene in space.genes]]
    np.testing.assert_array_equal(groups, np.ceil(rates_L * 4 - 0.5))


def test_atp_is_the_papers_progression() -> None:
    # S = 0.3 of 10 blocks: beta is at most 2 * 0.3 / 9, and rates go from 0 to 0.6.
    assert largest_beta(0.3, 10) == pytest.approx(0.6 / 9)
    assert largest_beta(0.7, 10) == pytest.approx(0.6 / 9)
    assert largest_beta(0.3, 1) == 0.0
    sizes = sizes_of_blocks(space_of("30%"))
    rates_L = ramp(sizes, 1.0)
    np.testing.assert_allclose(np.diff(rates_L), largest_beta(sizes.rate, 10), rtol=1e-6)
    assert rates_L[0] == pytest.approx(0.0, abs=1e-9)
    assert rates_L.mean() == pytest.approx(sizes.rate)
    names = [found.name for found in allocate("atp", space_of("30%"), LAYERS)]
    assert names == ["atp-0.25", "atp-0.50", "atp-0.75", "atp-1.00"]
    steepest = removed_of_blocks(allocate("atp", space_of("30%"), LAYERS)[-1].candidate)
    assert steepest[0] < steepest[4] < steepest[9]


def test_owl_is_its_codes_formula() -> None:
    outliers = np.array([0.01, 0.02, 0.05])
    # Scaled to [0, 0.16]: 0, 0.04, 0.16, with mean 0.2 / 3.
    expected = 0.3 - np.array([0.0, 0.04, 0.16]) + 0.2 / 3
    np.testing.assert_allclose(owl_rates(outliers, 0.3), expected)
    np.testing.assert_allclose(owl_rates(np.full(4, 0.01), 0.3), 0.3)
    removed = removed_of_blocks(one("owl", space_of("40%")))
    outliers_L = [found.outlier_share for found in LAYERS]
    assert int(np.argmax(outliers_L)) in np.flatnonzero(np.array(removed) == min(removed))


def test_flap_global_has_one_threshold_for_standardised_scores() -> None:
    np.testing.assert_allclose(standardised(np.array([1.0, 2.0, 3.0])), [-1.0, 0.0, 1.0])
    assert standardised(np.full(3, 0.5)).tolist() == [0.0, 0.0, 0.0]
    space = space_of("30%")
    candidate = one("flap-global", space)
    # Every unit that is removed has a smaller score than every unit that is kept, but for the
    # rounding to steps.
    kept, removed = [], []
    for found, width in zip(LAYERS, candidate.channels, strict=True):
        scores = standardised(found.channel_scores.astype(np.float64))
        kept.append(scores[max(width - 16, 0)])
        removed.append(scores[min(width + 16, 255)])
    assert max(removed) <= min(kept)


def test_importance_removes_more_of_what_does_less() -> None:
    (candidate, of_mlps) = [f.candidate for f in allocate("importance", space_of("30%"), LAYERS)]
    assert set(of_mlps.groups) == {4}
    influence = np.array([found.influence for found in LAYERS])
    removed = np.array(removed_of_blocks(candidate))
    order = np.argsort(influence)
    assert (np.diff(removed[order]) <= 16 * CHANNEL).all()
    assert removed[order[0]] > 2 * removed[order[-1]]
    idle = [LayerStatistics(0.0, 0.0, f.channel_scores, f.group_scores) for f in LAYERS]
    found = allocate("importance", space_of("30%"), idle)[0]
    assert max(removed_of_blocks(found.candidate)) - min(removed_of_blocks(found.candidate)) < 2500


def test_protected_blocks_stay_whole() -> None:
    for found in fixed_allocations(space_of("30%", frozenset({0, 9})), LAYERS):
        assert found.candidate.channels[0] == found.candidate.channels[9] == 256
        assert found.candidate.groups[0] == found.candidate.groups[9] == 4


def test_all_allocations_are_listed_once() -> None:
    assert REGISTRY.names() == [
        "uniform", "uniform-mlp", "atp", "owl", "flap-global", "importance"
    ]  # fmt: skip
    found = fixed_allocations(space_of("30%"), LAYERS)
    assert found[0].name == "uniform"
    assert len({each.candidate for each in found}) == len(found) >= 8
    with pytest.raises(UnknownNameError, match="did you mean 'owl'"):
        allocate("owls", space_of("30%"), LAYERS)


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(
        st.tuples(st.sampled_from([0, 32, 64, 96]), st.sampled_from([0, 1, 2, 3])),
        min_size=2,
        max_size=7,
    ),
    share=st.floats(0.02, 0.9),
    seed=st.integers(0, 2**32 - 1),
    blocks=st.booleans(),
)
def test_every_allocation_meets_the_budget_of_any_model(
    widths: list[tuple[int, int]], share: float, seed: int, blocks: bool
) -> None:
    channels = tuple(width for width, _ in widths)
    groups = tuple(count for _, count in widths)
    shape = shape_of(channels, groups)
    layers = [layer(seed + i, *width) for i, width in enumerate(widths)]
    try:
        space = WidthSpace.parse(
            shape, f"{share * 100:.2f}%", max(shape.weights, 1), 4, align=16, blocks=blocks
        )
    except ValueError:
        return  # no layer can be narrowed, or not as much
    for found in fixed_allocations(space, layers):
        assert space.count(found.candidate) == space.budget
        levels_G = space.levels(found.candidate)
        assert (levels_G >= 0).all()
        assert (levels_G <= space.limit_G).all()
        assert found.candidate.kept
        assert [each.candidate for each in allocate(found.entry, space, layers)].count(
            found.candidate
        )
