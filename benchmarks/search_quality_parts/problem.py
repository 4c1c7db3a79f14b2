"""What is searched, and what a run of an algorithm saw of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.landscapes import Landscape
from prunesearch.space import SearchSpace

Units = tuple[int, ...]
PATIENCE = 20
"""Proposals per unit of budget after which an algorithm that only repeats itself is stopped."""


@dataclass
class Trace:
    """What one run of one algorithm saw.

    Attributes:
        best: true value of the best subset after each unique evaluation; inf while there was no
            whole candidate.
        proposed: proposals made.
    """

    best: list[float] = field(default_factory=list)
    proposed: int = 0

    def at(self, budget: int) -> float:
        """Return the value within a budget."""
        if not self.best:
            return float("inf")
        return self.best[min(budget, len(self.best)) - 1]


@dataclass(frozen=True)
class Problem:
    """What is searched.

    Attributes:
        space: the search space.
        value: loss of the subset that drops some units, as the search sees it.
        partial: whether subsets of other sizes have a value; without it, greedy and one-shot cannot
            run.
        influence: a ranking that costs one pass of the dense model, or None.
        true_value: loss that counts, where the search sees a noisy one; else None.
        rankings: estimated harm of each unit, by the name of the estimate.
    """

    space: SearchSpace
    value: Callable[[Units], float]
    partial: bool
    influence: list[float] | None = None
    true_value: Callable[[Units], float] | None = None
    rankings: Mapping[str, Sequence[float]] = field(default_factory=dict)


Runner = Callable[[Problem, int, int], Trace]
"""Function from a problem, a seed and a budget to what a run saw."""


class Watch:
    """Counts the unique evaluations of a run and keeps the best one.

    Args:
        problem: what is searched.
        spent: evaluations that were spent before the first one.
    """

    def __init__(self, problem: Problem, spent: int = 0) -> None:
        self.problem = problem
        self.trace = Trace(best=[float("inf")] * spent)
        self._least = float("inf")  # best value that the search saw
        self._seen: set[Units] = set()

    def evaluate(self, units: Units, whole: bool = True) -> float:
        """Return the value of a subset. Only a new one counts as an evaluation.

        Args:
            units: the dropped units.
            whole: whether the subset can be a result.
        """
        value = self.problem.value(units)
        self.trace.proposed += 1
        if units in self._seen:
            return value
        self._seen.add(units)
        best = float("inf")
        if self.trace.best:
            best = self.trace.best[-1]
        # What the search takes for the best counts with its true value.
        if whole and value < self._least:
            self._least = best = value
            if self.problem.true_value is not None:
                best = self.problem.true_value(units)
        self.trace.best.append(best)
        return value

    def over(self, budget: int) -> bool:
        """Return whether the budget is spent, or the search only repeats itself."""
        spent = len(self.trace.best) >= budget
        return spent or self.trace.proposed >= PATIENCE * budget


def of_landscape(searched: Landscape) -> Problem:
    """Return the problem that a landscape poses."""

    def value(units: Units) -> float:
        return float(searched.loss(_mask(searched, units))[0])

    def true_value(units: Units) -> float:
        return float(searched.true(_mask(searched, units))[0])

    rankings = {}
    for name, harm_D in searched.rankings.items():
        rankings[name] = harm_D.tolist()
    return Problem(
        searched.space,
        value,
        searched.partial,
        true_value=true_value if searched.noisy else None,
        rankings=rankings,
    )


def _mask(searched: Landscape, units: Units) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    X_MD = np.zeros((1, searched.n), dtype=np.bool_)
    X_MD[0, list(units)] = True
    return X_MD
