"""Properties that every move must have, whatever the algorithm."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesearch.swarm.moves import (
    Algorithm,
    Mask,
    Swarm,
    first_generation,
    generator,
    random_subset,
    swap,
    toward,
    unseen,
)
from prunesearch.swarm.pso import ParticleSwarm
from prunesearch.swarm.woa import Whales

seeds = st.integers(0, 2**32)


def some_swarm(seed: int, d: int = 12, k: int = 4, population: int = 5) -> tuple[Swarm, Mask]:
    rng = np.random.default_rng(seed)
    free = np.ones(d, dtype=bool)
    free[rng.choice(d, 2, replace=False)] = False
    positions = np.stack([random_subset(free, k, rng) for _ in range(population)])
    bests = np.stack([random_subset(free, k, rng) for _ in range(population)])
    losses = rng.random(population)
    return Swarm(positions, rng.random((population, d)) * free, losses + 1, bests, losses, 1 + seed % 25), free


@pytest.mark.parametrize("algorithm", [ParticleSwarm(), Whales()], ids=lambda a: a.name)
@given(seed=seeds)
def test_a_move_keeps_the_budget_and_spares_protected_units(algorithm: Algorithm, seed: int) -> None:
    swarm, free = some_swarm(seed)
    for particle in range(len(swarm.X_PD)):
        before = swarm.X_PD.copy()
        position, velocity = algorithm.move(swarm, particle, free, generator(seed, 1, particle))
        assert position.sum() == 4
        assert not position[~free].any()
        assert velocity.shape == free.shape
        assert ((velocity >= 0) & (velocity <= 1)).all()
        assert (before == swarm.X_PD).all(), "a move must not change the swarm it reads"
        again, _ = algorithm.move(swarm, particle, free, generator(seed, 1, particle))
        assert (position == again).all()


@given(seed=seeds, count=st.integers(0, 6))
def test_swap_exchanges_exactly_as_many_as_it_can(seed: int, count: int) -> None:
    swarm, free = some_swarm(seed)
    x = swarm.X_PD[0]
    y = swap(x, free, count, np.random.default_rng(seed))
    assert (x & ~y).sum() == (y & ~x).sum() == min(count, 4, int((free & ~x).sum()))


@given(seed=seeds)
def test_toward_ends_between_the_two(seed: int) -> None:
    swarm, _ = some_swarm(seed)
    x, goal = swarm.X_PD[0], swarm.X_PD[1]
    rng = np.random.default_rng(seed)
    y = toward(x, goal, 0.5, rng)
    assert y.sum() == x.sum()
    assert not (y & ~(x | goal)).any()
    assert y[x & goal].all()
    assert (toward(x, goal, 1.0, rng) == goal).all()
    assert (toward(x, goal, 0.0, rng) == x).all()


def test_the_leader_is_the_lowest_slot_of_the_best() -> None:
    swarm, _ = some_swarm(0)
    tied = Swarm(swarm.X_PD, swarm.V_PD, swarm.loss_P, swarm.best_X_PD, np.array([2.0, 1.0, 1.0, 3.0, 4.0]), 1)
    assert (tied.leader_D == swarm.best_X_PD[1]).all()


def test_pso_with_nothing_to_follow_stays_put() -> None:
    """With both bests at the particle, no velocity and no turbulence, S-PSO has nothing to move by."""
    swarm, free = some_swarm(3)
    x = swarm.X_PD[:1]
    alone = Swarm(x, np.zeros((1, 12)), np.ones(1), x, np.ones(1), 1)
    position, velocity = ParticleSwarm(turbulence=0.0).move(alone, 0, free, generator(0, 1, 0))
    assert (position == x[0]).all()
    assert not velocity.any()


def test_every_unseen_subset_is_found_before_any_repeats() -> None:
    free = np.ones(6, dtype=bool)
    seen: set[bytes] = set()
    for draw in range(math.comb(6, 2)):
        rng = generator(0, 0, draw)
        x = unseen(random_subset(free, 2, rng), free, seen, rng)
        assert x.tobytes() not in seen
        seen.add(x.tobytes())
    rng = generator(0, 1, 0)
    x = random_subset(free, 2, rng)
    assert (unseen(x, free, seen, rng) == x).all(), "nothing is left: the proposal comes back"


def test_generators_are_keyed_not_sequential() -> None:
    draws = {generator(s, g, p).random() for s in range(3) for g in range(3) for p in range(3)}
    assert len(draws) == 27
    starts = [first_generation(np.ones(9, dtype=bool), 3, 4, seed=5) for _ in range(2)]
    assert all((a == b).all() for a, b in zip(*starts, strict=True))
