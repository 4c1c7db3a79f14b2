"""`LLMSampler`: an evolutionary search whose operators are those of a language model.

One request shows the task, statistics of the layers and scored candidates. The model selects
parents, crosses and mutates them, and replies with several candidates (S. Liu et al., "Large
language models as evolutionary optimizers", LMEA, arXiv:2310.19046). What a model cannot be trusted
with is done here: reading, the budget, and that no candidate is proposed twice.

Like a swarm, the sampler has no state. The candidates of a reply are the trials of consecutive
slots. They are a function of the trials of earlier generations, of those in this generation with a
smaller number, and of recorded replies. They are stored with the first of their trials, so that a
search that was killed between two of them continues with the same ones.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from optuna.study import Study

from prunesearch.algorithms.evolution import Evolution
from prunesearch.algorithms.operators import Mask, generator
from prunesearch.algorithms.planner import Planner
from prunesearch.algorithms.registry import AlgorithmEntry
from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.runtime.json_values import Json, JsonObject
from prunesearch.samplers.base import Proposal
from prunesearch.samplers.llm.described_search import DescribedSearch, DescribedSubsets
from prunesearch.samplers.llm.described_widths import DescribedWidths
from prunesearch.samplers.llm.plan import ModelPlanner, Plan, PlanInputs, notes_on, notes_on_repairs
from prunesearch.samplers.llm.settings import LanguageModel
from prunesearch.samplers.llm.stored_plan import StoredPlan
from prunesearch.samplers.population import SwarmSampler
from prunesearch.samplers.settings import SamplerSettings
from prunesearch.samplers.stored_memory import STATE_ATTR
from prunesearch.space import SearchSpace, Space
from prunesearch.studies import sources
from prunesearch.studies.sources import ProposalFacts, Replies
from prunesearch.studies.trial_log import ProposalInputs, TrialLog
from prunesearch.widths.space import WidthSpace

POPULATION = 16
"""Default number of trials per generation."""
_NAMES = 8  # stream of random numbers of the layers' names


class LLMSampler(SwarmSampler):
    """Sampler that lets a language model propose candidates.

    Half of the first generation are the first candidates of all samplers. The model proposes the
    others.

    Args:
        space: search space.
        model: the language model and its settings.
        seed: seed of the random generator; None to draw one when the study is new.
        population: trials per generation; at least 2.
        ranking: cost of dropping each unit alone, on any positive scale; None if it is not known.
        first: candidates that are proposed before all others.
    """

    def __init__(
        self,
        space: Space,
        model: LanguageModel,
        *,
        seed: int | None = 0,
        population: int = POPULATION,
        ranking: Sequence[float] | None = None,
        first: Sequence[LayerSubset] = (),
    ) -> None:
        self._model = model
        super().__init__(
            space,
            Evolution(),
            seed=seed,
            population=population,
            preselect=False,
            ranking=ranking,
            several_objectives=False,
            first=first,
        )
        self.name = "llm"

    @property
    def config(self) -> JsonObject:
        """Settings that determine the proposals."""
        settings = self._model.proposals.stored()
        return {**super().config, "model": self._model.chat.model, **settings}

    @property
    def batch(self) -> int:
        """Number of trials that can usefully run at once."""
        return self.population

    def _reset_caches(self) -> None:
        super()._reset_caches()
        self._planned: dict[int, Proposal] = {}  # planned together, by the number of the trial
        self._planner: ModelPlanner | None = None

    def propose(self, study: Study, number: int) -> Proposal:
        """Return the proposal for trial `number`. Those of the same reply are planned with it.

        Raises:
            GenerationPendingError: a trial of the previous generation is still running.
            LanguageModelError: the model failed, and is required.
        """
        # 1. The trials of earlier generations must have finished.
        trial_log = self.trial_log(study)
        generation = number // self.population
        end = generation * self.population
        self.earlier_finished(study, trial_log, generation)  # or were given up
        # 2. Plan the trial, unless it was planned with an earlier one.
        with self._lock:
            if number not in self._planned:
                inputs = ProposalInputs(end, trial_log.unfinished(end))
                for proposal in self._plan_from(trial_log, number, inputs):
                    self._planned[proposal.number] = proposal
                # 3. Forget the plans of earlier generations.
                for earlier in [each for each in self._planned if each < end]:
                    del self._planned[earlier]
            return self._planned[number]

    def reproduce(self, study: Study, number: int) -> LayerSubset:
        """Return the candidate of a trial as it was planned.

        Raises:
            InputError: the trial was not proposed by this sampler.
        """
        with self._lock:
            stored = self._stored(self.trial_log(study), number)
        if stored is None:
            raise InputError(f"trial {number} was not proposed by {self.name}")
        return stored[0].candidate

    def _plan_from(
        self, trial_log: TrialLog, number: int, inputs: ProposalInputs
    ) -> list[Proposal]:
        """Return the proposals of a trial and of those that are planned with it."""
        # A search that was killed has stored the plan.
        stored = self._stored(trial_log, number)
        if stored is not None:
            return stored
        generation, slot = divmod(number, self.population)
        begun, end = self._slots_around(generation, slot)
        # Another thread may be about to ask for an earlier trial. A trial that somebody enqueued
        # has its candidate already.
        first = number - slot
        while slot > begun and self._running_mask(trial_log, first + slot - 1) is None:
            slot -= 1
        plan_inputs = self._inputs(trial_log, generation, range(slot, end), inputs)
        planner = self._model_planner(trial_log)
        if generation == 0 and slot < self._first_slots:
            plan = planner.first(plan_inputs)
        else:
            plan = planner.plan(plan_inputs)
        for place, each in enumerate(plan.candidates):
            self._unwritten[first + slot + place] = each.X_D
        return self._proposals_of(first + slot, plan)

    @property
    def _first_slots(self) -> int:
        """Number of first candidates in the first generation."""
        return min(self.population, max(-(-self.population // 2), len(self.first)))

    def _slots_around(self, generation: int, slot: int) -> tuple[int, int]:
        """Return the first slot that is planned together with `slot`, and the one after the
        last.
        """
        begun = 0
        if generation == 0:
            begun = self._first_slots
            if slot < begun:
                return 0, begun
        # As many as come with one reply.
        size = self._model.proposals.candidates
        start = begun + (slot - begun) // size * size
        return start, min(self.population, start + size)

    def _inputs(
        self, trial_log: TrialLog, generation: int, slots: range, inputs: ProposalInputs
    ) -> PlanInputs:
        """Collect what a plan is derived from."""
        trial_log.refresh(inputs.end)
        number = generation * self.population + slots.start
        # Candidates of this generation, and those that run since an earlier one.
        pending: list[Mask] = []
        for earlier in (*inputs.open, *range(inputs.end, number)):
            X_D = self._running_mask(trial_log, earlier)
            if X_D is not None:
                pending.append(X_D)
        seen = self._seen_before(trial_log, inputs)
        seen.update(X_D.tobytes() for X_D in pending)
        # What the study has spent, and how the replies of the last generation were.
        spent, last = Replies(), Replies()
        repairs: list[float] = []
        for trial in trial_log.study.get_trials(deepcopy=False):
            replies = sources.replies_of(trial)
            spent = spent.plus(replies)
            if inputs.end - self.population <= trial.number < inputs.end:
                last = last.plus(replies)
                repairs += sources.repairs_of(trial)
        every = self._model.proposals.reflection
        reflects = bool(every) and generation > 0 and generation % every == 0
        return PlanInputs(
            generation,
            slots,
            self.population,
            self.study_seed,
            trial_log.history.view(inputs.end, inputs.open),
            pending,
            seen,
            [*notes_on(last, "the last round"), *notes_on_repairs(repairs)],
            self._lessons(trial_log, generation),
            reflects and slots.start == 0,
            spent.spent,
        )

    def _lessons(self, trial_log: TrialLog, generation: int) -> str:
        """Return the lessons that were written last, up to this generation."""
        every = self._model.proposals.reflection
        if not every:
            return ""
        for earlier in range(generation - generation % every, 0, -every):
            lessons = self._state_of(trial_log, earlier * self.population).get("lessons")
            if isinstance(lessons, str):
                return lessons
        return ""

    def _proposals_of(self, number: int, plan: Plan) -> list[Proposal]:
        """Return the proposals of a plan. The first one carries the plan and what it cost."""
        stored = StoredPlan.of(plan)
        proposals = []
        for place, each in enumerate(plan.candidates):
            facts, carried = ProposalFacts(each.source, each.repair), JsonObject()
            if place == 0:
                facts, carried = replace(facts, replies=plan.replies), stored.as_json()
            proposals.append(self._planned_proposal(number + place, each.X_D, facts, carried))
        return proposals

    def _planned_proposal(
        self, number: int, X_D: Mask, facts: ProposalFacts, carried: JsonObject
    ) -> Proposal:
        """Build the proposal of a planned candidate."""
        proposal = self._proposal(number, X_D, {}, carried)
        return replace(proposal, attributes={sources.ATTRIBUTE: facts.stored()})

    def _stored(self, trial_log: TrialLog, number: int) -> list[Proposal] | None:
        """Return the proposals from `number` on that are stored with a trial of its generation;
        None if there are none.
        """
        first = number - number % self.population
        # The plan that covers a trial is stored with the nearest earlier one that has a plan.
        for earlier in range(number, first - 1, -1):
            stored = StoredPlan.from_json(
                self._state_of(trial_log, earlier), self.constraints.free_D.size
            )
            if stored is None:
                continue
            proposals = []
            for place, each in enumerate(stored.candidates):
                if earlier + place >= number:
                    facts = ProposalFacts(each.source, each.repair)
                    proposals.append(self._planned_proposal(earlier + place, each.X_D, facts, {}))
            return proposals or None
        return None

    def _state_of(self, trial_log: TrialLog, number: int) -> JsonObject:
        """Return what this sampler stored with a trial; empty if it stored nothing."""
        trial = trial_log.trial(number)
        if trial is None:
            return {}
        state: Json = json.loads(trial.system_attrs.get(STATE_ATTR, "{}"))
        if isinstance(state, dict) and state.get("by") == self.name:
            return state
        return {}

    def _model_planner(self, trial_log: TrialLog) -> ModelPlanner:
        """Return the planner of a study. It is made once, because its seed names the layers."""
        if self._planner is None:
            self._planner = ModelPlanner(
                self._model, self._described(), self._evolve, trial_log.study.study_name
            )
        return self._planner

    def _described(self) -> DescribedSearch:
        """Return the search as requests describe it."""
        space, table = self.space, self._model.table
        named = space.n_units if isinstance(space, SearchSpace) else space.n_layers
        names = np.arange(named)
        if self._model.proposals.rename_layers:
            names = generator(self.study_seed, 0, 0, _NAMES).permutation(names)
        if isinstance(space, WidthSpace):
            return DescribedWidths(space, table, names.tolist())
        assert isinstance(space, SearchSpace)
        harm_D = None if self._given is None else self._given.harm_D
        return DescribedSubsets(space, table, harm_D, names.tolist())

    def _evolve(self, inputs: PlanInputs, slot: int) -> Mask:
        """Return the candidate of an evolutionary operator; in the first generation a first
        candidate.
        """
        planner = Planner(
            self.algorithm,
            self.constraints,
            self.study_seed,
            self.population,
            None,
            self._given,
            first_ED=self._first_ED,
        )
        ((X_D, _),) = planner.propose(
            inputs.view, inputs.generation, [slot], inputs.seen, inputs.pending
        )
        return X_D


def build_llm(entry: AlgorithmEntry, space: Space, settings: SamplerSettings) -> LLMSampler:
    """Build the sampler of a language model.

    Raises:
        InputError: there is no language model.
    """
    if settings.llm is None:
        raise InputError(
            f"`sampler` {entry.name} asks a language model: give `llm_url` and `llm_model`, or "
            f"`llm_model` with a .gguf file or a folder"
        )
    ranking = settings.ranking
    if isinstance(ranking, str):
        raise InputError(f"`ranking` {ranking} cannot start `sampler` {entry.name}")
    return LLMSampler(
        space,
        settings.llm,
        seed=settings.seed,
        population=settings.population,
        ranking=ranking,
        first=settings.first,
    )
