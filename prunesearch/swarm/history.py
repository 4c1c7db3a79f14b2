"""What a study has told so far, as arrays, and the swarm that it leaves to the next generation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prunesearch.swarm import front
from prunesearch.swarm.moves import Counts, Mask, Real, Units

Memory = Mapping[str, Real]
"""What an algorithm remembers of a trial beside its subset: arrays by name, such as the velocity ``v``."""


@dataclass(frozen=True)
class Outcome:
    """One finished trial.

    Attributes:
        X_D: its subset; None for a foreign trial that has none in this space.
        losses: its objective values, to be minimised; None if it failed.
        partial: it was pruned, so that its loss is its last intermediate value, of a lower fidelity.
        steps: intermediate values by step.
        memory: what the algorithm stored with it.
        violation: by how much it violates the study's constraints, all together; 0 if it is feasible.
    """

    X_D: Mask | None
    losses: tuple[float, ...] | None
    partial: bool = False
    steps: Mapping[int, float] = field(default_factory=dict)
    memory: Memory = field(default_factory=dict)
    violation: float = 0.0


class History:
    """Finished trials by number, in growing arrays: a memo of what cannot change any more.

    Args:
        units: number of units D.
        objectives: number of objectives.
    """

    UNKNOWN, COMPLETE, PRUNED, FAILED = range(4)
    """Kinds of trial: not finished or without a subset; with a loss; with one of lower fidelity; without one."""

    def __init__(self, units: int, objectives: int = 1) -> None:
        self.objectives = objectives
        self.memories: list[Memory] = []
        self.steps: dict[int, Mapping[int, float]] = {}
        self._X_ND = np.zeros((64, units), dtype=np.bool_)
        self._loss_NO = np.full((64, objectives), np.inf)
        self._kind_N = np.zeros(64, dtype=np.int8)
        self._violation_N = np.zeros(64)

    def __len__(self) -> int:
        return len(self.memories)

    def append(self, outcome: Outcome | None) -> None:
        """Add the trial whose number is the history's length; None if it has not finished."""
        if len(self) == len(self._X_ND):
            self._X_ND = np.concatenate([self._X_ND, np.zeros_like(self._X_ND)])
            self._loss_NO = np.concatenate([self._loss_NO, np.full_like(self._loss_NO, np.inf)])
            self._kind_N = np.concatenate([self._kind_N, np.zeros_like(self._kind_N)])
            self._violation_N = np.concatenate([self._violation_N, np.zeros_like(self._violation_N)])
        self.memories.append({})
        if outcome is not None:
            self.settle(len(self) - 1, outcome)

    def settle(self, number: int, outcome: Outcome) -> None:
        """Enter a trial that has finished since it was added."""
        self.memories[number] = outcome.memory
        if outcome.steps:
            self.steps[number] = outcome.steps
        if outcome.X_D is None:
            return
        self._X_ND[number] = outcome.X_D
        self._violation_N[number] = outcome.violation
        self._kind_N[number] = History.FAILED
        if outcome.losses is not None and not np.isnan(outcome.losses).any():
            self._loss_NO[number] = outcome.losses
            self._kind_N[number] = History.PRUNED if outcome.partial else History.COMPLETE

    def view(self, end: int, hidden: Sequence[int] = ()) -> "View":
        """The trials before `end`, as if those in `hidden` had not finished."""
        kind_N = self._kind_N[:end]
        if hidden:
            kind_N = kind_N.copy()
            kind_N[list(hidden)] = History.UNKNOWN
        loss_NO = feasible_first(self._loss_NO[:end], self._violation_N[:end], kind_N)
        return View(self, self._X_ND[:end], loss_NO, kind_N)


def feasible_first(loss_NO: Real, violation_N: Real, kind_N: NDArray[np.int8]) -> Real:
    """Losses with which every feasible trial ranks before every infeasible one, and those by their violation.

    An infeasible trial's loss is the worst feasible one plus its violation: K. Deb, "An efficient constraint handling
    method for genetic algorithms", Comput. Methods Appl. Mech. Eng. 186, 2000, eq. 4. Here in each objective, so that a
    feasible trial dominates. Without constraints the losses stay as they are.
    """
    rated_N = (kind_N == History.COMPLETE) | (kind_N == History.PRUNED)
    broken_N = rated_N & (violation_N > 0.0)
    if not broken_N.any():
        return loss_NO
    feasible_NO = loss_NO[rated_N & ~broken_N]
    worst_O = feasible_NO.max(0) if len(feasible_NO) else np.zeros(loss_NO.shape[1])
    ranked_NO = loss_NO.copy()
    ranked_NO[broken_N] = np.maximum(worst_O + violation_N[broken_N, None], np.nextafter(worst_O, np.inf))
    return ranked_NO


@dataclass(frozen=True)
class View:
    """A history as of some moment; N trials.

    Attributes:
        X_ND: subsets (no unit where there is none).
        loss_NO: losses of each objective; inf without one.
        kind_N: `History.COMPLETE` and so on.
    """

    history: History
    X_ND: Mask
    loss_NO: Real
    kind_N: NDArray[np.int8]

    @cached_property
    def complete(self) -> Counts:
        """Numbers of the trials with a loss of full fidelity."""
        return np.flatnonzero(self.kind_N == History.COMPLETE)

    @cached_property
    def estimated(self) -> tuple[Counts, Real]:
        """Numbers of all trials with a loss, and their losses at full fidelity, shape (n, objectives).

        A pruned trial's is its last intermediate value, moved by the median step from there to the end that complete
        trials took, and never better than the best complete one: it informs, but does not lead.
        """
        pruned = np.flatnonzero(self.kind_N == History.PRUNED)
        if not pruned.size:
            return self.complete, self.loss_NO[self.complete]
        known = {n: self.history.steps[n] for n in self.complete.tolist() if n in self.history.steps}
        rows = np.concatenate([self.complete, pruned])
        loss_NO = self.loss_NO[rows].copy()
        typical = float(np.median(self.loss_NO[self.complete, 0])) if self.complete.size else np.inf
        best = float(self.loss_NO[self.complete, 0].min()) if self.complete.size else -np.inf
        gaps: dict[int, list[float]] = {}
        for number, steps in known.items():
            for step, value in steps.items():
                gaps.setdefault(step, []).append(float(self.loss_NO[number, 0]) - value)
        for place, number in enumerate(pruned.tolist(), start=self.complete.size):
            step = max(self.history.steps.get(number, {-1: 0.0}))
            value = float(self.loss_NO[number, 0])
            guess = value + float(np.median(gaps[step])) if step in gaps else max(value, typical)
            loss_NO[place, 0] = max(guess, np.nextafter(best, np.inf))
        return rows, loss_NO


@dataclass(frozen=True)
class Swarm:
    """All that a generation's moves are made from.

    Attributes:
        units: the subsets there are.
        generation: number of the generation to be proposed, counted from 0.
        number_P: each particle's latest trial; `X_PD`, `memory_P` and `loss_P` are its subset, what was stored with it,
            and its loss (inf if it failed).
        best_P: each particle's best trial; `best_X_PD` and `best_memory_P` are its subset and memory.
        leader_P: for each particle, the trial that leads it.
        elite_ED: the best distinct subsets of the study, best first.
        view: the history behind all this.
    """

    units: Units
    generation: int
    number_P: Counts
    loss_P: Real
    best_P: Counts
    leader_P: Counts
    elite_ED: Mask
    view: View

    @cached_property
    def X_PD(self) -> Mask:
        """Each particle's position."""
        return np.asarray(self.view.X_ND[self.number_P])

    @cached_property
    def best_X_PD(self) -> Mask:
        """Each particle's best position."""
        return np.asarray(self.view.X_ND[self.best_P])

    @property
    def memory_P(self) -> list[Memory]:
        """What was stored with each particle's position."""
        return [self.view.history.memories[number] for number in self.number_P]

    @property
    def best_memory_P(self) -> list[Memory]:
        """What was stored with each particle's best position."""
        return [self.view.history.memories[number] for number in self.best_P]

    def leader(self, particle: int) -> Mask:
        """The subset that leads a particle."""
        return np.asarray(self.view.X_ND[self.leader_P[particle]])


def gather(view: View, units: Units, generation: int, population: int, rng: np.random.Generator) -> Swarm | None:
    """Rebuild the swarm that a history leaves; None while no trial of it has a loss of full fidelity.

    Trial n belongs to particle n mod `population`; a particle without a trial stands where its leader is. With several
    objectives a particle minimises the augmented Chebyshev sum of the objectives' ranks with weights of its own
    (J. Knowles, "ParEGO", IEEE TEVC 10(1), 2006, eq. 2), and is led by a member of the archive of non-dominated trials,
    the less crowded of two drawn (C. A. Coello Coello et al., "Handling multiple objectives with particle swarm
    optimization", IEEE TEVC 8(3), 2004, with the crowding distance of K. Deb et al., NSGA-II, IEEE TEVC 6(2), 2002).
    """
    if not view.complete.size:
        return None
    rows, loss_NO = view.estimated
    full_N = np.arange(rows.size) < view.complete.size
    loss_N = loss_NO[:, 0]
    leader = int(view.complete[np.argmin(view.loss_NO[view.complete, 0])])
    several = loss_NO.shape[1] > 1
    archive = front.archive(view.loss_NO[view.complete]) if several else np.array([], dtype=np.intp)
    crowd = front.crowding(view.loss_NO[view.complete[archive]]) if several else np.array([])
    number_P, best_P, leader_P = (np.full(population, leader, dtype=np.intp) for _ in range(3))
    loss_P = np.full(population, np.inf)
    for particle in range(population):
        if several:
            loss_N = front.scalar(loss_NO, front.weights(particle, generation, population, loss_NO.shape[1]))
            pair = rng.integers(len(archive), size=2)
            leader_P[particle] = view.complete[archive[pair[int(np.argmax(crowd[pair]))]]]
        placed = np.flatnonzero(view.kind_N[particle::population] != History.UNKNOWN)
        number_P[particle] = particle + population * placed[-1] if placed.size else leader_P[particle]
        here = np.flatnonzero(rows == number_P[particle])
        loss_P[particle] = loss_N[here[0]] if here.size else np.inf
        own = np.flatnonzero(rows % population == particle)
        preferred = own[full_N[own]] if full_N[own].any() else own
        best_P[particle] = rows[preferred[np.argmin(loss_N[preferred])]] if own.size else leader_P[particle]
    elite = view.complete[archive] if several else _elite(view, 2 * population)
    return Swarm(units, generation, number_P, loss_P, best_P, leader_P, view.X_ND[elite], view)


def _elite(view: View, most: int) -> Counts:
    """The best distinct subsets among the best trials, best first; ties go to the earlier one."""
    loss_N = view.loss_NO[view.complete, 0]
    few = np.argpartition(loss_N, most)[: most + 1] if loss_N.size > most + 1 else np.arange(loss_N.size)
    ordered = view.complete[few[np.lexsort((few, loss_N[few]))]]
    distinct: dict[bytes, int] = {}
    for number in ordered.tolist():
        distinct.setdefault(view.X_ND[number].tobytes(), number)
    return np.array(list(distinct.values())[:most], dtype=np.intp)
