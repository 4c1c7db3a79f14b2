"""The operators on boolean masks that all algorithms share.

Notation in this folder: N trials, P particles, M proposals, D units (blocks, or levels of widths),
K chosen units. `X_MD` is an (M, D) boolean array with one subset per row; `X_D` is one row of it.
Losses are minimised. Operators that depend on the constraints are methods of `Constraints`.
"""

from collections.abc import Iterable, Iterator, Set
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Real = NDArray[np.float64]
Counts = NDArray[np.intp]

_LISTABLE = 100_000  # largest space that is listed when random swaps find nothing new


class Candidates(Protocol):
    """The candidates of a space, as masks."""

    @property
    def count(self) -> int:
        """Number of candidates."""
        ...

    def every_subset(self) -> Iterator[Mask]:
        """Yield all candidates."""
        ...


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


def new_mask(
    tried: Iterable[Mask], candidates: Candidates, seen: Set[bytes], rng: np.random.Generator
) -> Mask | None:
    """Return the first of the tried masks that is new.

    If none is and the space is small, draw one of its new candidates.

    Args:
        tried: the masks that are tried first.
        candidates: the space.
        seen: bytes of the masks that are not new.
        rng: random generator.

    Returns:
        None if nothing new was found.
    """
    for Y_D in tried:
        if Y_D.tobytes() not in seen:
            return np.ascontiguousarray(Y_D)
    if candidates.count > _LISTABLE:
        return None
    left = []
    for Y_D in candidates.every_subset():
        if Y_D.tobytes() not in seen:
            left.append(Y_D)
    if not left:
        return None
    return left[int(rng.integers(len(left)))]
