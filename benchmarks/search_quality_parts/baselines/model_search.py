"""A search that fits a model to all evaluations and asks it for the next subset."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from benchmarks.search_quality_parts.problem import Problem, Runner, Trace, Watch
from prunesearch.algorithms.constraints import Constraints
from prunesearch.algorithms.gaussian_process import normal_scores
from prunesearch.algorithms.operators import Counts, Mask, Real
from prunesearch.samplers.base import constraints_of

FIRST = 10
"""Random subsets that a search begins with."""


class Proposer(Protocol):
    """Chooses the next subset."""

    def propose(self, X_ND: Mask, score_N: Real, rng: np.random.Generator) -> Mask:
        """Return the next subset.

        Args:
            X_ND: subsets that were evaluated.
            score_N: their normal scores; smaller is better.
            rng: random generator.
        """
        ...


def model_search(make: Callable[[Constraints], Proposer]) -> Runner:
    """Return the runner of a search that evaluates one subset after the other.

    Args:
        make: function from the constraints to what proposes.
    """

    def run(problem: Problem, seed: int, budget: int) -> Trace:
        rng = np.random.default_rng(seed)
        constraints = constraints_of(problem.space)
        proposer = make(constraints)
        watch = Watch(problem)
        X_ND = np.zeros((0, constraints.free_D.size), dtype=np.bool_)
        losses: list[float] = []
        while not watch.over(budget):
            # Losses are replaced by the normal scores of their ranks, as in the product.
            if len(losses) < FIRST:
                size = rng.integers(constraints.k_min, constraints.k_max + 1, size=1)
                X_D = constraints.random_subsets(size, rng)[0]
            else:
                X_D = proposer.propose(X_ND, normal_scores(np.array(losses)), rng)
            # Nothing is evaluated twice.
            X_D = constraints.unseen(X_D, {Y_D.tobytes() for Y_D in X_ND}, rng)
            losses.append(watch.evaluate(tuple(np.flatnonzero(X_D).tolist())))
            X_ND = np.concatenate([X_ND, X_D[None]])
        return watch.trace

    return run


def all_swaps(X_D: Mask, constraints: Constraints) -> Mask:
    """Return all subsets that one swap makes of a subset, shape (M, D).

    If the size is free, those with one unit fewer or more follow.
    """
    chosen, spare = np.flatnonzero(X_D), np.flatnonzero(constraints.free_D & ~X_D)
    swapped_MD = np.repeat(X_D[None], chosen.size * spare.size, axis=0)
    rows = np.arange(len(swapped_MD))
    swapped_MD[rows, np.repeat(chosen, spare.size)] = False
    swapped_MD[rows, np.tile(spare, chosen.size)] = True
    parts = [swapped_MD]
    if chosen.size > constraints.k_min:
        parts.append(_flipped(X_D, chosen))
    if chosen.size < constraints.k_max:
        parts.append(_flipped(X_D, spare))
    return np.concatenate(parts)


def _flipped(X_D: Mask, units: Counts) -> Mask:
    """Return a copy of a subset for each unit, with this unit chosen or given up."""
    Y_MD = np.repeat(X_D[None], units.size, axis=0)
    Y_MD[np.arange(units.size), units] ^= True
    return Y_MD


def new_rows(Y_MD: Mask, X_ND: Mask) -> Counts:
    """Return the rows of `Y_MD` that are none of the rows of `X_ND`."""
    seen = {X_D.tobytes() for X_D in X_ND}
    fresh = []
    for row, Y_D in enumerate(Y_MD):
        if Y_D.tobytes() not in seen:
            fresh.append(row)
    return np.array(fresh, dtype=np.intp)
