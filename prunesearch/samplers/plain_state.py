"""The swarm of a study over ordinary parameters, as `algorithms.vector_planner` takes it."""

from collections.abc import Callable

import numpy as np

from prunesearch.algorithms.base import VectorState
from prunesearch.algorithms.history import History, Swarm, View
from prunesearch.algorithms.operators import Counts, Real
from prunesearch.algorithms.pareto import chebyshev
from prunesearch.algorithms.vector_model import Evaluated
from prunesearch.algorithms.vector_planner import region
from prunesearch.algorithms.vector_surrogate import squashed

_BEST, _LATEST = 200, 100  # most trials that a surrogate is fitted to
_FEWEST = 4  # least number of them


def states_of(swarm: Swarm, topology: str) -> tuple[list[VectorState], Real]:
    """Return the state of each particle, and the position of the best trial.

    Args:
        swarm: swarm of a study.
        topology: ``global``, or ``ring``, where the best of a particle's and its two neighbours'
            best trials leads it (J. Kennedy, CEC 1999, "Small worlds and mega-minds"). With
            several objectives, members of the archive lead in either.
    """
    memories, loss_NO = swarm.view.history.memories, swarm.view.loss_NO
    population = swarm.number_P.size
    all_PD = np.stack([memory["x"] for memory in swarm.memory_P])
    states = []
    for particle in range(population):
        leader = int(swarm.leader_P[particle])
        if topology == "ring" and loss_NO.shape[1] == 1:
            near = [(particle + step) % population for step in (-1, 0, 1)]
            neighbours = swarm.best_P[near]
            leader = int(neighbours[np.argmin(loss_NO[neighbours, 0])])
        own_D = swarm.best_memory_P[particle]["x"]
        v_D = swarm.memory_P[particle].get("v", np.zeros(own_D.size))
        states.append(
            VectorState(
                all_PD[particle], v_D, own_D, memories[leader]["x"], all_PD, swarm.generation
            )
        )
    complete = swarm.view.complete
    best = int(complete[np.argmin(loss_NO[complete, 0])])
    return states, memories[best]["x"]


def region_of(view: View, population: int) -> float:
    """Return half the side of the region around the best trial, from the whole history."""
    loss_N = np.where(view.kind_N == History.COMPLETE, view.loss_NO[:, 0], np.inf)
    padded_N = np.append(loss_N, np.full(-loss_N.size % population, np.inf))
    return region(padded_N.reshape(-1, population).min(axis=1).tolist())


def scalarised(loss_NO: Real, weight_O: Real) -> Real:
    """Return the augmented Chebyshev sum of the objectives, each squashed to its own scale."""
    squashed_NO = np.stack([squashed(loss_N) for loss_N in loss_NO.T], axis=1)
    return chebyshev(squashed_NO, weight_O)


def evaluated_trials(
    view: View, admissible: Callable[[Real], Real], weight_O: Real | None = None
) -> Evaluated | None:
    """Return the trials that a surrogate is fitted to: the best and the latest; None if there are
    too few.

    Args:
        view: finished trials.
        admissible: function that rounds positions to those that parameters can have.
        weight_O: weights of several objectives; None for one objective.
    """
    rows, loss_NO = view.estimated
    if rows.size < _FEWEST:
        return None
    loss_N = loss_NO[:, 0]
    if weight_O is not None:
        loss_N = scalarised(loss_NO, weight_O)
    kept = _best_and_latest(rows, loss_N)
    rows, loss_N = rows[kept], loss_N[kept]
    memories = view.history.memories
    # The constraints, and the values without the penalty that `feasible_first` adds.
    counts = [memories[number]["limits"].size for number in rows]
    most = max(counts)
    if most:
        same = np.array(counts) == most
        rows, loss_N = rows[same], loss_N[same].copy()
        for place, number in enumerate(rows.tolist()):
            if weight_O is None and (memories[number]["limits"] > 0.0).any():
                loss_N[place] = memories[number]["value"][0]
    failed = np.flatnonzero(view.kind_N == History.FAILED)[-_LATEST:]
    x_ND = _positions(view, rows, admissible)
    limit_NC = np.stack([memories[number]["limits"][:most] for number in rows])
    bounded_NC = np.nan_to_num(limit_NC, nan=1.0, posinf=1e100, neginf=-1e100)
    failed_FD = np.zeros((0, x_ND.shape[1]))
    if failed.size:
        failed_FD = _positions(view, failed, admissible)
    return Evaluated(x_ND, loss_N, bounded_NC, failed_FD)


def _positions(view: View, rows: Counts, admissible: Callable[[Real], Real]) -> Real:
    """Return where some trials were evaluated."""
    x_ND = np.stack([view.history.memories[number]["x"] for number in rows])
    return admissible(np.clip(x_ND, 0.0, 1.0))


def _best_and_latest(rows: Counts, loss_N: Real) -> Counts:
    """Return the places of the best and of the latest trials, in order."""
    if rows.size <= _BEST + _LATEST:
        return np.arange(rows.size)
    best = np.argpartition(loss_N, _BEST - 1)[:_BEST]
    latest = np.argsort(rows)[-_LATEST:]
    return np.union1d(best, latest)
