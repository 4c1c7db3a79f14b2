"""The best known value of a landscape, by restarted descent on the true loss."""

from functools import cache

import numpy as np

from benchmarks.landscapes.catalogue import landscape
from benchmarks.landscapes.landscape import Landscape
from prunesearch.algorithms.operators import Mask

EVALUATIONS = 300_000
"""Evaluations that the descent may take: three seconds at most."""
_RESTART = 0.3  # chance to start anywhere instead of near the best


@cache
def best_known(name: str, seed: int, evaluations: int = EVALUATIONS) -> float:
    """Return the best known true loss of a landscape. It is computed once per process.

    Args:
        name: name of the landscape, or the path of a table.
        seed: seed of the landscape.
        evaluations: evaluations that the descent may take.
    """
    searched = landscape(name, seed)
    if searched.optimum is not None:
        return searched.optimum
    return strong(searched, evaluations)[0]


def strong(
    searched: Landscape, evaluations: int = EVALUATIONS, seed: int = 0
) -> tuple[float, Mask]:
    """Search a landscape's true loss by steepest descent over swaps, restarted again and again.

    A descent starts at a random subset, or at the best one after two to five random swaps.

    Args:
        searched: landscape.
        evaluations: evaluations after which no further descent starts.
        seed: seed of the random generator.

    Returns:
        The best loss, and its subset.
    """
    rng = np.random.default_rng(seed)
    best, best_D = np.inf, searched.random_subset(rng)
    left = evaluations
    while left > 0:
        # 1. A start: anywhere, or near the best.
        if np.isinf(best) or rng.random() < _RESTART:
            X_D = searched.random_subset(rng)
        else:
            X_D = kicked(best_D, int(rng.integers(2, max(3, min(6, searched.k)))), rng)
        value = float(searched.true(X_D[None])[0])
        # 2. Take the best swap as long as there is a better one.
        while True:
            Y_MD = neighbours(X_D, searched)
            value_M = searched.true(Y_MD)
            left -= len(Y_MD)
            least = int(value_M.argmin())
            if value_M[least] >= value - 1e-15:
                break
            X_D, value = Y_MD[least], float(value_M[least])
        if value < best:
            best, best_D = value, X_D.copy()
    return best, best_D


def kicked(X_D: Mask, swaps: int, rng: np.random.Generator) -> Mask:
    """Return a copy of a subset after random swaps, one after the other."""
    Y_D = X_D.copy()
    for _ in range(swaps):
        out, into = rng.choice(np.flatnonzero(Y_D)), rng.choice(np.flatnonzero(~Y_D))
        Y_D[out], Y_D[into] = False, True
    return Y_D


def neighbours(X_D: Mask, searched: Landscape) -> Mask:
    """Return all subsets that one swap makes of a subset, shape (M, D).

    If the size is free, they are followed by those with one unit fewer, and one unit more.
    """
    chosen, spare = np.flatnonzero(X_D), np.flatnonzero(~X_D)
    swapped_MD = np.repeat(X_D[None], chosen.size * spare.size, axis=0)
    rows = np.arange(len(swapped_MD))
    swapped_MD[rows, np.repeat(chosen, spare.size)] = False
    swapped_MD[rows, np.tile(spare, chosen.size)] = True
    if searched.fixed:
        return swapped_MD
    parts = [swapped_MD]
    if chosen.size > searched.k_min:
        parts.append(_flipped(X_D, chosen))
    if chosen.size < searched.k:
        parts.append(_flipped(X_D, spare))
    return np.concatenate(parts)


def _flipped(X_D: Mask, units: np.ndarray[tuple[int], np.dtype[np.intp]]) -> Mask:
    """Return a copy of a subset for each unit, with this unit chosen or given up."""
    Y_MD = np.repeat(X_D[None], units.size, axis=0)
    Y_MD[np.arange(units.size), units] ^= True
    return Y_MD
