"""Baseline samplers that are not swarms: greedy removal, one-shot rankings, and Optuna's own
samplers.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from prunesearch.algorithms.constructive import by_total, greedy_step
from prunesearch.algorithms.history import Outcome
from prunesearch.algorithms.operators import (
    Mask,
    generator,
    top,
    unseen,
)
from prunesearch.algorithms.surrogate import harm_of
from prunesearch.candidate import LayerSubset
from prunesearch.samplers.base import GenerationPendingError, Proposal, SubsetSampler
from prunesearch.samplers.population import SINGLE, checked_ranking
from prunesearch.space import SearchSpace
from prunesearch.studies.trial_log import create_running, set_params, under_optimize


class ConstructiveSampler(SubsetSampler):
    """Base class of samplers that use the losses of complete and partial subsets."""

    def __init__(self, space: SearchSpace, *, seed: int = 0, population: int = 16) -> None:
        super().__init__(space, seed=seed, population=population)
        self._forget()

    def _forget(self) -> None:
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
            X_D = self._next(running, number)
        if X_D is None:
            # The next step needs the running trials: wait for them where that cannot deadlock.
            if under_optimize(study) and trial_log.wait(number):
                return self.propose(study, number)
            raise GenerationPendingError(
                f"trial {number} needs the results of trial(s) {', '.join(map(str, unfinished))}: "
                f"tell them first"
            )
        candidate = self.space.candidate(np.flatnonzero(X_D).tolist())
        return Proposal(
            number,
            candidate,
            json.dumps({"by": self.name}),
            partial_subset=not self.units.holds(X_D),
        )

    def mask_of(self, study: Study, number: int) -> Mask | None:
        """Return the subset of a trial, of any size; None if it is not known."""
        trial = self.trial_log(study).trial(number)
        if trial is None:
            return None
        return self.mask(trial)

    def _next(self, running: set[bytes], number: int) -> Mask | None:
        """Return the next subset that is neither finished nor running;

        None if it depends on a running one.
        """
        raise NotImplementedError

    def _after(self, X_D: Mask, running: set[bytes], number: int) -> Mask:
        """Return a new subset close to `X_D`, the result of the completed plan."""
        return unseen(
            X_D, self.units, {*self._loss_of, *running}, generator(self.study_seed, number, 0)
        )

    def _read(self, trial: FrozenTrial, losses: Sequence[float]) -> Outcome:
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
            base_D, unfinished = greedy_step(self.units, self._loss_of)
        if not unfinished:
            return 0
        # The rest of this round, and one trial for each remaining unit in every later round.
        free = int(self.units.free_D.sum())
        later_rounds = range(int(base_D.sum()) + 1, self.units.k_max)
        return len(unfinished) + sum(free - dropped for dropped in later_rounds)

    def _next(self, running: set[bytes], number: int) -> Mask | None:
        base_D, unfinished = greedy_step(self.units, self._loss_of)
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
        space, seed, population: see `SubsetSampler`.
        ranking: cost of dropping each unit alone, or ``"single"`` to measure it first.
    """

    name = "one-shot"

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = 0,
        population: int = 16,
        ranking: Sequence[float] | Literal["single"] = "single",
    ) -> None:
        super().__init__(space, seed=seed, population=population)
        self._given = None if isinstance(ranking, str) else checked_ranking(ranking, space.n_units)

    @property
    def config(self) -> dict[str, Any]:
        """Settings that determine the proposals."""
        ranking = SINGLE if self._given is None else self._given.harm_D.round(9).tolist()
        return {**super().config, "ranking": ranking}

    def _next(self, running: set[bytes], number: int) -> Mask | None:
        if self._given is not None:
            harm_D = self._given.harm_D
        else:
            # Measure each unit alone first.
            droppable = list(self.space.droppable)
            singles = np.eye(self.space.n_units, dtype=np.bool_)[droppable]
            waiting: list[Mask] = [X_D for X_D in singles if X_D.tobytes() not in self._loss_of]
            for X_D in waiting:
                if X_D.tobytes() not in running:
                    return X_D
            if waiting:
                return None
            # A failed unit counts as the worst one.
            loss_D = np.full(self.space.n_units, np.inf)
            loss_D[droppable] = [self._loss_of[X_D.tobytes()] for X_D in singles]
            finite_D = np.isfinite(loss_D)
            worst = np.nanmax(loss_D[finite_D], initial=1.0)
            harm_D = harm_of(np.where(finite_D, loss_D, worst))
        # Walk through the subsets in order of their total cost, up to the first new one.
        done = {*self._loss_of, *running}
        for X_D in islice(by_total(harm_D, self.units, self.units.k_max), len(done) + 1):
            if X_D.tobytes() not in done:
                return X_D
        cheapest_D = top(-harm_D[None], np.array([self.units.k_max]))[0]
        return self._after(cheapest_D, running, number)


class OptunaSampler(SubsetSampler):
    """Wraps one of Optuna's own samplers over the same binary parameters.

    Its suggestion is repaired: units are dropped or added at random until it is a new subset of the
    space. The random state of Optuna's sampler lives in memory, so a resumed study continues with
    other random numbers.

    Args:
        space, seed, population: see `SubsetSampler`.
        inner: Optuna's sampler.
        name: name of the sampler on the command line.
    """

    def __init__(
        self,
        space: SearchSpace,
        inner: BaseSampler,
        name: str,
        *,
        seed: int = 0,
        population: int = 16,
    ) -> None:
        super().__init__(space, seed=seed, population=population)
        self.inner, self.name = inner, name
        self.several_objectives = name != "cmaes"
        self._forget()

    def _forget(self) -> None:
        self._seen: set[bytes] = set()

    def ask(
        self,
        study: Study,
        describe: Callable[[LayerSubset], Mapping[str, Any]] = lambda candidate: {},
    ) -> Proposal:
        """Create the study's next trial and return its proposal."""
        self.trial_log(study)
        # The trial is created first, because `inner` writes to it.
        trial = create_running(study)
        self.before_trial(study, trial)
        params = self.sample_relative(study, trial, self._distributions)
        candidate = self.space.from_params(params)
        set_params(
            study,
            trial,
            params,
            self._distributions,
            {"dropped": candidate.text, **describe(candidate)},
        )
        return Proposal(trial.number, candidate, "{}")

    def sample_relative(
        self,
        study: Study,
        trial: FrozenTrial,
        search_space: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        """Let `inner` suggest every parameter, then repair the subset."""
        trial_log = self.trial_log(study)
        with self._lock:
            trial_log.refresh(trial.number)
            # Let Optuna's sampler suggest.
            space = self.inner.infer_relative_search_space(study, trial)
            relative = {name: d for name, d in space.items() if name in search_space}
            params = self.inner.sample_relative(study, trial, relative)
            for name, distribution in search_space.items():
                if name not in params:
                    params[name] = self.inner.sample_independent(study, trial, name, distribution)
            # Repair: suggested units come first, in random order, then the others.
            rng = generator(self.study_seed, trial.number, 0)
            suggested_D = np.array(
                [params[name] for name in self.space.param_names], dtype=np.bool_
            )
            wanted_D = suggested_D & self.units.free_D
            size = int(np.clip(wanted_D.sum(), self.units.k_min, self.units.k_max))
            score_D = np.where(self.units.free_D, 2.0 * wanted_D + rng.random(wanted_D.size), -1.0)
            # Replace a subset that was proposed before by a new one.
            repaired_D = top(score_D[None], np.array([size]))[0]
            X_D = unseen(repaired_D, self.units, self._seen, rng)
            self._seen.add(X_D.tobytes())
        return self.space.to_params(self.space.candidate(np.flatnonzero(X_D).tolist()))

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Check the study as `SubsetSampler` does, then delegate to Optuna's sampler."""
        super().before_trial(study, trial)
        self.inner.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Delegate to Optuna's sampler."""
        self.inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Delegate to Optuna's sampler."""
        self.inner.reseed_rng()

    def _read(self, trial: FrozenTrial, losses: Sequence[float]) -> Outcome:
        X_D = self.mask(trial)
        if X_D is not None:
            self._seen.add(X_D.tobytes())
        return super()._read(trial, losses)
