"""PSO and WOA over ordinary Optuna parameters: float, int, log, step and categorical, one or
several objectives.

The textbook swarms of `algorithms.vector_swarms` move in [0, 1]^D. Optuna's transformation gives a
numerical parameter one coordinate (in the log domain if its distribution is logarithmic), and a
categorical parameter one for each choice. The first generation is random, because a define-by-run
study has no known parameters before. Later generations move the parameters that every completed
trial had with the same distribution. All other parameters are drawn at random. A surrogate chooses
among the moves (see `algorithms.vector_planner`).
"""

import json
import threading
from collections.abc import Sequence

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalChoiceType
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from prunesearch.algorithms import pareto
from prunesearch.algorithms.base import VectorState
from prunesearch.algorithms.history import History, Memory, TrialOutcome, View, gather
from prunesearch.algorithms.operators import Real, generator
from prunesearch.algorithms.registry import REGISTRY, names_with
from prunesearch.algorithms.subset_constraints import SubsetConstraints
from prunesearch.algorithms.vector_planner import (
    Choice,
    FrontPlan,
    VectorPlan,
    region_in_turn,
)
from prunesearch.errors import UnknownNameError
from prunesearch.runtime.json_values import JsonObject
from prunesearch.samplers.coefficients import (
    Coefficients,
    checked_topology,
    with_coefficients,
    without_defaults,
)
from prunesearch.samplers.parameters import (
    ParameterSpace,
    Rounding,
    SharedParameters,
    draw,
    untransform,
)
from prunesearch.samplers.plain_state import evaluated_trials, region_of, states_of
from prunesearch.samplers.settings import (
    checked_population,
    checked_seed,
    hold_to,
    refuse_first,
    stored_settings,
)
from prunesearch.samplers.stored_memory import STATE_ATTR, pack, unpack
from prunesearch.studies.optuna_internals.access import ParameterTransform, is_same_study
from prunesearch.studies.trial_log import (
    PicklableSampler,
    ProposalInputs,
    TrialLog,
    logger,
    set_attribute,
    under_optimize,
)

_NO_UNITS = SubsetConstraints.of(np.zeros(0, dtype=np.bool_), 0)
POPULATION, TEXTBOOK_POPULATION = 10, 20
"""Default number of particles with the surrogate, which is fitted once a generation, and without
it.
"""
_DIGITS, _TEXTBOOK_DIGITS = 12, 6  # decimals of stored coordinates


class PlainSwarm(PicklableSampler, BaseSampler):
    """Swarm sampler over the parameters that the objective function suggests.

    Args:
        law: name of an algorithm that has a law of motion on vectors, such as ``pso``.
        seed: seed of the random generator; None to draw one when the study is new.
        population: number of particles, at least 2; None for the one that the study was begun
            with, or for the default.
        preselect: whether a surrogate chooses among many moves of each particle.
        coefficients: coefficients of the law of motion.
        topology: ``global``, where the best trial leads all particles, or ``ring``, where the best
            of a particle's own and its two neighbours' best trials leads it.
        asynchronous: never wait for a generation.

    Raises:
        UnknownNameError: no such algorithm, or it has no law of motion on vectors.
        InputError: a wrong value, or a coefficient that the law of motion does not have.
    """

    def __init__(
        self,
        law: str,
        *,
        seed: int | None = None,
        population: int | None = None,
        preselect: bool = True,
        coefficients: Coefficients | None = None,
        topology: str = "global",
        asynchronous: bool = False,
    ) -> None:
        vector_law = REGISTRY.get(law).vector_law
        if vector_law is None:
            raise UnknownNameError("sampler of parameters", law, names_with("vector_law"))
        self._law = with_coefficients(vector_law, coefficients or {})
        self._coefficients = dict(without_defaults(vector_law, coefficients or {}))
        self.name, self.asynchronous = law, asynchronous
        self.topology = checked_topology(topology)
        self.seed = checked_seed(seed)
        self._given_population = None
        if population is not None:
            self._given_population = checked_population(population, 2)
        self._given_preselect = preselect
        self.preselect, self.study_seed = preselect, self.seed or 0
        self.population = self._population_of({})
        self._lock = threading.RLock()
        self._trial_log: TrialLog | None = None
        self._space: ParameterSpace = {}
        self._forget()

    def __getstate__(self) -> dict[str, object]:
        # A plan holds fitted surrogates. It is computed again from the study.
        return {**super().__getstate__(), "_plan": None}

    def _forget(self) -> None:
        """Empty what was derived from a study."""
        self._shared = SharedParameters()
        self._memo: tuple[ProposalInputs | None, ParameterSpace] = None, {}
        self._plan: tuple[ProposalInputs, ParameterSpace, VectorPlan | FrontPlan] | None = None

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Refuse a study that was sampled with other settings.

        Raises:
            InputError: the study was sampled with another seed or population.
        """
        refuse_first(study, trial, lambda: self._trial_log_of(study))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> ParameterSpace:
        """Return the parameters that all completed trials before the generation share."""
        return self._common(study, self._proposal_inputs(study, trial.number))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: ParameterSpace
    ) -> dict[str, CategoricalChoiceType]:
        """Move the trial's particle."""
        proposal_inputs = self._proposal_inputs(study, trial.number)
        choice = (
            self._move(study, trial.number, search_space, proposal_inputs) if search_space else None
        )
        # Without a swarm to move, the values are random.
        if choice is None:
            drawn = {}
            for name, distribution in search_space.items():
                drawn[name] = draw(self.study_seed, trial.number, name, distribution)
            return drawn
        # Store the coordinates, and the trials that had not finished.
        digits = _DIGITS if self.preselect else _TEXTBOOK_DIGITS
        memory = {}
        for name, values_D in choice.memory.items():
            memory[name] = np.round(values_D, digits if name == "x" else _TEXTBOOK_DIGITS)
        state: JsonObject = {"by": self.name, "m": pack(memory)}
        if proposal_inputs.open:
            state["basis"] = {"open": proposal_inputs.open}
        set_attribute(study, trial, STATE_ATTR, json.dumps(state))
        # Rounding may have moved coordinates slightly outside.
        return untransform(_transform(search_space), np.clip(memory["x"], 0.0, 1.0))

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> CategoricalChoiceType:
        """Draw a value that depends on the seed, the trial's number and the parameter's name
        only.
        """
        self._trial_log_of(study)
        return draw(self.study_seed, trial.number, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Do nothing: the random numbers depend on the trial's number only."""

    def _proposal_inputs(self, study: Study, number: int) -> ProposalInputs:
        """Return the trials that a proposal is derived from.

        Inside ``study.optimize``, a synchronous swarm waits for the previous generation. Outside,
        waiting might never end, so it uses the trials that have finished.
        """
        trial_log = self._trial_log_of(study)
        end = number if self.asynchronous else number - number % self.population
        if not self.asynchronous and under_optimize(study):
            trial_log.wait(end)
        return ProposalInputs(end, trial_log.unfinished(end))

    def _move(
        self,
        study: Study,
        number: int,
        search_space: ParameterSpace,
        proposal_inputs: ProposalInputs,
    ) -> Choice | None:
        """Return the particle's next position.

        It is None in the first generation, or without completed trials.
        """
        generation, slot = divmod(number, self.population)
        if generation == 0:
            return None
        with self._lock:
            # In a generation that is synchronous, all slots have one plan.
            kept = self._plan
            if kept is not None and kept[:2] == (proposal_inputs, search_space):
                plan = kept[2]
            else:
                made = self._new_plan(study, generation, search_space, proposal_inputs)
                if made is None:
                    return None
                plan = made
                self._plan = proposal_inputs, search_space, plan
            return plan.alone(slot) if self.asynchronous else plan.choose(slot)

    def _new_plan(
        self,
        study: Study,
        generation: int,
        search_space: ParameterSpace,
        proposal_inputs: ProposalInputs,
    ) -> VectorPlan | FrontPlan | None:
        """Return the plan of a generation; None without completed trials."""
        # Collect the swarm from the finished trials.
        self._fit(study, search_space)
        trial_log = self._trial_log_of(study)
        trial_log.refresh(proposal_inputs.end)
        view = trial_log.history.view(proposal_inputs.end, proposal_inputs.open)
        leaders = generator(self.study_seed, generation, 0, stream=1)
        swarm = gather(view, _NO_UNITS, generation, self.population, leaders)
        if swarm is None:
            return None
        rounding = Rounding(search_space)
        states, best_D = states_of(swarm, self.topology)
        several = view.history.objectives > 1
        if several and self.preselect:
            return self._front_plan(view, states, generation, rounding)
        evaluated = None
        if self.preselect:
            evaluated = evaluated_trials(view, rounding)
        size = region_of(view, self.population)
        return VectorPlan(
            self._law, states, evaluated, best_D, size, self.study_seed, generation, rounding
        )

    def _front_plan(
        self,
        view: View,
        states: list[VectorState],
        generation: int,
        rounding: Rounding,
    ) -> FrontPlan:
        """Return the plan of a generation with several objectives."""
        size = region_in_turn(generation)
        objectives = view.history.objectives

        def plan_of(slot: int, taken: list[Real]) -> VectorPlan:
            # The best trial by the particle's own weights.
            weight_O = pareto.weights(slot, generation, self.population, objectives)
            evaluated = evaluated_trials(view, rounding, weight_O)
            best_D = states[slot].leader_D
            if evaluated is not None:
                best_D = evaluated.x_ND[int(np.argmin(evaluated.value_N))]
            return VectorPlan(
                self._law,
                states,
                evaluated,
                best_D,
                size,
                self.study_seed,
                generation,
                rounding,
                taken,
            )

        return FrontPlan(plan_of)

    def _common(self, study: Study, proposal_inputs: ProposalInputs) -> ParameterSpace:
        """Return the parameters that the completed trials share."""
        with self._lock:
            if self._memo[0] != proposal_inputs:
                self._trial_log_of(study).refresh(proposal_inputs.end)
                shared = self._shared.among(proposal_inputs.end, proposal_inputs.open)
                self._memo = proposal_inputs, shared
            return self._memo[1]

    def _trial_log_of(self, study: Study) -> TrialLog:
        """Return the log of the study's trials."""
        with self._lock:
            known = self._trial_log
            # A sampler may be used with one study after the other: start again for another study.
            if known is None or not is_same_study(known.study, study):
                self._hold_to(study)
                self._forget()
                self._trial_log = known = self._new_log(study)
            return known

    def _new_log(self, study: Study) -> TrialLog:
        return TrialLog(study, History(0, len(study.directions)), self._read)

    def _hold_to(self, study: Study) -> None:
        """Store the settings in a new study, and refuse an old study with other settings.

        A study that was begun without a surrogate, by a version that had none, goes on without.
        """
        stored = stored_settings(study, self.name) or {}
        begun_before = bool(stored) and "preselect" not in stored
        self.preselect = self._given_preselect and not begun_before
        self.population = self._population_of(stored)
        config: JsonObject = {"seed": self.seed, "population": self.population}
        if not begun_before:
            config["preselect"] = self.preselect
        elif self._given_preselect:
            logger.warning(
                f"study {study.study_name!r} was begun by a version without a surrogate for "
                "parameters: it goes on without; a new study has it"
            )
        # Older studies have no coefficients, which stands for the defaults.
        config["coefficients"] = self._coefficients or None
        config["topology"] = None if self.topology == "global" else self.topology
        self.study_seed = hold_to(study, self.name, config)

    def _population_of(self, stored: JsonObject) -> int:
        """Return the number of particles: the given one, the study's, or the default."""
        if self._given_population is not None:
            return self._given_population
        default = POPULATION if self.preselect else TEXTBOOK_POPULATION
        population = stored.get("population", default)
        assert isinstance(population, int)
        return population

    def _fit(self, study: Study, search_space: ParameterSpace) -> None:
        """Read the history again if the parameters have changed, because coordinates depend on
        them.
        """
        if search_space != self._space:
            before = self._trial_log_of(study)
            self._space = search_space
            self._trial_log = self._new_log(study)
            self._trial_log.take_over(before)

    def _read(self, trial: FrozenTrial, losses: Sequence[float]) -> TrialOutcome:
        """Return the trial's coordinates: the stored ones, or those of its parameters if none were
        stored.
        """
        if trial.state == TrialState.COMPLETE:
            self._shared.note(trial.number, trial.distributions)
        # A trial with other parameters has no coordinates.
        if not self._space:
            return TrialOutcome(None, None)
        for name, distribution in self._space.items():
            if trial.distributions.get(name) != distribution:
                return TrialOutcome(None, None)
        transform = _transform(self._space)
        stored = json.loads(trial.system_attrs.get(STATE_ATTR, "{}"))
        memory: dict[str, np.ndarray] = dict(
            unpack(stored.get("m", {}), stored.get("by") == self.name)
        )
        params = {name: trial.params[name] for name in self._space}
        # Stored coordinates are used only if they still decode to the trial's parameters.
        fits = len(memory.get("x", ())) == len(transform.bounds)
        if not fits or transform.untransform(np.clip(memory["x"], 0.0, 1.0)) != params:
            memory = {
                "x": np.round(
                    transform.transform(params), _DIGITS if self.preselect else _TEXTBOOK_DIGITS
                )
            }
        # The surrogate also needs the value and the constraints as they are.
        memory["value"] = np.array(losses, dtype=np.float64)
        memory["limits"] = np.array(list(trial.constraints.values()), dtype=np.float64)
        kept: Memory = memory
        return TrialOutcome(np.zeros(0, dtype=np.bool_), None, memory=kept)


def _transform(search_space: ParameterSpace) -> ParameterTransform:
    return ParameterTransform(search_space, transform_0_1=True)
