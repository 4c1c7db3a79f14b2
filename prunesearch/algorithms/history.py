"""The finished trials of a study as arrays, and the swarm that the next generation starts from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prunesearch.algorithms import pareto
from prunesearch.algorithms.constraints import Constraints
from prunesearch.algorithms.operators import Counts, Mask, Real

Memory = Mapping[str, Real]
"""State that an algorithm stores with a trial: arrays by name, such as the velocity ``v``."""


@dataclass(frozen=True)
class TrialOutcome:
    """One finished trial.

    Attributes:
        X_D: subset of the trial; None if the trial does not belong to this space.
        losses: objective values, to be minimised; None if the trial failed.
        partial: True for a pruned trial. Its loss is its last intermediate value, of a lower
            fidelity.
        steps: intermediate values by step.
        memory: state that the algorithm stored with the trial.
        violation: total violation of the study's constraints; 0 if the trial is feasible.
        error: standard error of the first loss; NaN if it has none.
    """

    X_D: Mask | None
    losses: tuple[float, ...] | None
    partial: bool = False
    steps: Mapping[int, float] = field(default_factory=dict)
    memory: Memory = field(default_factory=dict)
    violation: float = 0.0
    error: float = np.nan


class History:
    """Finished trials by number, in growing arrays. A finished trial cannot change, so it is read
    once.

    Args:
        units: number of units D.
        objectives: number of objectives.
    """

    UNKNOWN, COMPLETE, PRUNED, FAILED = range(4)
    """Kinds of trial.

    They are: not finished or without a subset; with a loss; with a loss of lower fidelity; failed.
    """

    def __init__(self, units: int, objectives: int = 1) -> None:
        self.objectives = objectives
        self.memories: list[Memory] = []
        self.steps: dict[int, Mapping[int, float]] = {}
        self._X_ND = np.zeros((64, units), dtype=np.bool_)
        self._loss_NO = np.full((64, objectives), np.inf)
        self._kind_N = np.zeros(64, dtype=np.int8)
        self._violation_N = np.zeros(64)
        self._error_N = np.full(64, np.nan)

    def __len__(self) -> int:
        return len(self.memories)

    def append(self, outcome: TrialOutcome | None) -> None:
        """Add the trial whose number is the history's length; None if it has not finished."""
        # Double the arrays when they are full.
        if len(self) == len(self._X_ND):
            self._X_ND = np.concatenate([self._X_ND, np.zeros_like(self._X_ND)])
            self._loss_NO = np.concatenate([self._loss_NO, np.full_like(self._loss_NO, np.inf)])
            self._kind_N = np.concatenate([self._kind_N, np.zeros_like(self._kind_N)])
            self._violation_N = np.concatenate(
                [self._violation_N, np.zeros_like(self._violation_N)]
            )
            self._error_N = np.concatenate([self._error_N, np.full_like(self._error_N, np.nan)])
        self.memories.append({})
        if outcome is not None:
            self.settle(len(self) - 1, outcome)

    def settle(self, number: int, outcome: TrialOutcome) -> None:
        """Enter the outcome of a trial that has finished since it was added."""
        self.memories[number] = outcome.memory
        if outcome.steps:
            self.steps[number] = outcome.steps
        if outcome.X_D is None:
            return
        self._X_ND[number] = outcome.X_D
        self._violation_N[number] = outcome.violation
        self._error_N[number] = outcome.error
        # Without a loss, or with NaN, the trial counts as failed.
        self._kind_N[number] = History.FAILED
        if outcome.losses is not None and not np.isnan(outcome.losses).any():
            self._loss_NO[number] = outcome.losses
            self._kind_N[number] = History.PRUNED if outcome.partial else History.COMPLETE

    @property
    def error_N(self) -> Real:
        """Standard error of the first loss of each trial; NaN for a trial without one."""
        return self._error_N[: len(self)]

    def view(self, end: int, hidden: Sequence[int] = ()) -> "View":
        """Return the trials before `end`, as if those in `hidden` had not finished."""
        kind_N = self._kind_N[:end]
        if hidden:
            kind_N = kind_N.copy()
            kind_N[list(hidden)] = History.UNKNOWN
        loss_NO = feasible_first(self._loss_NO[:end], self._violation_N[:end], kind_N)
        return View(self, self._X_ND[:end], loss_NO, kind_N)


def feasible_first(loss_NO: Real, violation_N: Real, kind_N: NDArray[np.int8]) -> Real:
    """Return losses that rank every feasible trial before every infeasible one, and these by their
    violation.

    The loss of an infeasible trial is the worst feasible loss plus its violation: K. Deb, "An
    efficient constraint handling method for genetic algorithms", Comput. Methods Appl. Mech. Eng.
    186, 2000, eq. 4. This holds in each objective, so that a feasible trial dominates. Without
    constraints the losses are unchanged.
    """
    rated_N = (kind_N == History.COMPLETE) | (kind_N == History.PRUNED)
    broken_N = rated_N & (violation_N > 0.0)
    if not broken_N.any():
        return loss_NO
    feasible_NO = loss_NO[rated_N & ~broken_N]
    worst_O = np.zeros(loss_NO.shape[1])
    if len(feasible_NO):
        worst_O = feasible_NO.max(0)
    ranked_NO = loss_NO.copy()
    ranked_NO[broken_N] = np.maximum(
        worst_O + violation_N[broken_N, None], np.nextafter(worst_O, np.inf)
    )
    return ranked_NO


@dataclass(frozen=True)
class View:
    """The first N trials of a history.

    Attributes:
        history: the complete history.
        X_ND: subsets; empty for a trial without one.
        loss_NO: losses of each objective; inf for a trial without one.
        kind_N: kind of each trial, such as `History.COMPLETE`.
    """

    history: History
    X_ND: Mask
    loss_NO: Real
    kind_N: NDArray[np.int8]

    @cached_property
    def complete(self) -> Counts:
        """Numbers of the trials that have a loss of full fidelity."""
        return np.flatnonzero(self.kind_N == History.COMPLETE)

    @cached_property
    def estimated(self) -> tuple[Counts, Real]:
        """Numbers of all trials with a loss, and their losses at full fidelity, shape (n,
        objectives).

        The loss of a pruned trial is estimated: its last intermediate value plus the median change
        that complete trials had from this step to the end. It is never better than the best
        complete trial, so a pruned trial informs the search but never leads it.
        """
        pruned = np.flatnonzero(self.kind_N == History.PRUNED)
        if not pruned.size:
            return self.complete, self.loss_NO[self.complete]
        rows = np.concatenate([self.complete, pruned])
        loss_NO = self.loss_NO[rows].copy()
        typical, best = np.inf, -np.inf
        if self.complete.size:
            complete_N = self.loss_NO[self.complete, 0]
            typical, best = float(np.median(complete_N)), float(complete_N.min())
        # How complete trials changed from each step to the end.
        gaps: dict[int, list[float]] = {}
        for number in self.complete.tolist():
            for step, value in self.history.steps.get(number, {}).items():
                gaps.setdefault(step, []).append(float(self.loss_NO[number, 0]) - value)
        # Estimate the pruned trials.
        for place, number in enumerate(pruned.tolist(), start=self.complete.size):
            step = max(self.history.steps.get(number, {-1: 0.0}))
            value = float(self.loss_NO[number, 0])
            guess = max(value, typical)
            if step in gaps:
                guess = value + float(np.median(gaps[step]))
            loss_NO[place, 0] = max(guess, np.nextafter(best, np.inf))
        return rows, loss_NO


@dataclass(frozen=True)
class Swarm:
    """State from which the moves of a generation are derived.

    Attributes:
        constraints: constraints on the subsets.
        generation: number of the generation to propose, counted from 0.
        number_P: latest trial of each particle. `X_PD` and `memory_P` are its subset and memory.
        loss_P: loss of each particle's latest trial; inf if it failed.
        best_P: best trial of each particle. `best_X_PD` and `best_memory_P` are its subset and
            memory.
        leader_P: trial that leads each particle.
        elite_ED: best distinct subsets of the study, best first.
        view: history that the swarm was built from.
    """

    constraints: Constraints
    generation: int
    number_P: Counts
    loss_P: Real
    best_P: Counts
    leader_P: Counts
    elite_ED: Mask
    view: View

    @cached_property
    def X_PD(self) -> Mask:
        """Position of each particle."""
        return np.asarray(self.view.X_ND[self.number_P])

    @cached_property
    def best_X_PD(self) -> Mask:
        """Best position of each particle."""
        return np.asarray(self.view.X_ND[self.best_P])

    @property
    def memory_P(self) -> list[Memory]:
        """Memory stored with each particle's position."""
        return [self.view.history.memories[number] for number in self.number_P]

    @property
    def best_memory_P(self) -> list[Memory]:
        """Memory stored with each particle's best position."""
        return [self.view.history.memories[number] for number in self.best_P]

    def leader(self, particle: int) -> Mask:
        """Return the subset that leads a particle."""
        return np.asarray(self.view.X_ND[self.leader_P[particle]])


def gather(
    view: View,
    constraints: Constraints,
    generation: int,
    population: int,
    rng: np.random.Generator,
) -> Swarm | None:
    """Rebuild the swarm from a history; None if no trial has a loss of full fidelity.

    Trial n belongs to particle n mod `population`. A particle without a trial takes its leader's
    position. With several objectives, each particle minimises the augmented Chebyshev sum of the
    objectives' ranks with its own weights (J. Knowles, "ParEGO", IEEE TEVC 10(1), 2006, eq. 2). Its
    leader is a member of the archive of non-dominated trials, the less crowded of two drawn (C. A.
    Coello Coello et al., "Handling multiple objectives with particle swarm optimization", IEEE TEVC
    8(3), 2004, with the crowding distance of K. Deb et al., NSGA-II, IEEE TEVC 6(2), 2002).
    """
    if not view.complete.size:
        return None
    rows, loss_NO = view.estimated
    full_N = np.arange(rows.size) < view.complete.size
    loss_N = loss_NO[:, 0]
    leader = int(view.complete[np.argmin(view.loss_NO[view.complete, 0])])
    # One objective: the best trial leads all. Several: members of the archive lead.
    several = loss_NO.shape[1] > 1
    if several:
        archive = pareto.archive(view.loss_NO[view.complete])
        crowd = pareto.crowding(view.loss_NO[view.complete[archive]])
        elite = view.complete[archive]
    else:
        elite = _elite(view, 2 * population)
    leader_P = np.full(population, leader, dtype=np.intp)
    number_P, best_P = leader_P.copy(), leader_P.copy()
    loss_P = np.full(population, np.inf)
    for particle in range(population):
        if several:
            weight_O = pareto.weights(particle, generation, population, loss_NO.shape[1])
            loss_N = pareto.scalar(loss_NO, weight_O)
            pair = rng.integers(len(archive), size=2)
            leader_P[particle] = view.complete[archive[pair[int(np.argmax(crowd[pair]))]]]
        # The latest trial, and its loss.
        number_P[particle] = leader_P[particle]
        placed = np.flatnonzero(view.kind_N[particle::population] != History.UNKNOWN)
        if placed.size:
            number_P[particle] = particle + population * placed[-1]
        here = np.flatnonzero(rows == number_P[particle])
        if here.size:
            loss_P[particle] = loss_N[here[0]]
        # The best trial; those of full fidelity go first.
        best_P[particle] = leader_P[particle]
        own = np.flatnonzero(rows % population == particle)
        if own.size:
            preferred = own[full_N[own]] if full_N[own].any() else own
            best_P[particle] = rows[preferred[np.argmin(loss_N[preferred])]]
    return Swarm(
        constraints, generation, number_P, loss_P, best_P, leader_P, view.X_ND[elite], view
    )


def _elite(view: View, most: int) -> Counts:
    """Return the best distinct subsets among the best trials, best first.

    Of equal losses, the earlier one is first.
    """
    loss_N = view.loss_NO[view.complete, 0]
    few = np.arange(loss_N.size)
    if loss_N.size > most + 1:
        few = np.argpartition(loss_N, most)[: most + 1]
    ordered = view.complete[few[np.lexsort((few, loss_N[few]))]]
    distinct: dict[bytes, int] = {}
    for number in ordered.tolist():
        distinct.setdefault(view.X_ND[number].tobytes(), number)
    return np.array(list(distinct.values())[:most], dtype=np.intp)
