"""Moves on widths: whatever an algorithm does, every candidate removes exactly the budget."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesearch.algorithms.base import Algorithm
from prunesearch.algorithms.gaussian_process import normal_scores
from prunesearch.algorithms.history import History, TrialOutcome
from prunesearch.algorithms.operators import Mask, Real, generator
from prunesearch.algorithms.planner import Planner, Preselection
from prunesearch.algorithms.registry import REGISTRY
from prunesearch.algorithms.surrogate import Ranking
from prunesearch.algorithms.vector_swarms import VectorSwarm
from prunesearch.algorithms.width_constraints import WidthConstraints
from prunesearch.algorithms.width_levels import levels_of
from prunesearch.widths.shape import WidthShape
from prunesearch.widths.space import WidthSpace
from tests.support.width_shapes import SMOLLM2, TOTAL

SMALL = WidthShape((3, 3), (3, 3), (1, 1), (2, 2), (1, 1), (2, 2), 1)
"""Two blocks with 2 removable channels and 2 removable groups each; a group costs 2 channels."""
ALGORITHMS: list[Algorithm] = []
for _entry in REGISTRY.entries():
    if _entry.algorithm is not None and not _entry.no_widths:
        ALGORITHMS.append(_entry.algorithm())
    if _entry.vector_law is not None:
        ALGORITHMS.append(VectorSwarm(_entry.vector_law, "keys"))


def constraints(blocks: bool = False, target: str = "20%") -> WidthConstraints:
    return WidthConstraints(WidthSpace.parse(SMOLLM2, target, TOTAL, 2, blocks=blocks))


def loss(known: WidthConstraints, X_D: Mask) -> float:
    """Removing from a layer costs more in later layers, and more for each further level."""
    levels_G = levels_of(known.space, X_D[None])[0] / known.space.limit_G
    return float((levels_G**2) @ (1.0 + known.space.block_G))


@pytest.mark.parametrize("blocks", [False, True], ids=["widths", "blocks+widths"])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)
def test_every_proposal_meets_the_budget_and_is_new(algorithm: Algorithm, blocks: bool) -> None:
    known = constraints(blocks)
    history = History(known.space.n_units)
    planner = Planner(algorithm, known, 1, 5, Preselection(proposals=8, rounds=2))
    seen: set[bytes] = set()
    for generation in range(4):
        view = history.view(len(history))
        for X_D, memory in planner.propose(view, generation, range(5), seen):
            assert known.holds(X_D)
            assert sum(values.size for values in memory.values()) <= 2 * known.space.n_genes
            history.append(TrialOutcome(X_D, (loss(known, X_D),), memory=memory))
    assert len(seen) == 20


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), blocks=st.booleans(), target=st.sampled_from(["5%", "40%"]))
def test_operators_meet_the_budget(seed: int, blocks: bool, target: str) -> None:
    known = constraints(blocks, target)
    rng = np.random.default_rng(seed)
    X_MD = known.random_subsets(np.ones(6, dtype=np.intp), rng)
    moved_MD = known.swap(X_MD, rng.integers(0, 5, 6), rng)
    around_MD = known.neighbours(X_MD[0], 12, rng)
    repaired_MD = known.repaired(rng.random((6, known.space.n_units)) < rng.random(), rng)
    for made_MD in (X_MD, moved_MD, around_MD, repaired_MD):
        assert all(known.holds(X_D) for X_D in made_MD)
    # What is stored decodes to the same candidate.
    assert (known.from_keys(known.keys(X_MD[0])[None], rng)[0] == X_MD[0]).all()
    assert (known.repaired(X_MD, rng) == X_MD).all()


def test_random_candidates_differ_widely() -> None:
    known = constraints()
    X_MD = known.random_subsets(np.ones(64, dtype=np.intp), np.random.default_rng(0))
    share_MG = levels_of(known.space, X_MD) / known.space.limit_G
    assert share_MG.std(axis=0).min() > 0.1
    attention_G = np.array([gene.attention for gene in known.space.genes])
    assert share_MG[:, attention_G].mean(axis=1).std() > 0.1, "some keep attention, some do not"


def test_dropped_blocks_vary() -> None:
    known = constraints(blocks=True, target="30%")
    X_MD = known.random_subsets(np.ones(64, dtype=np.intp), np.random.default_rng(0))
    counts = {len(known.space.with_units(np.flatnonzero(X_D)).dropped) for X_D in X_MD}
    assert {0, 3, 6} <= counts
    moved_MD = known.swap(X_MD, np.ones(64, dtype=np.intp), np.random.default_rng(1))
    moved = {len(known.space.with_units(np.flatnonzero(X_D)).dropped) for X_D in moved_MD}
    assert len(moved) > 3


@pytest.mark.parametrize("blocks", [False, True])
def test_a_small_space_is_searched_completely(blocks: bool) -> None:
    known = WidthConstraints(WidthSpace(SMALL, 2, (1, 1), blocks=blocks))
    every = list(known.every_subset())
    assert len(every) == known.count == 5
    assert all(known.holds(X_D) for X_D in every)
    seen: set[bytes] = set()
    for draw in range(5):
        X_D = known.unseen(every[0], seen, generator(0, 0, draw))
        assert X_D.tobytes() not in seen
        seen.add(X_D.tobytes())
    assert (known.unseen(every[0], seen, generator(0, 1, 0)) == every[0]).all()


def test_size_counts_dropped_blocks() -> None:
    """A budget of 9 is a whole block, or 2 channels and 2 groups of one and more of the other."""
    space = WidthSpace(SMALL, 9, (1, 1), blocks=True)
    known = WidthConstraints(space)
    assert space.size == len(list(known.every_subset()))


def test_the_cheapest_come_first() -> None:
    known = constraints()
    harm_D = np.random.default_rng(3).random(known.space.n_units)
    # The last level of a gene costs most, as in an order by importance.
    for start, limit in zip(known.space.first_unit_G, known.space.limit_G, strict=True):
        harm_D[start : start + limit].sort()
    walk = known.by_total(harm_D)
    found = [next(walk) for _ in range(40)]
    totals = [float(harm_D[X_D].sum()) for X_D in found]
    assert len({X_D.tobytes() for X_D in found}) == 40
    random_MD = known.random_subsets(np.ones(200, dtype=np.intp), np.random.default_rng(0))
    assert max(totals) < min(float(harm_D[X_D].sum()) for X_D in random_MD)


def fitted(known: WidthConstraints, X_MD: Mask, ranking: Ranking | None) -> tuple[float, Real]:
    losses = np.array([loss(known, X_D) for X_D in X_MD])
    model = known.surrogate(X_MD[:60], normal_scores(losses[:60]), ranking)
    predicted = model.predict(X_MD[60:])[0]
    return float(np.corrcoef(predicted, np.log(losses[60:]))[0, 1]), predicted


def test_the_surrogate_learns_what_matters() -> None:
    known = constraints()
    X_MD = known.random_subsets(np.ones(260, dtype=np.intp), np.random.default_rng(0))
    without, _ = fitted(known, X_MD, None)
    assert without > 0.7
    right_D = (1.0 + known.space.block_G[known.space.gene_D]).astype(np.float64)
    assert fitted(known, X_MD, Ranking(right_D))[0] > without
