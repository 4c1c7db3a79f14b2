"""Subsets as boolean masks, and the operators that all algorithms share.

Notation in this folder: N trials, P particles, M proposals, D units (blocks), K chosen units.
`X_MD` is an (M, D) boolean array with one subset per row; `X_D` is one row of it. Losses are
minimised.
"""

import itertools
import math
from collections.abc import Iterator, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Real = NDArray[np.float64]
Counts = NDArray[np.intp]

_LISTABLE = 100_000  # largest space that is listed when random swaps find nothing new


@dataclass(frozen=True)
class SubsetConstraints:
    """Constraints on the subsets: `k_min` to `k_max` free units.

    Attributes:
        free_D: units that may be chosen.
        k_min, k_max: smallest and largest number of chosen units.
        group_D: kind of each unit (attention or MLP). Mutations of `evolution` swap units of the
            same kind.
    """

    free_D: Mask
    k_min: int
    k_max: int
    group_D: Counts

    @classmethod
    def of(
        cls, free_D: Mask, k_min: int, k_max: int | None = None, group_D: Counts | None = None
    ) -> "SubsetConstraints":
        """Build constraints with the usual defaults: a fixed size, and units of one kind."""
        if k_max is None:
            k_max = k_min
        if group_D is None:
            group_D = np.zeros(free_D.size, dtype=np.intp)
        return cls(free_D, k_min, k_max, group_D)

    @property
    def fixed(self) -> bool:
        """True if all subsets have the same size."""
        return self.k_min == self.k_max

    @property
    def count(self) -> int:
        """Number of subsets."""
        free = int(self.free_D.sum())
        return sum(math.comb(free, k) for k in range(self.k_min, self.k_max + 1))

    def holds(self, X_D: Mask) -> bool:
        """Return whether a subset satisfies the constraints."""
        return bool(self.k_min <= X_D.sum() <= self.k_max) and not bool(X_D[~self.free_D].any())


def generator(seed: int, generation: int, particle: int, stream: int = 0) -> np.random.Generator:
    """Return a counter-based generator.

    The same four numbers give the same stream in every process and order.
    """
    return np.random.Generator(
        np.random.Philox(key=seed, counter=[0, stream, particle, generation])
    )


def choose(X_MD: Mask, count_M: Counts, rng: np.random.Generator) -> Mask:
    """Keep `count` random true entries of each row, or all if there are fewer."""
    # The true entries with the smallest random numbers win; false ones come last.
    lottery_MD = np.where(X_MD, rng.random(X_MD.shape), 2.0)
    last_M = np.take_along_axis(
        np.sort(lottery_MD, axis=1), np.maximum(count_M - 1, 0)[:, None], axis=1
    )
    return np.asarray(X_MD & (lottery_MD <= last_M) & (count_M[:, None] > 0))


def top(score_MD: Real, count_M: Counts) -> Mask:
    """Choose the `count` entries of each row with the largest scores.

    Ties go to the lower index.
    """
    order_MD = np.argsort(-score_MD, axis=1, kind="stable")
    chosen_MD = np.zeros(score_MD.shape, dtype=np.bool_)
    np.put_along_axis(chosen_MD, order_MD, np.arange(score_MD.shape[1]) < count_M[:, None], axis=1)
    return chosen_MD


def falling(generation: int, cycle: int) -> float:
    """Return the control parameter a of the swarms, which falls from 2 to 0 over `cycle`
    generations and starts again.
    """
    return 2.0 * (1.0 - (max(generation, 1) - 1) % cycle / cycle)


def random_subsets(
    constraints: SubsetConstraints, size_M: Counts, rng: np.random.Generator
) -> Mask:
    """Choose free units uniformly, as many as each size requires."""
    return choose(
        np.broadcast_to(constraints.free_D, (size_M.size, constraints.free_D.size)), size_M, rng
    )


def swap(
    X_MD: Mask, constraints: SubsetConstraints, count_M: Counts, rng: np.random.Generator
) -> Mask:
    """Exchange `count` chosen units of each row (fewer if necessary) for the same number of
    unchosen free ones.
    """
    spare_MD = constraints.free_D & ~X_MD
    count_M = np.minimum(count_M, np.minimum(X_MD.sum(1), spare_MD.sum(1)))
    return np.asarray((X_MD & ~choose(X_MD, count_M, rng)) | choose(spare_MD, count_M, rng))


def neighbours(
    X_D: Mask, constraints: SubsetConstraints, most: int, rng: np.random.Generator
) -> Mask:
    """Return up to `most` different subsets that one swap makes of `X_D`.

    Their size may change too if it is free.
    """
    chosen, spare = np.flatnonzero(X_D), np.flatnonzero(constraints.free_D & ~X_D)
    pairs = chosen.size * spare.size
    if pairs == 0:
        return drift(X_D[None], constraints, rng)
    out, into = np.divmod(rng.choice(pairs, size=min(most, pairs), replace=False), spare.size)
    Y_MD = np.repeat(X_D[None], out.size, axis=0)
    rows = np.arange(out.size)
    Y_MD[rows, chosen[out]] = False
    Y_MD[rows, spare[into]] = True
    return drift(Y_MD, constraints, rng)


def resize(
    X_MD: Mask, constraints: SubsetConstraints, size_M: Counts, rng: np.random.Generator
) -> Mask:
    """Add or remove random units until each row has its size."""
    if constraints.fixed:
        return X_MD
    excess_M = X_MD.sum(1) - size_M
    fewer_MD = X_MD & ~choose(X_MD, np.maximum(excess_M, 0), rng)
    return np.asarray(fewer_MD | choose(constraints.free_D & ~X_MD, np.maximum(-excess_M, 0), rng))


def drift(X_MD: Mask, constraints: SubsetConstraints, rng: np.random.Generator) -> Mask:
    """Change the size of half of the rows by one, up or down. If the size is fixed, do nothing."""
    if constraints.fixed:
        return X_MD
    step_M = rng.integers(-1, 2, size=len(X_MD)) * (rng.random(len(X_MD)) < 0.75)
    return resize(
        X_MD, constraints, np.clip(X_MD.sum(1) + step_M, constraints.k_min, constraints.k_max), rng
    )


def toward(X_MD: Mask, goal_MD: Mask, share_M: Real, rng: np.random.Generator) -> Mask:
    """Adopt each unit of the goal that a row lacks with probability `share`, and give up units the
    goal lacks.

    A row as large as its goal keeps its size. Another row approaches the goal's size by the same
    share.
    """
    gain_MD, lose_MD = goal_MD & ~X_MD, X_MD & ~goal_MD
    gains_M, losses_M = gain_MD.sum(1), lose_MD.sum(1)
    share_M = np.clip(share_M, 0.0, 1.0)
    # Exchanges keep the size; the rest changes it toward the goal's.
    both_M = rng.binomial(np.minimum(gains_M, losses_M), share_M)
    more_M = rng.binomial(np.maximum(gains_M - losses_M, 0), share_M)
    fewer_M = rng.binomial(np.maximum(losses_M - gains_M, 0), share_M)
    lost_MD = choose(lose_MD, both_M + fewer_M, rng)
    return np.asarray((X_MD & ~lost_MD) | choose(gain_MD, both_M + more_M, rng))


def unseen(
    X_D: Mask,
    constraints: SubsetConstraints,
    seen: Set[bytes],
    rng: np.random.Generator,
    tries: int = 64,
) -> Mask:
    """Return `X_D` if it is new, else a new subset that differs by as few random swaps as possible.

    If random swaps find none in a small space, one of the unseen subsets is drawn. If none is left,
    `X_D` is returned.
    """
    if X_D.tobytes() not in seen:
        return X_D
    # Try random swaps, from one up to the most that are possible.
    widest = max(1, min(int(X_D.sum()), int((constraints.free_D & ~X_D).sum())))
    wide_M = 1 + np.arange(tries) * widest // tries
    Y_MD = drift(
        swap(np.repeat(X_D[None], tries, axis=0), constraints, wide_M, rng), constraints, rng
    )
    for Y_D in Y_MD:
        if Y_D.tobytes() not in seen:
            return np.ascontiguousarray(Y_D)
    if constraints.count > _LISTABLE:
        return X_D
    # Draw one of the subsets that are left.
    left = [Y_D for Y_D in every_subset(constraints) if Y_D.tobytes() not in seen]
    if not left:
        return X_D
    return left[int(rng.integers(len(left)))]


def every_subset(constraints: SubsetConstraints) -> Iterator[Mask]:
    """Yield all subsets, by size and then in lexicographic order."""
    free = np.flatnonzero(constraints.free_D).tolist()
    for size in range(constraints.k_min, constraints.k_max + 1):
        for chosen in itertools.combinations(free, size):
            X_D = np.zeros_like(constraints.free_D)
            X_D[list(chosen)] = True
            yield X_D
