"""The rivals that do not move like swarms: greedy removal, one-shot rankings, and Optuna's own samplers."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from prunesearch.candidate import LayerSubset
from prunesearch.samplers.base import GenerationPendingError, Proposal, SubsetSampler
from prunesearch.samplers.ledger import create_running, set_params, under_optimize
from prunesearch.samplers.swarms import SINGLE, checked_ranking
from prunesearch.space import SearchSpace
from prunesearch.swarm.constructive import by_total, greedy_step
from prunesearch.swarm.history import Outcome
from prunesearch.swarm.moves import Mask, generator, top, unseen
from prunesearch.swarm.surrogate import harm_of


class ConstructiveSampler(SubsetSampler):
    """Proposes from the losses of whole and partial subsets alike."""

    def __init__(self, space: SearchSpace, *, seed: int = 0, population: int = 16) -> None:
        super().__init__(space, seed=seed, population=population)
        self._forget()

    def _forget(self) -> None:
        self._loss_of: dict[bytes, float] = {}

    def propose(self, study: Study, number: int) -> Proposal:
        """Return the candidate of trial `number`.

        Raises:
            GenerationPendingError: it depends on a trial that is still running.
        """
        ledger = self.ledger(study)
        with self._lock:
            unfinished = ledger.unfinished(number)
            running = [X_D for X_D in (self.mask_of(study, n) for n in unfinished) if X_D is not None]
            X_D = self._next({X_D.tobytes() for X_D in running}, number)
        if X_D is None:
            if under_optimize(study) and ledger.wait(number):
                return self.propose(study, number)
            raise GenerationPendingError(
                f"trial {number} needs the results of trial(s) {', '.join(map(str, unfinished))}: tell them first"
            )
        candidate = self.space.candidate(np.flatnonzero(X_D).tolist())
        return Proposal(number, candidate, json.dumps({"by": self.name}), stone=not self.units.holds(X_D))

    def mask_of(self, study: Study, number: int) -> Mask | None:
        """The subset of a trial, of any size."""
        trial = self.ledger(study).trial(number)
        return None if trial is None else self.mask(trial)

    def _next(self, running: set[bytes], number: int) -> Mask | None:
        """The next subset that is neither finished nor running; None while it depends on one that is."""
        raise NotImplementedError

    def _after(self, X_D: Mask, running: set[bytes], number: int) -> Mask:
        """Once the plan is done: the nearest new subset to its result."""
        return unseen(X_D, self.units, {*self._loss_of, *running}, generator(self.study_seed, number, 0))

    def _read(self, trial: FrozenTrial, losses: Sequence[float]) -> Outcome:
        X_D = self.mask(trial)
        if X_D is not None:
            self._loss_of[X_D.tobytes()] = losses[0] if losses else float("inf")
        return super()._read(trial, losses)


class GreedySampler(ConstructiveSampler):
    """SLEB: remove the least harmful block, as often as the space demands, then look around the result."""

    name = "greedy"

    def missing(self, study: Study) -> int:
        """How many trials the rounds of a study still need."""
        ledger = self.ledger(study)
        with self._lock:
            ledger.refresh(ledger.count())
            base_D, unfinished = greedy_step(self.units, self._loss_of)
        if not unfinished:
            return 0
        free = int(self.units.free_D.sum())
        later_rounds = range(int(base_D.sum()) + 1, self.units.k_max)
        return len(unfinished) + sum(free - dropped for dropped in later_rounds)

    def _next(self, running: set[bytes], number: int) -> Mask | None:
        base_D, unfinished = greedy_step(self.units, self._loss_of)
        for X_D in unfinished:
            if X_D.tobytes() not in running:
                return X_D
        return None if unfinished else self._after(base_D, running, number)


class OneShotSampler(ConstructiveSampler):
    """Drops the blocks that a ranking finds cheapest, then the next cheapest selections in order of their sum.

    Args:
        ranking: what dropping each unit alone costs, or ``"single"`` to measure it first.
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
        """What determines the proposals beside the trials."""
        return {**super().config, "ranking": SINGLE if self._given is None else self._given.harm_D.round(9).tolist()}

    def _next(self, running: set[bytes], number: int) -> Mask | None:
        if self._given is None:
            singles = np.eye(self.space.n_units, dtype=np.bool_)[list(self.space.droppable)]
            waiting = [X_D for X_D in singles if X_D.tobytes() not in self._loss_of]
            if waiting:
                return next((X_D for X_D in waiting if X_D.tobytes() not in running), None)
            loss_D = np.full(self.space.n_units, np.inf)
            loss_D[list(self.space.droppable)] = [self._loss_of[X_D.tobytes()] for X_D in singles]
            harm_D = harm_of(np.where(np.isfinite(loss_D), loss_D, np.nanmax(loss_D[np.isfinite(loss_D)], initial=1.0)))
        else:
            harm_D = self._given.harm_D
        done = {*self._loss_of, *running}
        for X_D in islice(by_total(harm_D, self.units, self.units.k_max), len(done) + 1):
            if X_D.tobytes() not in done:
                return X_D
        return self._after(top(-harm_D[None], np.array([self.units.k_max]))[0], running, number)


class OptunaSampler(SubsetSampler):
    """One of Optuna's own samplers over the same binary parameters.

    What it suggests is repaired to a subset of the space, dropping and adding units at random, and made new. Its own
    random numbers live in memory, so a resumed study goes on with others.

    Args:
        inner: the sampler.
    """

    def __init__(
        self, space: SearchSpace, inner: BaseSampler, name: str, *, seed: int = 0, population: int = 16
    ) -> None:
        super().__init__(space, seed=seed, population=population)
        self.inner, self.name = inner, name
        self.several_objectives = name != "cmaes"
        self._forget()

    def _forget(self) -> None:
        self._seen: set[bytes] = set()

    def ask(
        self, study: Study, describe: Callable[[LayerSubset], Mapping[str, Any]] = lambda candidate: {}
    ) -> Proposal:
        """Create the study's next trial and return its proposal; the trial comes first, since `inner` writes to it."""
        self.ledger(study)
        trial = create_running(study)
        self.before_trial(study, trial)
        params = self.sample_relative(study, trial, self._distributions)
        candidate = self.space.from_params(params)
        set_params(study, trial, params, self._distributions, {"dropped": candidate.text, **describe(candidate)})
        return Proposal(trial.number, candidate, "{}")

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:  # noqa: ANN401
        """Let `inner` suggest every parameter, then repair."""
        ledger = self.ledger(study)
        with self._lock:
            ledger.refresh(trial.number)
            space = self.inner.infer_relative_search_space(study, trial)
            params = self.inner.sample_relative(study, trial, {n: d for n, d in space.items() if n in search_space})
            for name, distribution in search_space.items():
                if name not in params:
                    params[name] = self.inner.sample_independent(study, trial, name, distribution)
            rng = generator(self.study_seed, trial.number, 0)
            wanted_D = np.array([params[name] for name in self.space.param_names], dtype=np.bool_) & self.units.free_D
            size = int(np.clip(wanted_D.sum(), self.units.k_min, self.units.k_max))
            score_D = np.where(self.units.free_D, 2.0 * wanted_D + rng.random(wanted_D.size), -1.0)
            X_D = unseen(top(score_D[None], np.array([size]))[0], self.units, self._seen, rng)
            self._seen.add(X_D.tobytes())
        return self.space.to_params(self.space.candidate(np.flatnonzero(X_D).tolist()))

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Refuse what `SubsetSampler` does, and pass on."""
        super().before_trial(study, trial)
        self.inner.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Pass on."""
        self.inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Pass on."""
        self.inner.reseed_rng()

    def _read(self, trial: FrozenTrial, losses: Sequence[float]) -> Outcome:
        X_D = self.mask(trial)
        if X_D is not None:
            self._seen.add(X_D.tobytes())
        return super()._read(trial, losses)
