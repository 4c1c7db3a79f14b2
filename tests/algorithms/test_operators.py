"""Properties that every move must have, whatever the algorithm."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesearch.algorithms.base import Algorithm
from prunesearch.algorithms.evolution import Evolution
from prunesearch.algorithms.history import (
    History,
    Swarm,
    TrialOutcome,
    gather,
)
from prunesearch.algorithms.operators import (
    Mask,
    choose,
    generator,
    toward,
)
from prunesearch.algorithms.pso import ParticleSwarm
from prunesearch.algorithms.registry import REGISTRY, VECTOR_ENCODINGS
from prunesearch.algorithms.subset_constraints import SubsetConstraints
from prunesearch.algorithms.surrogate import Ranking
from prunesearch.algorithms.vector_swarms import VectorSwarm

seeds = st.integers(0, 2**32)
ALGORITHMS: list[Algorithm] = []
for _entry in REGISTRY.entries():
    if _entry.algorithm is not None:
        ALGORITHMS.append(_entry.algorithm())
    if _entry.vector_law is not None:
        ALGORITHMS += [VectorSwarm(_entry.vector_law, encoding) for encoding in VECTOR_ENCODINGS]


def some_units(rng: np.random.Generator, k_min: int, k_max: int, d: int = 12) -> SubsetConstraints:
    free = np.ones(d, dtype=bool)
    free[rng.choice(d, 2, replace=False)] = False
    return SubsetConstraints.of(free, k_min, k_max, np.arange(d) % 2)


def some_swarm(
    seed: int, algorithm: Algorithm, k_min: int = 4, k_max: int = 4, objectives: int = 1
) -> Swarm:
    """The swarm that three generations of an algorithm leave."""
    rng = np.random.default_rng(seed)
    constraints = some_units(rng, k_min, k_max)
    history = History(constraints.free_D.size, objectives)
    for generation in range(3):
        swarm = (
            gather(history.view(len(history)), constraints, generation, 5, rng)
            if generation
            else None
        )
        for particle in range(5):
            memory = {}
            if swarm is None:
                X = constraints.random_subsets(rng.integers(k_min, k_max + 1, 1), rng)[0]
            else:
                moves = algorithm.move(swarm, particle, 1, generator(seed, generation, particle))
                X, memory = moves.X_MD[0], moves.recall(0)
            failed = rng.random() < 0.1 and particle
            history.append(
                TrialOutcome(X, None if failed else tuple(rng.random(objectives)), memory=memory)
            )
    swarm = gather(history.view(len(history)), constraints, 3, 5, rng)
    assert swarm is not None
    return swarm


@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize(("k_min", "k_max"), [(4, 4), (1, 6)])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)
@settings(max_examples=25)  # each example makes a swarm of three generations
@given(seed=seeds)
def test_a_move_keeps_the_budget_and_spares_protected_units(
    algorithm: Algorithm, k_min: int, k_max: int, objectives: int, seed: int
) -> None:
    swarm = some_swarm(seed, algorithm, k_min, k_max, objectives)
    for particle in range(5):
        before = swarm.X_PD.copy()
        moves = algorithm.move(swarm, particle, 7, generator(seed, 3, particle))
        assert moves.X_MD.shape == (7, 12)
        assert ((moves.X_MD.sum(1) >= k_min) & (moves.X_MD.sum(1) <= k_max)).all()
        assert not moves.X_MD[:, ~swarm.constraints.free_D].any()
        assert all(
            np.isfinite(values).all() and len(values) == 7 for values in moves.memory.values()
        )
        assert (before == swarm.X_PD).all(), "a move must not change the swarm it reads"
        again = algorithm.move(swarm, particle, 7, generator(seed, 3, particle))
        assert (moves.X_MD == again.X_MD).all()


@given(seed=seeds, count=st.integers(0, 6))
def test_swap_exchanges_exactly_as_many_as_it_can(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    constraints = some_units(rng, 4, 4)
    x = constraints.random_subsets(np.full(3, 4), rng)
    y = constraints.swap(x, np.full(3, count), rng)
    for before, after in zip(x, y, strict=True):
        assert (before & ~after).sum() == (after & ~before).sum() == min(count, 4)
    assert not y[:, ~constraints.free_D].any()


@given(seed=seeds)
def test_toward_ends_between_the_two(seed: int) -> None:
    rng = np.random.default_rng(seed)
    constraints = some_units(rng, 1, 6)
    x, goal = (
        constraints.random_subsets(np.full(8, 3), rng),
        constraints.random_subsets(rng.integers(1, 7, 8), rng),
    )
    y = toward(x, goal, np.full(8, 0.5), rng)
    assert not (y & ~(x | goal)).any()
    assert y[x & goal].all()
    sizes = np.sort(np.stack([x.sum(1), goal.sum(1)]), axis=0)
    assert ((y.sum(1) >= sizes[0]) & (y.sum(1) <= sizes[1])).all()
    assert (toward(x, goal, np.ones(8), rng) == goal).all()
    assert (toward(x, goal, np.zeros(8), rng) == x).all()


@given(seed=seeds, size=st.integers(1, 6))
def test_resize_changes_nothing_but_the_size(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    constraints = some_units(rng, 1, 6)
    x = constraints.random_subsets(np.full(4, 3), rng)
    y = constraints.resize(x, np.full(4, size), rng)
    assert (y.sum(1) == size).all()
    assert (y <= x).all() if size <= 3 else (x <= y).all()


def test_choosing_is_uniform() -> None:
    rng = np.random.default_rng(0)
    picked = choose(np.ones((6000, 6), dtype=bool), np.full(6000, 2), rng)
    assert (picked.sum(1) == 2).all()
    assert np.allclose(picked.mean(0), 1 / 3, atol=0.03)


def test_evolution_swaps_within_a_kind() -> None:
    """EvoPress drops as many attention as MLP sublayers as it began with."""
    swarm = some_swarm(3, Evolution())
    parent = swarm.leader(0)
    moves = Evolution().move(swarm, 0, 200, np.random.default_rng(0))
    assert isinstance(swarm.constraints, SubsetConstraints)
    for kind in (0, 1):
        of_kind = swarm.constraints.group_D == kind
        assert (moves.X_MD[:, of_kind].sum(1) == parent[of_kind].sum()).all()
    changed = (moves.X_MD & ~parent).sum(1)
    assert set(changed.tolist()) == {1, 2, 3}
    assert (changed == 1).sum() > (changed == 3).sum(), "min(U, U) prefers small steps"


def test_pso_with_nothing_to_follow_stays_put() -> None:
    """With both bests at the particle, no velocity and no turbulence, S-PSO has nothing to move
    by.
    """
    constraints = SubsetConstraints.of(np.ones(12, dtype=bool), 4)
    history = History(12)
    x = constraints.random_subsets(np.array([4]), np.random.default_rng(3))[0]
    history.append(TrialOutcome(x, (1.0,)))
    alone = gather(history.view(1), constraints, 1, 1, np.random.default_rng(0))
    assert alone is not None
    moves = ParticleSwarm(turbulence=0.0).move(alone, 0, 3, generator(0, 1, 0))
    assert (x == moves.X_MD).all()
    assert not moves.memory["v"].any()


@pytest.mark.parametrize("sizes", [(2, 2), (1, 3)])
def test_every_unseen_subset_is_found_before_any_repeats(sizes: tuple[int, int]) -> None:
    constraints = SubsetConstraints.of(np.ones(6, dtype=bool), *sizes)
    assert (
        constraints.count
        == len(list(constraints.every_subset()))
        == sum(math.comb(6, k) for k in range(sizes[0], sizes[1] + 1))
    )
    seen: set[bytes] = set()
    for draw in range(constraints.count):
        rng = generator(0, 0, draw)
        x = constraints.unseen(constraints.random_subsets(np.array([2]), rng)[0], seen, rng)
        assert x.tobytes() not in seen
        seen.add(x.tobytes())
    rng = generator(0, 1, 0)
    x = constraints.random_subsets(np.array([2]), rng)[0]
    assert (constraints.unseen(x, seen, rng) == x).all(), "nothing is left: the proposal comes back"


def test_generators_are_keyed_not_sequential() -> None:
    draws = {
        generator(s, g, p, k).random()
        for s in range(3)
        for g in range(3)
        for p in range(3)
        for k in range(2)
    }
    assert len(draws) == 54


def first_subsets(
    constraints: SubsetConstraints, population: int, seed: int, block: int, ranking: Ranking | None
) -> Mask:
    return constraints.first_subsets(population, block, ranking, (), generator(seed, block, 0))


def counts(X: Mask) -> list[int]:
    return sorted(X.sum(0).tolist())


def test_the_first_subsets_use_every_unit_alike() -> None:
    constraints = SubsetConstraints.of(np.ones(9, dtype=bool), 3)
    X = first_subsets(constraints, 6, seed=5, block=0, ranking=None)
    assert counts(X) == [2] * 9
    assert (first_subsets(constraints, 6, seed=5, block=0, ranking=None) == X).all()
    assert (first_subsets(constraints, 6, seed=6, block=0, ranking=None) != X).any()
    spread = first_subsets(
        SubsetConstraints.of(np.ones(9, dtype=bool), 1, 8), 8, seed=5, block=0, ranking=None
    )
    assert sorted(spread.sum(1).tolist()) == list(range(1, 9)), (
        "where the size may vary, every size is tried"
    )


def test_a_ranking_starts_the_search_at_its_favourite() -> None:
    harm = np.array([9.0, 1.0, 8.0, 2.0, 7.0, 3.0])
    constraints = SubsetConstraints.of(np.array([True] * 5 + [False]), 2)
    X = first_subsets(constraints, 4, seed=0, block=0, ranking=Ranking(harm))
    assert np.flatnonzero(X[0]).tolist() == [1, 3]
    assert not X[:, 5].any()
    assert len({x.tobytes() for x in first_subsets(constraints, 8, 0, 1, Ranking(harm))}) > 3, (
        "later ones wander"
    )


def test_part_of_the_first_subsets_ignores_the_ranking() -> None:
    harm = np.exp(np.arange(20.0))
    constraints = SubsetConstraints.of(np.ones(20, dtype=bool), 4)
    X = first_subsets(constraints, 6, seed=1, block=0, ranking=Ranking(harm))
    other = first_subsets(constraints, 6, seed=1, block=0, ranking=Ranking(1.0 / harm))
    assert (X[0] != other[0]).any()
    assert (X[1::2] == other[1::2]).all()
    assert counts(X[1::2]) == [0] * 8 + [1] * 12, "these use many units"
