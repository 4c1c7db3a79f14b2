"""Races on stored losses, in random orders of the items."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from prunesearch.objectives.base import Objective, Row
from prunesearch.objectives.race import CONTROLS, ItemLosses, is_worse, items_of, rungs

POPULATION = 6
_NEAR = 40  # number of the best candidates whose races show how often a good one drops out
GAINS = (0.0, 0.5, 1.0, 2.0)
"""By how many standard errors of the difference a candidate is made better than its baseline."""


@dataclass(frozen=True)
class Known:
    """A candidate that is known on all items.

    Attributes:
        items: its losses.
        loss: its mean loss.
    """

    items: ItemLosses
    loss: float

    @classmethod
    def of(cls, objective: Objective, results: Sequence[Sequence[Row]]) -> Self:
        """Return a candidate from its results on all chunks."""
        items = items_of(objective, results)
        return cls(items, float(np.mean(items.losses)))

    def ordered(self, order: Sequence[int]) -> ItemLosses:
        """Return its losses in another order of the items."""
        losses = np.asarray(self.items.losses)[order]
        margins = self.items.margins
        if margins is not None:
            return ItemLosses(tuple(losses), tuple(np.asarray(margins)[order]))
        return ItemLosses(tuple(losses))


@dataclass(frozen=True)
class Replayed:
    """What races save and lose, as a mean over searches and orders of the items.

    Attributes:
        share: share of the tokens that are scored, the dense model included.
        loss: mean loss of the winner minus that of the best candidate.
        loss_stderr: its standard error over searches and orders.
        lost: share of the races that lose the best candidate.
    """

    share: float
    loss: float
    loss_stderr: float
    lost: float


def replayed(studies: Sequence[Sequence[Known]], chunks: int, orders: int) -> Replayed:
    """Race the candidates of full searches again.

    Args:
        studies: candidates of each search, in the order of its trials.
        chunks: number of chunks that the items are cut into.
        orders: number of random orders of the items for each search.
    """
    shares, losses = [], []
    for number, study in enumerate(studies):
        for turn in range(orders):
            rng = np.random.default_rng([number, turn])
            order = rng.permutation(len(study[0].items.losses)).tolist()
            share, loss = _race_all(study, chunks, order)
            shares.append(share)
            losses.append(loss)
    error = float(np.std(losses, ddof=1)) / math.sqrt(len(losses)) if len(losses) > 1 else 0.0
    lost = sum(loss > 0 for loss in losses) / len(losses)
    return Replayed(float(np.mean(shares)), float(np.mean(losses)), error, lost)


def _race_all(study: Sequence[Known], chunks: int, order: Sequence[int]) -> tuple[float, float]:
    """Race all candidates of a search, each generation against the best before it.

    Returns:
        Share of the chunks that were scored, and the loss of the winner minus the smallest loss.
    """
    scored = chunks  # of the dense model
    complete: list[Known] = []
    for start in range(0, len(study), POPULATION):
        known = [one.ordered(order) for one in sorted(complete, key=lambda one: one.loss)]
        for one in study[start : start + POPULATION]:
            items = one.ordered(order)
            if not known and one is study[start]:
                known = [items]
            rung = chunks
            if items is not known[0]:
                rung = _last_rung(items, known[: 1 + CONTROLS], chunks)
            scored += rung
            if rung == chunks:
                complete.append(one)
    best = min(one.loss for one in study)
    return scored / (chunks * (1 + len(study))), min(one.loss for one in complete) - best


def _last_rung(items: ItemLosses, known: Sequence[ItemLosses], chunks: int) -> int:
    """Return the number of chunks that a candidate is scored on."""
    count = len(items.losses)
    for rung in rungs(chunks)[:-1]:
        n = count * rung // chunks
        if is_worse(items.first(n), known[0], known[1:], n / count):
            return rung
    return chunks


def drop_rates(studies: Sequence[Sequence[Known]], chunks: int, races: int) -> dict[float, float]:
    """Return how often a candidate drops out that is better than its baseline on all data.

    The candidates are pairs of the best ones, in random orders of the items. For losses, one of a
    pair is moved so that it is better by exactly each of `GAINS`. The answers to documents cannot
    be moved. For them the pairs count whose difference is at least the gain.
    """
    distinct = {one.items: one for study in studies for one in study}
    near = sorted(distinct.values(), key=lambda one: one.loss)[:_NEAR]
    rng = np.random.default_rng(0)
    dropped, raced = dict.fromkeys(GAINS, 0), dict.fromkeys(GAINS, 0)
    for _ in range(races):
        chosen = rng.permutation(len(near))[: 2 + CONTROLS].tolist()
        order = rng.permutation(len(near[0].items.losses)).tolist()
        candidate, *known = [near[place].ordered(order) for place in chosen]
        difference = np.subtract(known[0].losses, candidate.losses)
        error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
        for gain in GAINS:
            moved = candidate
            if candidate.margins is None:
                change = float(difference.mean()) - gain * error
                moved = replace(candidate, losses=tuple(np.add(candidate.losses, change)))
            elif float(difference.mean()) < gain * error:
                continue
            raced[gain] += 1
            dropped[gain] += _last_rung(moved, known, chunks) < chunks
    return {gain: dropped[gain] / raced[gain] for gain in GAINS if raced[gain]}
