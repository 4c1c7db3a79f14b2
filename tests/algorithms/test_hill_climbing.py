"""Hill climbing goes on from the climb's best subset, and starts again when nothing is left."""

import numpy as np

from prunesearch.algorithms.hill_climbing import HillClimbing
from prunesearch.algorithms.history import History, Swarm, TrialOutcome, gather
from prunesearch.algorithms.operators import Real
from prunesearch.algorithms.subset_constraints import SubsetConstraints

CONSTRAINTS = SubsetConstraints.of(np.ones(5, dtype=bool), 2)


def swarm_of(*trials: tuple[tuple[int, ...], float, int], generation: int) -> Swarm:
    """A swarm of two particles from subsets, their losses, and the generation of their climb."""
    history = History(5)
    for subset, loss, climb in trials:
        memory: dict[str, Real] = {"climb": np.array([float(climb)])}
        history.append(TrialOutcome(np.isin(np.arange(5), subset), (loss,), memory=memory))
    swarm = gather(history.view(len(history)), CONSTRAINTS, generation, 2, np.random.default_rng(0))
    assert swarm is not None
    return swarm


def test_moves_are_new_neighbours_of_the_best_subset() -> None:
    swarm = swarm_of(((0, 1), 1.0, 0), ((0, 2), 2.0, 0), generation=1)
    moves = HillClimbing().move(swarm, 0, 9, np.random.default_rng(0))
    found = {tuple(np.flatnonzero(X_D).tolist()) for X_D in moves.X_MD}
    # (0, 1) has six neighbours, of which one was tried.
    assert found == {(0, 3), (0, 4), (1, 2), (1, 3), (1, 4)}
    assert set(moves.memory["climb"].ravel()) == {0.0}


def test_a_climb_goes_on_from_its_own_best_not_from_that_of_all() -> None:
    swarm = swarm_of(
        ((0, 1), 1.0, 0), ((0, 2), 1.5, 0), ((2, 3), 9.0, 1), ((3, 4), 8.0, 1), generation=2
    )
    moves = HillClimbing().move(swarm, 0, 9, np.random.default_rng(0))
    best_D = np.isin(np.arange(5), (3, 4))
    assert ((moves.X_MD ^ best_D).sum(axis=1) == 2).all()


def test_a_climb_that_does_not_improve_for_long_ends() -> None:
    trials = [((0, 1), 1.0, 0), *[((0, 2), 2.0, 0)] * 10]
    for more, began in ((0, 0.0), (1, 6.0)):
        swarm = swarm_of(*trials, *[((0, 2), 2.0, 0)] * more, generation=6)
        moves = HillClimbing().move(swarm, 0, 3, np.random.default_rng(0))
        assert set(moves.memory["climb"].ravel()) == {began}


def test_a_climb_without_new_neighbours_ends_with_a_kick_or_a_restart() -> None:
    around = [(0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4)]
    trials = [((0, 1), 1.0, 0), *((subset, 2.0, 0) for subset in around)]
    swarm = swarm_of(*trials, generation=4)
    moves = HillClimbing().move(swarm, 0, 20, np.random.default_rng(0))
    assert set(moves.memory["climb"].ravel()) == {4.0}
    assert (moves.X_MD.sum(axis=1) == 2).all()
