"""The moves of a swarm over real vectors, as a surrogate chooses among them."""

import numpy as np

from prunesearch.algorithms.base import VectorState
from prunesearch.algorithms.operators import Real
from prunesearch.algorithms.pso import ParticleVectors
from prunesearch.algorithms.vector_model import Evaluated
from prunesearch.algorithms.vector_planner import VectorPlan, region
from prunesearch.algorithms.woa import WhaleVectors


def _plan(
    law: ParticleVectors | WhaleVectors, evaluated: Evaluated, generation: int = 3
) -> VectorPlan:
    x_PD = evaluated.x_ND[-10:]
    best_D = evaluated.x_ND[int(np.argmin(evaluated.value_N))]
    states = [VectorState(x_D, np.zeros(x_D.size), x_D, best_D, x_PD, generation) for x_D in x_PD]
    return VectorPlan(law, states, evaluated, best_D, 0.2, 7, generation, _same)


def _same(x_MD: Real) -> Real:
    return x_MD


def _evaluated(limits: int = 0) -> Evaluated:
    """Forty random trials of a bowl; with a limit, the better half of the box is forbidden."""
    x_ND = np.random.default_rng(0).random((40, 3))
    value_N = ((x_ND - 0.3) ** 2).sum(axis=1)
    limit_NC = np.tile(0.5 - x_ND[:, :1], (1, limits))
    return Evaluated(x_ND, value_N, limit_NC, np.zeros((0, 3)))


def test_the_region_grows_with_success_and_shrinks_without() -> None:
    assert region([3.0]) == region([]) == 0.4
    assert region([3.0, 2.0, 1.0]) == 0.8
    assert region([3.0, 2.0, 1.0, 0.5, 0.4]) == 0.8, "it is never larger than the box"
    assert region([3.0, 3.0, 3.0]) == 0.2
    assert region([3.0, 3.0, 2.0, 2.0]) == 0.4
    assert region([1.0] * 60) == region([1.0] * (60 - 44)), "it starts again when it is tiny"


def test_most_moves_are_better_than_what_was_known_and_one_is_the_laws() -> None:
    evaluated = _evaluated()
    for law in (ParticleVectors(), WhaleVectors()):
        plan = _plan(law, evaluated)
        chosen_PD = np.stack([plan.choose(slot).x_D for slot in range(10)])
        value_P = ((chosen_PD - 0.3) ** 2).sum(axis=1)
        assert (value_P < evaluated.value_N.min()).sum() >= 4
        assert len(np.unique(np.round(chosen_PD, 6), axis=0)) == 10
        assert ((chosen_PD >= 0.0) & (chosen_PD <= 1.0)).all()
        assert ("v" in plan.choose(0).memory) == isinstance(law, ParticleVectors)


def test_a_slot_does_not_depend_on_which_was_asked_for_first() -> None:
    forward, backward = (_plan(ParticleVectors(), _evaluated()) for _ in range(2))
    last_D = backward.choose(9).x_D
    for slot in range(9):
        np.testing.assert_array_equal(forward.choose(slot).x_D, backward.choose(slot).x_D)
    np.testing.assert_array_equal(forward.choose(9).x_D, last_D)


def test_moves_keep_the_constraints_that_were_learnt() -> None:
    plan = _plan(ParticleVectors(), _evaluated(limits=1))
    chosen_PD = np.stack([plan.choose(slot).x_D for slot in range(10)])
    assert (chosen_PD[:, 0] >= 0.49).sum() >= 9


def test_a_place_where_trials_fail_is_avoided() -> None:
    evaluated = _evaluated()
    near = ((evaluated.x_ND - 0.3) ** 2).sum(axis=1) < 0.15
    rng = np.random.default_rng(1)
    failed_FD = np.clip(0.3 + 0.1 * rng.standard_normal((20, 3)), 0.0, 1.0)
    worked = Evaluated(
        evaluated.x_ND[~near], evaluated.value_N[~near], evaluated.limit_NC[~near], failed_FD
    )
    plan = _plan(ParticleVectors(), worked)
    chosen_PD = np.stack([plan.choose(slot).x_D for slot in range(10)])
    assert (np.abs(chosen_PD - 0.3).max(axis=1) < 0.05).sum() <= 1
