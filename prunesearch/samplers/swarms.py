"""`PSOSampler` and `WOASampler`, and their rivals that move like swarms.

The samplers keep no state. A trial's number gives its place, ``generation, slot = divmod(number, population)``; the
random numbers are keyed by (seed, generation, slot); and generation g is a function of the finished trials before
it. So a killed and resumed study, another process, or several workers propose the identical sequence of trials.

With ``asynchronous=True`` no worker waits for a generation: each proposal is a function of the trials that have
finished by then, and their numbers are stored with it, so that `rederive` gives the same proposal at any later time.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, UnknownNameError
from prunesearch.samplers.base import (
    STATE_ATTR,
    GenerationPendingError,
    Proposal,
    SubsetSampler,
    checked_population,
    pack,
)
from prunesearch.samplers.ledger import Basis, Ledger, under_optimize
from prunesearch.space import SearchSpace
from prunesearch.swarm.algorithm import Algorithm
from prunesearch.swarm.history import Memory, Outcome
from prunesearch.swarm.moves import Mask
from prunesearch.swarm.plan import Planner, Preselection
from prunesearch.swarm.surrogate import Ranking, harm_of

SINGLE = "single"
"""Name of the ranking that a study measures itself: each block dropped alone."""
DEFAULT_POPULATION = 6  # few evaluations between two fits of the surrogate: the best measured on landscapes


class SwarmSampler(SubsetSampler):
    """Moves a swarm over the subsets of a space.

    Args:
        space: which blocks may be dropped and how many must be.
        algorithm: how a particle moves.
        seed: of the random numbers; None: the study's own, drawn when it is new.
        population: particles, which is trials per generation; at least 2.
        preselect: let a surrogate choose among many moves of each particle, or its settings.
        ranking: what dropping each unit alone costs, on any positive scale, or ``"single"`` to measure it: the study's
            first trials then drop one block each.
        novelty: never propose a subset twice while there are others.
        asynchronous: never wait for a generation.
    """

    def __init__(
        self,
        space: SearchSpace,
        algorithm: Algorithm,
        *,
        seed: int | None = 0,
        population: int = DEFAULT_POPULATION,
        preselect: bool | Preselection = True,
        ranking: Sequence[float] | Literal["single"] | None = None,
        novelty: bool = True,
        asynchronous: bool = False,
    ) -> None:
        super().__init__(space, seed=seed, population=checked_population(population, 2))
        self.algorithm = algorithm
        self.name = algorithm.name
        self.several_objectives = algorithm.name != "annealing"  # its chains compare single losses
        self.asynchronous = asynchronous
        self.preselection = preselect if isinstance(preselect, Preselection) else Preselection() if preselect else None
        self.novelty = novelty
        self._single = isinstance(ranking, str)
        if isinstance(ranking, str) and ranking != SINGLE:
            raise UnknownNameError("ranking", ranking, (SINGLE,))
        self._given = None if ranking is None or isinstance(ranking, str) else checked_ranking(ranking, space.n_units)
        self._forget()

    @property
    def config(self) -> dict[str, Any]:
        """What determines the proposals beside the trials."""
        ranking = SINGLE if self._single else None if self._given is None else [round(h, 9) for h in self._given.harm_D]
        chosen = None if self.preselection is None else vars(self.preselection)
        return {**super().config, "preselect": chosen, "novelty": self.novelty, "ranking": ranking}

    @property
    def stone_generations(self) -> int:
        """Generations that are spent on dropping single blocks."""
        return -(-len(self.space.droppable) // self.population) if self._single else 0

    def _forget(self) -> None:
        self._stones: dict[int, tuple[int, float]] = {}  # by trial: the one unit it dropped, and its loss
        self._plan: tuple[int, list[Proposal]] | None = None  # of the latest generation
        self._seen: set[bytes] = set()
        self._seen_end = 0
        self._handed: dict[int, Mask] = {}

    def propose(self, study: Study, number: int) -> Proposal:
        """Return the candidate of trial `number`; the whole generation is planned with it.

        Raises:
            GenerationPendingError: a trial of the generation before it is still running.
        """
        ledger = self.ledger(study)
        if self.asynchronous:
            return self._steady(ledger, number)
        generation, slot = divmod(number, self.population)
        end = generation * self.population
        if waiting := ledger.unfinished(end):
            if not under_optimize(study):
                raise GenerationPendingError(
                    f"generation {generation} needs the results of trial(s) {', '.join(map(str, waiting))}: "
                    "tell them first"
                )
            if not ledger.wait(end):  # a worker was killed, and nobody finishes its trial
                return self._steady(ledger, number)
        with self._lock:
            if self._plan is None or self._plan[0] != generation:
                self._plan = generation, self._generation(ledger, generation, range(self.population), Basis(end))
            return self._plan[1][slot]

    def proposal_for(self, study: Study, trial: FrozenTrial) -> Proposal:
        """The candidate of a trial that Optuna has created.

        Who asks past a generation that is under way gets a proposal from what has finished, with that basis stored: to
        wait could lock up, and to refuse would leave a trial that nobody finishes.
        """
        try:
            return self.propose(study, trial.number)
        except GenerationPendingError:
            return self._steady(self.ledger(study), trial.number)

    def rederive(self, study: Study, number: int) -> LayerSubset:
        """Derive once more what was proposed for a trial, from the basis that is stored with it.

        Raises:
            InputError: the trial was not proposed by this sampler.
        """
        ledger = self.ledger(study)
        trial = ledger.trial(number)
        state = json.loads(trial.system_attrs.get(STATE_ATTR, "{}")) if trial is not None else {}
        if state.get("by") != self.name:
            raise InputError(f"trial {number} was not proposed by {self.name}")
        ledger.refresh(number + 1)
        generation, slot = divmod(number, self.population)
        with self._lock:
            if "basis" not in state:
                end = generation * self.population
                return self._generation(ledger, generation, range(self.population), Basis(end))[slot].candidate
            basis = Basis(number, tuple(state["basis"]["open"]), tuple(state["basis"]["known"]))
            return self._generation(ledger, generation, [slot], basis)[0].candidate

    def _steady(self, ledger: Ledger, number: int) -> Proposal:
        """A proposal from whatever has finished by now, with that basis stored."""
        with self._lock:
            unfinished = ledger.unfinished(number)
            others = (*unfinished, *range(number + 1, ledger.count()))
            known = tuple(n for n in others if self._running_mask(ledger, n) is not None)
            generation, slot = divmod(number, self.population)
            proposal = self._generation(ledger, generation, [slot], Basis(number, unfinished, known))[0]
            # Its trial says so only in a moment, and another thread may ask before that.
            self._handed[number] = np.array(list(self.space.to_params(proposal.candidate).values()), dtype=np.bool_)
            self._handed.pop(number - 1000, None)
            return proposal

    def _generation(self, ledger: Ledger, generation: int, slots: Sequence[int], basis: Basis) -> list[Proposal]:
        """The proposals of some slots; each is unlike every subset before it in the study."""
        first = generation * self.population
        ledger.refresh(basis.end)
        begun = generation - self.stone_generations
        if begun < 0:
            return [self._stone(first + slot, slot) for slot in slots]
        seen = self._seen_before(ledger, basis)
        running = [X_D for X_D in (self._running_mask(ledger, n) for n in basis.known) if X_D is not None]
        seen.update(X_D.tobytes() for X_D in running)
        planner = Planner(
            self.algorithm,
            self.units,
            self.study_seed,
            self.population,
            self.preselection,
            self._ranking(basis),
            self.novelty,
        )
        view = ledger.history.view(basis.end, basis.open)
        planned = planner.propose(view, begun, slots, seen, running)
        kept = {"basis": {"open": basis.open, "known": basis.known}} if self.asynchronous or basis.open else {}
        return [
            self._proposal(first + slot, X_D, memory, kept) for slot, (X_D, memory) in zip(slots, planned, strict=True)
        ]

    def _proposal(self, number: int, X_D: Mask, memory: Memory, kept: dict[str, Any]) -> Proposal:
        candidate = self.space.candidate(np.flatnonzero(X_D).tolist())
        state: dict[str, Any] = {"by": self.name, **kept}
        if memory:
            state["m"] = pack(memory)
        return Proposal(number, candidate, json.dumps(state), stone=not self.units.holds(X_D))

    def _stone(self, number: int, slot: int) -> Proposal:
        free = self.space.droppable
        if number < len(free):
            X_D = np.isin(np.arange(self.space.n_units), free[number])
        else:  # the rest of the last generation of stones
            planner = Planner(self.algorithm, self.units, self.study_seed, self.population, None)
            X_D = planner.first(slot)
        return self._proposal(number, X_D, {}, {})

    def _ranking(self, basis: Basis) -> Ranking | None:
        """The ranking that was given, or the one that the study's first trials have measured by now."""
        if not self._single:
            return self._given
        end = min(basis.end, self.stone_generations * self.population)
        loss_D = np.full(self.space.n_units, np.nan)
        for number, (unit, loss) in self._stones.items():
            if number < end and number not in basis.open:
                loss_D[unit] = loss
        if np.isnan(loss_D).all():
            return None
        return Ranking(harm_of(np.where(np.isnan(loss_D), np.nanmedian(loss_D), loss_D)))

    def _seen_before(self, ledger: Ledger, basis: Basis) -> set[bytes]:
        """Subsets of the finished trials before the basis' end; a memo grows with the study while bases do."""
        history = ledger.history
        if basis.open or basis.end < self._seen_end:
            view = history.view(basis.end, basis.open)
            return {X_D.tobytes() for X_D in view.X_ND[view.kind_N != history.UNKNOWN]}
        view = history.view(basis.end)
        for number in range(self._seen_end, basis.end):
            if view.kind_N[number] != history.UNKNOWN:
                self._seen.add(view.X_ND[number].tobytes())
        self._seen_end = basis.end
        return set(self._seen)

    def _running_mask(self, ledger: Ledger, number: int) -> Mask | None:
        if number in self._handed:
            return self._handed[number]
        trial = ledger.trial(number)
        return None if trial is None else self.mask(trial)

    def _read(self, trial: FrozenTrial, losses: Sequence[float]) -> Outcome:
        X_D = self.mask(trial)
        if X_D is not None and X_D.sum() == 1 and losses:
            self._stones[trial.number] = int(np.flatnonzero(X_D)[0]), losses[0]
        return super()._read(trial, losses)


def checked_ranking(ranking: Sequence[float], units: int) -> Ranking:
    """A ranking of as many units.

    Raises:
        InputError: another number of them, or a number that is not finite.
    """
    harm_D = np.asarray(ranking, dtype=np.float64)
    if harm_D.shape != (units,):
        raise InputError(f"the ranking has {harm_D.size} numbers for {units} units: give one a unit")
    if not np.isfinite(harm_D).all():
        raise InputError("the ranking has a number that is not finite: give the harm of dropping each unit")
    return Ranking(harm_of(harm_D))
