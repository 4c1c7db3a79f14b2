"""Samplers that build a subset step by step: greedy removal and one-shot rankings."""

import json
from collections.abc import Sequence
from itertools import islice
from typing import Literal

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from prunesearch.algorithms.greedy import greedy_step
from prunesearch.algorithms.history import TrialOutcome
from prunesearch.algorithms.operators import Mask, generator
from prunesearch.algorithms.registry import SINGLE, AlgorithmEntry
from prunesearch.algorithms.surrogate import Ranking, harm_of
from prunesearch.candidate import LayerSubset
from prunesearch.runtime.json_values import JsonObject
from prunesearch.samplers.base import GenerationPendingError, Proposal, SubsetSampler
from prunesearch.samplers.rankings import checked_ranking, droppable_units, stored_ranking
from prunesearch.samplers.settings import SamplerSettings
from prunesearch.space import Space
from prunesearch.studies.trial_log import under_optimize
from prunesearch.units import noun_for


class ConstructiveSampler(SubsetSampler):
    """Base class of samplers that use the losses of complete and partial subsets."""

    def __init__(
        self,
        space: Space,
        *,
        seed: int | None = 0,
        population: int = 16,
        first: Sequence[LayerSubset] = (),
    ) -> None:
        super().__init__(space, seed=seed, population=population, first=first)
        self._reset_caches()

    def _reset_caches(self) -> None:
        self._loss_of: dict[bytes, float] = {}

    def propose(self, study: Study, number: int) -> Proposal:
        """Return the proposal for trial `number`.

        Raises:
            GenerationPendingError: the proposal depends on a trial that is still running.
        """
        trial_log = self.trial_log(study)
        with self._lock:
            # Running subsets are not proposed again.
            unfinished = trial_log.unfinished(number)
            running = set()
            for other in unfinished:
                other_D = self.mask_of(study, other)
                if other_D is not None:
                    running.add(other_D.tobytes())
            X_D: Mask | None = None
            if number < len(self.first):
                X_D = self._after(self._first_ED[number], running, number)
            else:
                X_D = self._next(running, number)
        if X_D is None:
            # The next step needs the running trials: wait for them where that cannot deadlock.
            if under_optimize(study) and trial_log.wait(number):
                return self.propose(study, number)
            raise GenerationPendingError(
                f"trial {number} needs the results of {noun_for(len(unfinished), 'trial')} "
                f"{', '.join(map(str, unfinished))}: tell them first"
            )
        candidate = self.space.with_units(np.flatnonzero(X_D).tolist())
        return Proposal(
            number,
            candidate,
            json.dumps({"by": self.name}),
            partial_subset=not self.constraints.holds(X_D),
        )

    def mask_of(self, study: Study, number: int) -> Mask | None:
        """Return the subset of a trial, of any size; None if it is not known."""
        trial = self.trial_log(study).trial(number)
        if trial is None:
            return None
        return self.mask(trial)

    def _next(self, running: set[bytes], number: int) -> Mask | None:
        """Return the next subset that is neither finished nor running.

        It is None if it depends on a running one.
        """
        raise NotImplementedError

    def _after(self, X_D: Mask, running: set[bytes], number: int) -> Mask:
        """Return a new subset close to `X_D`, the result of the completed plan."""
        rng = generator(self.study_seed, number, 0)
        return self.constraints.unseen(X_D, {*self._loss_of, *running}, rng)

    def _read(self, trial: FrozenTrial, losses: Sequence[float]) -> TrialOutcome:
        """Record the loss of a finished subset; a failed trial has an infinite loss."""
        X_D = self.mask(trial)
        if X_D is not None:
            self._loss_of[X_D.tobytes()] = losses[0] if losses else float("inf")
        return super()._read(trial, losses)


class GreedySampler(ConstructiveSampler):
    """SLEB: remove the least harmful block until the budget is reached, then try neighbours of the
    result.
    """

    name = "greedy"

    def missing(self, study: Study) -> int:
        """Return how many trials the greedy rounds still need."""
        trial_log = self.trial_log(study)
        with self._lock:
            trial_log.refresh(trial_log.count())
            base_D, unfinished = greedy_step(self.constraints, self._loss_of)
        if not unfinished:
            return 0
        # The rest of this round, and one trial for each remaining unit in every later round.
        free = int(self.constraints.free_D.sum())
        later_rounds = range(int(base_D.sum()) + 1, self.constraints.k_max)
        return len(unfinished) + sum(free - dropped for dropped in later_rounds)

    def _next(self, running: set[bytes], number: int) -> Mask | None:
        base_D, unfinished = greedy_step(self.constraints, self._loss_of)
        for X_D in unfinished:
            if X_D.tobytes() not in running:
                return X_D
        # The rest of this round is running. Only after the last round there is a result to vary.
        if unfinished:
            return None
        return self._after(base_D, running, number)


class OneShotSampler(ConstructiveSampler):
    """Drops the cheapest blocks of a ranking, then the next cheapest subsets in order of their
    total cost.

    Args:
        space, seed, population, first: see `SubsetSampler`.
        ranking: cost of dropping each unit alone, or ``"single"`` to measure it first.
    """

    name = "one-shot"

    def __init__(
        self,
        space: Space,
        *,
        seed: int | None = 0,
        population: int = 16,
        ranking: Sequence[float] | Literal["single"] = "single",
        first: Sequence[LayerSubset] = (),
    ) -> None:
        super().__init__(space, seed=seed, population=population, first=first)
        self._given: Ranking | None = None
        self._singles: list[int] = []
        if isinstance(ranking, str):
            self._singles = list(droppable_units(space))
        else:
            self._given = checked_ranking(ranking, space.n_units)

    @property
    def config(self) -> JsonObject:
        """Settings that determine the proposals."""
        ranking: str | list[float] = SINGLE
        if self._given is not None:
            ranking = stored_ranking(self._given, self.space)
        return {**super().config, "ranking": ranking}

    def _next(self, running: set[bytes], number: int) -> Mask | None:
        if self._given is not None:
            harm_D = self._given.harm_D
        else:
            # Measure each unit alone first.
            singles = np.eye(self.space.n_units, dtype=np.bool_)[self._singles]
            waiting: list[Mask] = [X_D for X_D in singles if X_D.tobytes() not in self._loss_of]
            for X_D in waiting:
                if X_D.tobytes() not in running:
                    return X_D
            if waiting:
                return None
            # A failed unit counts as the worst one.
            loss_D = np.full(self.space.n_units, np.inf)
            loss_D[self._singles] = [self._loss_of[X_D.tobytes()] for X_D in singles]
            finite_D = np.isfinite(loss_D)
            worst = np.nanmax(loss_D[finite_D], initial=1.0)
            harm_D = harm_of(np.where(finite_D, loss_D, worst))
        # Walk through the subsets in order of their total cost, up to the first new one.
        done = {*self._loss_of, *running}
        cheapest_D: Mask | None = None
        for X_D in islice(self.constraints.by_total(harm_D), len(done) + 1):
            if cheapest_D is None:
                cheapest_D = X_D
            if X_D.tobytes() not in done:
                return X_D
        assert cheapest_D is not None, "every space has a candidate"
        return self._after(cheapest_D, running, number)


def build_greedy(entry: AlgorithmEntry, space: Space, settings: SamplerSettings) -> GreedySampler:
    """Build the sampler of greedy removal."""
    return GreedySampler(space, seed=settings.seed, population=settings.population)


def build_one_shot(
    entry: AlgorithmEntry, space: Space, settings: SamplerSettings
) -> OneShotSampler:
    """Build the sampler of a ranking's order. Without a ranking it measures one."""
    ranking: Sequence[float] | Literal["single"] = "single"
    if settings.ranking is not None:
        ranking = settings.ranking
    return OneShotSampler(
        space,
        seed=settings.seed,
        population=settings.population,
        ranking=ranking,
        first=settings.first,
    )
