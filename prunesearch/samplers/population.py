"""`SwarmSampler`: PSO, WOA, and the baselines that move a swarm.

The sampler keeps no state. A trial's number determines its place, ``generation, slot =
divmod(number, population)``. The random numbers depend on (seed, generation, slot), and generation
g is a function of the finished trials before it. So a resumed study, another process, or several
workers propose the same sequence of trials.

With ``asynchronous=True`` no worker waits for a generation. Each proposal is a function of the
trials that have finished at that moment. Their numbers are stored with it, so that `reproduce`
returns the same proposal later.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from prunesearch.algorithms.base import Algorithm
from prunesearch.algorithms.history import Memory, TrialOutcome
from prunesearch.algorithms.operators import Mask, generator
from prunesearch.algorithms.planner import Planner, Preselection
from prunesearch.algorithms.registry import SINGLE, SWARM_POPULATION, AlgorithmEntry
from prunesearch.algorithms.surrogate import Ranking
from prunesearch.algorithms.vector_swarms import VectorSwarm
from prunesearch.algorithms.warm_start import WarmStart
from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, UnknownNameError
from prunesearch.objectives.digests import content_digest
from prunesearch.runtime.json_values import JsonObject
from prunesearch.samplers.base import GenerationPendingError, Proposal, SubsetSampler
from prunesearch.samplers.generation_plan import GenerationPlan
from prunesearch.samplers.measured_ranking import MeasuredRanking
from prunesearch.samplers.rankings import checked_ranking, stored_ranking
from prunesearch.samplers.settings import SamplerSettings, checked_population
from prunesearch.samplers.stored_memory import STATE_ATTR, pack
from prunesearch.space import SearchSpace, Space
from prunesearch.studies.trial_log import ProposalInputs, TrialLog, under_optimize
from prunesearch.units import noun_for

RULES = 2
"""Version of the rules by which the surrogate and the ranking are used.

It rises whenever a seed gives other proposals. Each trial that depends on them stores it.
"""


class SwarmSampler(SubsetSampler):
    """Sampler that moves a swarm over the candidates of a space.

    Args:
        space: search space: the blocks that may be dropped and how many must be, or the widths and
            the budget.
        algorithm: algorithm that moves a particle.
        seed: seed of the random generator; None to draw one when the study is new.
        population: number of particles, which is the number of trials per generation; at least 2.
        preselect: whether a surrogate chooses among many moves of each particle, or the settings of
            that choice.
        ranking: cost of dropping each unit alone, on any positive scale, or ``"single"`` to measure
            it. In that case the study's first trials drop one block each. Widths have no
            ``"single"``.
        novelty: never propose a subset twice while unproposed subsets remain.
        asynchronous: never wait for a generation.
        several_objectives: whether the algorithm can search for a front.
        first: candidates that are proposed before all others.
        coefficients: coefficients of the algorithm that differ from its defaults, as the study
            stores them.
        warm_start: prior knowledge from another study, in place of a ranking; or None.
    """

    def __init__(
        self,
        space: Space,
        algorithm: Algorithm,
        *,
        seed: int | None = 0,
        population: int = SWARM_POPULATION,
        preselect: bool | Preselection = True,
        ranking: Sequence[float] | Literal["single"] | None = None,
        novelty: bool = True,
        asynchronous: bool = False,
        several_objectives: bool = True,
        first: Sequence[LayerSubset] = (),
        coefficients: Mapping[str, float] | None = None,
        warm_start: WarmStart | None = None,
    ) -> None:
        super().__init__(
            space, seed=seed, population=checked_population(population, 2), first=first
        )
        self.algorithm = algorithm
        self.name = algorithm.name
        self.several_objectives = several_objectives
        self.asynchronous = asynchronous
        self.preselection: Preselection | None = None
        if isinstance(preselect, Preselection):
            self.preselection = preselect
        elif preselect:
            self.preselection = Preselection()
        self.novelty = novelty
        self._coefficients = dict(coefficients or {})
        # The ranking is measured (single), given, or absent.
        self._measured: MeasuredRanking | None = None
        self._given: Ranking | None = None
        if isinstance(ranking, str):
            if ranking != SINGLE:
                raise UnknownNameError("ranking", ranking, (SINGLE,))
            self._measured = MeasuredRanking(space, self.population)
        elif ranking is not None:
            self._given = checked_ranking(ranking, space.n_units)
        self.warm_start = warm_start
        if warm_start is not None:
            self._start_warm(warm_start)
        self._reset_caches()

    def _start_warm(self, warm_start: WarmStart) -> None:
        """Begin with the subsets that the prior knowledge favours.

        Raises:
            InputError: it is about another number of units, or the space is of widths.
        """
        if not isinstance(self.space, SearchSpace):
            raise InputError("a warm start goes with layers to drop, not with widths")
        units = warm_start.effects.unit_D.size
        if units != self.space.n_units:
            raise InputError(f"the warm start knows {units} units of {self.space.n_units}")
        self._given = warm_start
        free_D, size = self.constraints.free_D, self.constraints.k_max
        self._first_ED += warm_start.favourites(free_D, size, generator(0, 0, 0))

    @property
    def config(self) -> JsonObject:
        """Settings that determine the proposals."""
        ranking: str | list[float] | None = None
        if self._measured is not None:
            ranking = SINGLE
        elif self._given is not None:
            ranking = stored_ranking(self._given, self.space)
        chosen = None if self.preselection is None else self.preselection.stored()
        rules: JsonObject = {}
        if self._follows_rules:
            rules["rules"] = RULES
        config: JsonObject = {
            **super().config,
            **rules,
            "preselect": chosen,
            "novelty": self.novelty,
            "ranking": ranking,
            # Older studies have none, which stands for the defaults.
            "coefficients": self._coefficients or None,
        }
        if self.warm_start is not None:
            config["warm_start"] = content_digest(self.warm_start.effects.stored())
        return config

    def __getstate__(self) -> dict[str, Any]:
        # A plan that has begun cannot be pickled. It is computed again from the study.
        return {**super().__getstate__(), "_plan": None}

    @property
    def _follows_rules(self) -> bool:
        """True if a surrogate or a ranking takes part in the proposals."""
        ranked = self._measured is not None or self._given is not None
        return self.preselection is not None or ranked

    @property
    def warmup_generations(self) -> int:
        """Number of generations that drop single blocks."""
        return 0 if self._measured is None else self._measured.generations

    def _reset_caches(self) -> None:
        if self._measured is not None:
            self._measured.reset()
        self._plan: GenerationPlan | None = None  # the latest generation
        self._seen: set[bytes] = set()  # subsets of the finished trials before `_seen_end`
        self._seen_end = 0
        self._unwritten: dict[int, Mask] = {}  # trial -> its subset, until the storage has it

    def earlier_finished(self, study: Study, trial_log: TrialLog, generation: int) -> bool:
        """Wait until all trials of earlier generations have finished.

        Returns:
            False if one of them was given up, because nobody finishes it.

        Raises:
            GenerationPendingError: one is still running, and to wait for it could deadlock.
        """
        end = generation * self.population
        waiting = trial_log.unfinished(end)
        if not waiting:
            return True
        if not under_optimize(study):
            raise GenerationPendingError(
                f"generation {generation} needs the results of "
                f"{noun_for(len(waiting), 'trial')} {', '.join(map(str, waiting))}: tell them first"
            )
        return trial_log.wait(end)

    def propose(self, study: Study, number: int) -> Proposal:
        """Return the proposal for trial `number`.

        The proposals of its generation up to this one are computed with it, if they were not yet.
        The first one reads the finished trials and fits the surrogate.

        Raises:
            GenerationPendingError: a trial of the previous generation is still running.
        """
        trial_log = self.trial_log(study)
        if self.asynchronous:
            return self._propose_now(trial_log, number)
        generation, slot = divmod(number, self.population)
        end = generation * self.population
        # If a worker was killed, nobody finishes its trial: continue without it.
        if not self.earlier_finished(study, trial_log, generation):
            return self._propose_now(trial_log, number)
        with self._lock:
            # A plan that an exception interrupts cannot go on, so it is kept only after success.
            plan, self._plan = self._plan, None
            if plan is None or plan.generation != generation:
                slots = range(self.population)
                proposals = self._propose_slots(trial_log, generation, slots, ProposalInputs(end))
                plan = GenerationPlan(generation, proposals)
            proposal = plan.at(slot)
            self._plan = plan
            return proposal

    def proposal_for(self, study: Study, trial: FrozenTrial) -> Proposal:
        """Return the proposal for a trial that Optuna created.

        If the previous generation is still running, the proposal is derived from the finished
        trials, and their numbers are stored. Waiting could deadlock, and an error would leave a
        trial that nobody finishes.
        """
        try:
            return self.propose(study, trial.number)
        except GenerationPendingError:
            return self._propose_now(self.trial_log(study), trial.number)

    def reproduce(self, study: Study, number: int) -> LayerSubset:
        """Derive the candidate of a trial again, from the inputs that are stored with it.

        Raises:
            InputError: the trial was not proposed by this sampler, or was under older rules.
        """
        trial_log = self.trial_log(study)
        trial = trial_log.trial(number)
        state = json.loads(trial.system_attrs.get(STATE_ATTR, "{}")) if trial is not None else {}
        if state.get("by") != self.name:
            raise InputError(f"trial {number} was not proposed by {self.name}")
        if self._follows_rules and state.get("rules", 1) != RULES:
            raise InputError(
                f"trial {number} was proposed under the rules of another version of prunesearch: "
                "its candidate is stored with it, but cannot be derived again"
            )
        trial_log.refresh(number + 1)
        generation, slot = divmod(number, self.population)
        with self._lock:
            # Without stored inputs, the trial was planned with its whole generation.
            if "basis" not in state:
                slots = range(self.population)
                proposal_inputs = ProposalInputs(generation * self.population)
                proposals = self._propose_slots(trial_log, generation, slots, proposal_inputs)
                return GenerationPlan(generation, proposals).at(slot).candidate
            proposal_inputs = ProposalInputs(
                number, tuple(state["basis"]["open"]), tuple(state["basis"]["known"])
            )
            return next(
                self._propose_slots(trial_log, generation, [slot], proposal_inputs)
            ).candidate

    def _propose_now(self, trial_log: TrialLog, number: int) -> Proposal:
        """Return a proposal that is derived from the trials finished by now.

        Their numbers are stored with it.
        """
        with self._lock:
            # The inputs: finished trials count with their losses, running ones with their subsets.
            unfinished = trial_log.unfinished(number)
            for earlier in list(self._unwritten):
                if earlier < number and earlier not in unfinished:
                    del self._unwritten[earlier]  # it has finished, so it was written
            others = (*unfinished, *range(number + 1, trial_log.count()))
            known = tuple(n for n in others if self._running_mask(trial_log, n) is not None)
            proposal_inputs = ProposalInputs(number, unfinished, known)
            generation, slot = divmod(number, self.population)
            proposal = next(self._propose_slots(trial_log, generation, [slot], proposal_inputs))
            # The caller writes the trial a moment later. Until then another thread finds the subset
            # here.
            self._unwritten[number] = self.mask_of_candidate(proposal.candidate)
            return proposal

    def _propose_slots(
        self,
        trial_log: TrialLog,
        generation: int,
        slots: Sequence[int],
        proposal_inputs: ProposalInputs,
    ) -> Iterator[Proposal]:
        """Yield the proposals of some slots.

        Each differs from every earlier subset of the study. The first one reads the trials that the
        proposals are derived from.
        """
        first = generation * self.population
        trial_log.refresh(proposal_inputs.end)
        # The first generations measure single blocks, if the ranking is measured.
        swarm_generation = generation - self.warmup_generations
        if swarm_generation < 0:
            for slot in slots:
                yield self._partial_subset(first + slot, slot)
            return
        # Neither finished nor running subsets are proposed again.
        seen = self._seen_before(trial_log, proposal_inputs)
        running = []
        for number in proposal_inputs.known:
            running_D = self._running_mask(trial_log, number)
            if running_D is not None:
                running.append(running_D)
                seen.add(running_D.tobytes())
        # Move the swarm.
        planner = Planner(
            self.algorithm,
            self.constraints,
            self.study_seed,
            self.population,
            self.preselection,
            self._ranking(proposal_inputs),
            self.novelty,
            self._first_ED,
        )
        view = trial_log.history.view(proposal_inputs.end, proposal_inputs.open)
        planned = planner.propose(view, swarm_generation, slots, seen, running)
        # Store the inputs where the trial's number does not determine them.
        kept: JsonObject = {}
        if self.asynchronous or proposal_inputs.open:
            kept["basis"] = {"open": proposal_inputs.open, "known": proposal_inputs.known}
        for slot, (X_D, memory) in zip(slots, planned, strict=True):
            yield self._proposal(first + slot, X_D, memory, kept)

    def _proposal(self, number: int, X_D: Mask, memory: Memory, kept: JsonObject) -> Proposal:
        """Build the proposal of a subset, with the algorithm's memory and the inputs in its
        state.
        """
        candidate = self.space.with_units(np.flatnonzero(X_D).tolist())
        state: JsonObject = {"by": self.name, **kept}
        if self._follows_rules:
            state["rules"] = RULES
        if memory:
            state["m"] = pack(memory)
        return Proposal(
            number, candidate, json.dumps(state), partial_subset=not self.constraints.holds(X_D)
        )

    def _partial_subset(self, number: int, slot: int) -> Proposal:
        """Propose to drop a single unit.

        Once all units are measured, fill the generation with random subsets.
        """
        assert self._measured is not None
        unit = self._measured.unit_of(number)
        if unit is not None:
            X_D = np.isin(np.arange(self.space.n_units), unit)
        else:
            planner = Planner(
                self.algorithm, self.constraints, self.study_seed, self.population, None
            )
            X_D = planner.first(slot)
        return self._proposal(number, X_D, {}, {})

    def _ranking(self, proposal_inputs: ProposalInputs) -> Ranking | None:
        """Return the given ranking, or the one that the study's first trials have measured so
        far.
        """
        if self._measured is None:
            return self._given
        return self._measured.ranking(proposal_inputs)

    def _seen_before(self, trial_log: TrialLog, proposal_inputs: ProposalInputs) -> set[bytes]:
        """Return the subsets of the finished trials that the proposal is derived from."""
        history = trial_log.history
        # An earlier end, or one with gaps: collect the subsets again.
        if proposal_inputs.open or proposal_inputs.end < self._seen_end:
            view = history.view(proposal_inputs.end, proposal_inputs.open)
            return {X_D.tobytes() for X_D in view.X_ND[view.kind_N != history.UNKNOWN]}
        # The usual case: add the new trials to the subsets known so far.
        view = history.view(proposal_inputs.end)
        for number in range(self._seen_end, proposal_inputs.end):
            if view.kind_N[number] != history.UNKNOWN:
                self._seen.add(view.X_ND[number].tobytes())
        self._seen_end = proposal_inputs.end
        return set(self._seen)

    def _running_mask(self, trial_log: TrialLog, number: int) -> Mask | None:
        """Return the subset of a running trial; None if it is not known yet."""
        trial = trial_log.trial(number)
        stored_D = None if trial is None else self.mask(trial)
        if stored_D is None:
            return self._unwritten.get(number)
        # The storage has the subset now.
        self._unwritten.pop(number, None)
        return stored_D

    def _read(self, trial: FrozenTrial, losses: Sequence[float]) -> TrialOutcome:
        """Record the loss of a trial that dropped a single unit."""
        X_D = self.mask(trial)
        if self._measured is not None and X_D is not None and losses:
            self._measured.read(trial.number, X_D, losses[0])
        return super()._read(trial, losses)


def build_swarm(entry: AlgorithmEntry, space: Space, settings: SamplerSettings) -> SwarmSampler:
    """Build the sampler of an algorithm that moves particles."""
    return SwarmSampler(
        space,
        algorithm_of(entry, settings.encoding),
        seed=settings.seed,
        population=settings.population,
        preselect=settings.preselect and entry.surrogate,
        ranking=settings.ranking,
        asynchronous=settings.asynchronous,
        several_objectives=entry.several_objectives,
        first=settings.first,
        warm_start=settings.warm_start,
    )


def algorithm_of(entry: AlgorithmEntry, encoding: str) -> Algorithm:
    """Return an entry's algorithm in an encoding.

    Raises:
        UnknownNameError: the entry does not have the encoding.
    """
    if encoding not in entry.encodings:
        raise UnknownNameError("encoding", encoding, entry.encodings)
    if encoding != "set" and entry.vector_law is not None:
        return VectorSwarm(entry.vector_law, encoding)
    if entry.algorithm is None:
        raise ValueError(f"the entry {entry.name!r} has no algorithm")
    return entry.algorithm()
