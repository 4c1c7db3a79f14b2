"""Subsets of fixed size as boolean masks, and the moves that swarms make on them.

Notation, used in every file of this folder: P particles, D units (blocks), K units to choose.
`X_PD` is a (P, D) boolean array with K true values a row; `X_D` is one row of it. Losses are minimised.
"""

import itertools
import math
from collections.abc import Set
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Real = NDArray[np.float64]


@dataclass(frozen=True)
class Swarm:
    """All that one generation leaves to the next.

    Attributes:
        X_PD: positions.
        V_PD: velocities (zeros where the algorithm has none).
        loss_P: losses of the positions; inf for a trial that failed.
        best_X_PD, best_loss_P: each particle's best so far.
        generation: number of the generation to be proposed, counted from 0.
    """

    X_PD: Mask
    V_PD: Real
    loss_P: Real
    best_X_PD: Mask
    best_loss_P: Real
    generation: int

    @property
    def leader_D(self) -> Mask:
        """The best position that any particle has found; ties go to the lower slot."""
        return np.asarray(self.best_X_PD[int(np.argmin(self.best_loss_P))])


class Algorithm(Protocol):
    """Moves one particle: a pure function of the swarm and the generator."""

    @property
    def name(self) -> str:
        """Short name, stored with each trial."""
        ...

    def move(self, swarm: Swarm, particle: int, free_D: Mask, rng: np.random.Generator) -> tuple[Mask, Real]:
        """Return the particle's next position and velocity, both of shape (D,)."""
        ...


def generator(seed: int, generation: int, particle: int) -> np.random.Generator:
    """A counter-based generator: the same three numbers give the same stream in every process, in any order."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, particle, generation]))


def random_subset(free_D: Mask, k: int, rng: np.random.Generator) -> Mask:
    """Choose `k` of the free units uniformly."""
    X_D = np.zeros_like(free_D)
    X_D[rng.choice(np.flatnonzero(free_D), size=k, replace=False)] = True
    return X_D


def swap(X_D: Mask, free_D: Mask, count: int, rng: np.random.Generator) -> Mask:
    """Exchange `count` chosen units (at most as many as can be) for as many unchosen free ones."""
    chosen, spare = np.flatnonzero(X_D), np.flatnonzero(free_D & ~X_D)
    count = min(count, len(chosen), len(spare))
    Y_D = X_D.copy()
    Y_D[rng.choice(chosen, size=count, replace=False)] = False
    Y_D[rng.choice(spare, size=count, replace=False)] = True
    return Y_D


def toward(X_D: Mask, goal_D: Mask, share: float, rng: np.random.Generator) -> Mask:
    """Take over each unit of `goal_D` that `X_D` lacks with probability `share`, giving up units that it has alone."""
    gain, lose = np.flatnonzero(goal_D & ~X_D), np.flatnonzero(X_D & ~goal_D)
    count = int(rng.binomial(len(gain), min(1.0, max(0.0, share))))
    Y_D = X_D.copy()
    Y_D[rng.choice(lose, size=count, replace=False)] = False
    Y_D[rng.choice(gain, size=count, replace=False)] = True
    return Y_D


def unseen(X_D: Mask, free_D: Mask, seen: Set[bytes], rng: np.random.Generator, tries: int = 64) -> Mask:
    """Return `X_D` if it is new, else the result of the fewest random swaps that makes it so.

    Near the end of a small space the unseen subsets are listed and one of them is drawn; when none is left,
    `X_D` itself comes back.
    """
    if X_D.tobytes() not in seen:
        return X_D
    widest = min(int(X_D.sum()), int((free_D & ~X_D).sum()))
    for attempt in range(tries):
        Y_D = swap(X_D, free_D, min(widest, 1 + attempt * widest // tries), rng)
        if Y_D.tobytes() not in seen:
            return Y_D
    units, k = np.flatnonzero(free_D), int(X_D.sum())
    if math.comb(len(units), k) > 100_000:
        return X_D
    return _any_unseen(units, k, X_D, seen, rng)


def _any_unseen(units: NDArray[np.intp], k: int, X_D: Mask, seen: Set[bytes], rng: np.random.Generator) -> Mask:
    def mask(subset: tuple[int, ...]) -> Mask:
        Y_D = np.zeros_like(X_D)
        Y_D[list(subset)] = True
        return Y_D

    left = [Y_D for Y_D in map(mask, itertools.combinations(units.tolist(), k)) if Y_D.tobytes() not in seen]
    return left[int(rng.integers(len(left)))] if left else X_D


def first_generation(free_D: Mask, k: int, population: int, seed: int) -> list[Mask]:
    """The random start, the same for every algorithm, so that a second search finds it in the store."""
    return [random_subset(free_D, k, generator(seed, 0, i)) for i in range(population)]
