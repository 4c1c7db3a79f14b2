"""Scored candidates that a request shows: the best ones, and a few that differ from them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunesearch.algorithms.history import View
from prunesearch.algorithms.operators import Mask, generator

_SCORES = 7  # stream of random numbers of shuffled scores
_DIVERSE = 0.25  # share of the candidates that are chosen because they differ


@dataclass(frozen=True)
class Scored:
    """A scored candidate.

    Attributes:
        number: number of its trial.
        X_D: the candidate as a mask.
        loss: its loss.
    """

    number: int
    X_D: Mask
    loss: float


def chosen(view: View, count: int) -> list[Scored]:
    """Return up to `count` distinct candidates, the worst first.

    Most are the best ones. The others are those that differ most from all that were chosen before.
    """
    # 1. All distinct candidates, the best first.
    ordered: list[Scored] = []
    known: set[bytes] = set()
    complete = view.complete
    for number in complete[np.argsort(view.loss_NO[complete, 0], kind="stable")].tolist():
        X_D = view.X_ND[number]
        if X_D.tobytes() not in known:
            known.add(X_D.tobytes())
            ordered.append(Scored(number, X_D, float(view.loss_NO[number, 0])))
    # 2. The best ones.
    best = count - round(count * _DIVERSE)
    taken, rest = ordered[:best], ordered[best:]
    # 3. The most different ones. Each row of `distance_R` is a candidate that is left.
    if rest and len(taken) < count:
        rest_RD = np.array([each.X_D for each in rest])
        distance_R = np.full(len(rest), rest_RD.shape[1])
        for each in taken:
            distance_R = np.minimum(distance_R, (rest_RD != each.X_D).sum(1))
        for _ in range(min(count - len(taken), len(rest))):
            farthest = int(np.argmax(distance_R))
            taken.append(rest[farthest])
            distance_R = np.minimum(distance_R, (rest_RD != rest_RD[farthest]).sum(1))
    return sorted(taken, key=lambda each: (-each.loss, -each.number))


def with_shuffled_scores(scored: Sequence[Scored], seed: int, generation: int) -> list[Scored]:
    """Return the candidates with the losses of each other, the worst loss first."""
    rng = generator(seed, generation, 0, _SCORES)
    order = rng.permutation(len(scored)).tolist()
    mixed = []
    for each, other in zip(scored, order, strict=True):
        mixed.append(Scored(each.number, each.X_D, scored[other].loss))
    return sorted(mixed, key=lambda each: (-each.loss, -each.number))


def generations_without_progress(view: View, population: int, generation: int) -> int:
    """Return for how many generations the best loss has not improved."""
    complete = view.complete
    if not complete.size:
        return 0
    best = int(complete[np.argmin(view.loss_NO[complete, 0])])
    return max(0, generation - 1 - best // population)
