"""PSO and WOA over ordinary Optuna parameters: float, int, log, step and categorical, one or
several objectives.

The textbook swarms of `algorithms.vector_swarms` move in [0, 1]^D. Optuna's transformation gives a
numerical parameter one coordinate (in the log domain if its distribution is logarithmic), and a
categorical parameter one for each choice. The first generation is random, because a define-by-run
study has no known parameters before. Later generations move the parameters that every completed
trial had with the same distribution. All other parameters are drawn at random.
"""

import json
import threading
from collections.abc import Sequence

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalChoiceType
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from prunesearch.algorithms.base import VectorState
from prunesearch.algorithms.history import History, Memory, TrialOutcome, gather
from prunesearch.algorithms.operators import Real, generator
from prunesearch.algorithms.registry import REGISTRY, names_with
from prunesearch.algorithms.subset_constraints import SubsetConstraints
from prunesearch.errors import UnknownNameError
from prunesearch.runtime.json_values import JsonObject
from prunesearch.samplers.parameters import draw, untransform
from prunesearch.samplers.settings import checked_population, checked_seed, hold_to, refuse_first
from prunesearch.samplers.stored_memory import STATE_ATTR, pack, unpack
from prunesearch.studies.optuna_internals.access import ParameterTransform, is_same_study
from prunesearch.studies.trial_log import (
    PicklableSampler,
    ProposalInputs,
    TrialLog,
    set_attribute,
    under_optimize,
)

Space = dict[str, BaseDistribution]
_NO_UNITS = SubsetConstraints.of(np.zeros(0, dtype=np.bool_), 0)


class PlainSwarm(PicklableSampler, BaseSampler):
    """Swarm sampler over the parameters that the objective function suggests.

    Args:
        law: name of an algorithm that has a law of motion on vectors, such as ``pso``.
        seed: seed of the random generator; None to draw one when the study is new.
        population: number of particles; at least 2.
        asynchronous: never wait for a generation.

    Raises:
        UnknownNameError: no such algorithm, or it has no law of motion on vectors.
    """

    def __init__(
        self,
        law: str,
        *,
        seed: int | None = None,
        population: int = 20,
        asynchronous: bool = False,
    ) -> None:
        vector_law = REGISTRY.get(law).vector_law
        if vector_law is None:
            raise UnknownNameError("sampler of parameters", law, names_with("vector_law"))
        self._law = vector_law
        self.name, self.asynchronous = law, asynchronous
        self.seed, self.population = checked_seed(seed), checked_population(population, 2)
        self.study_seed = self.seed or 0
        self._lock = threading.RLock()
        self._trial_log: TrialLog | None = None
        self._space: Space = {}
        self._memo: tuple[ProposalInputs | None, Space] = None, {}

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Refuse a study that was sampled with other settings.

        Raises:
            InputError: the study was sampled with another seed or population.
        """
        refuse_first(study, trial, lambda: self._trial_log_of(study))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        """Return the parameters that all completed trials before the generation share."""
        return self._shared(study, self._proposal_inputs(study, trial.number))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Space
    ) -> dict[str, CategoricalChoiceType]:
        """Move the trial's particle."""
        proposal_inputs = self._proposal_inputs(study, trial.number)
        memory = (
            self._move(study, trial.number, search_space, proposal_inputs) if search_space else None
        )
        # Without a swarm to move, the values are random.
        if memory is None:
            drawn = {}
            for name, distribution in search_space.items():
                drawn[name] = draw(self.study_seed, trial.number, name, distribution)
            return drawn
        # Store the coordinates, and the trials that had not finished.
        state: JsonObject = {"by": self.name, "m": pack(memory)}
        if proposal_inputs.open:
            state["basis"] = {"open": proposal_inputs.open}
        set_attribute(study, trial, STATE_ATTR, json.dumps(state))
        return untransform(_transform(search_space), _inside(memory["x"]))

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
        self, study: Study, number: int, search_space: Space, proposal_inputs: ProposalInputs
    ) -> dict[str, Real] | None:
        """Return the particle's next coordinates.

        They are None in the first generation, or without completed trials.
        """
        generation, particle = divmod(number, self.population)
        with self._lock:
            # Collect the swarm from the finished trials.
            self._fit(study, search_space)
            trial_log = self._trial_log_of(study)
            trial_log.refresh(proposal_inputs.end)
            view = trial_log.history.view(proposal_inputs.end, proposal_inputs.open)
            leaders = generator(self.study_seed, generation, particle, stream=1)
            swarm = (
                gather(view, _NO_UNITS, generation, self.population, leaders)
                if generation
                else None
            )
            if swarm is None:
                return None
            # Take one step.
            rng = generator(self.study_seed, generation, particle)
            x_PD = np.stack([memory["x"] for memory in swarm.memory_P])
            leader_D = trial_log.history.memories[int(swarm.leader_P[particle])]["x"]
            own_D = swarm.best_memory_P[particle]["x"]
            v_D = swarm.memory_P[particle].get("v", np.zeros(own_D.size))
            state = VectorState(x_PD[particle], v_D, own_D, leader_D, x_PD, generation)
            moved = self._law.step(state, 1, rng)
            return {name: np.round(values_MD[0], 6) for name, values_MD in moved.items()}

    def _shared(self, study: Study, proposal_inputs: ProposalInputs) -> Space:
        """Return the intersection of the distributions of the completed trials, sorted by
        name.
        """
        trial_log = self._trial_log_of(study)
        if self._memo[0] == proposal_inputs:
            return self._memo[1]
        hidden = set(proposal_inputs.open)
        shared: Space | None = None
        for number in range(proposal_inputs.end):
            trial = trial_log.trial(number) if number not in hidden else None
            if trial is None or trial.state != TrialState.COMPLETE:
                continue
            own = {name: d for name, d in trial.distributions.items() if not d.single()}
            if shared is None:
                shared = own
                continue
            for name, distribution in list(shared.items()):
                if own.get(name) != distribution:
                    del shared[name]
        self._memo = proposal_inputs, dict(sorted((shared or {}).items()))
        return self._memo[1]

    def _trial_log_of(self, study: Study) -> TrialLog:
        """Return the log of the study's trials."""
        with self._lock:
            known = self._trial_log
            # A sampler may be used with one study after the other: start again for another study.
            if known is None or not is_same_study(known.study, study):
                config = {"seed": self.seed, "population": self.population}
                self.study_seed = hold_to(study, self.name, config)
                self._memo = None, {}
                self._trial_log = known = TrialLog(
                    study, History(0, len(study.directions)), self._read
                )
            return known

    def _fit(self, study: Study, search_space: Space) -> None:
        """Read the history again if the parameters have changed, because coordinates depend on
        them.
        """
        if search_space != self._space:
            before = self._trial_log_of(study)
            self._space, self._trial_log = search_space, None
            self._trial_log_of(study).take_over(before)
        self._trial_log_of(study)

    def _read(self, trial: FrozenTrial, losses: Sequence[float]) -> TrialOutcome:
        """Return the trial's coordinates: the stored ones, or those of its parameters if none were
        stored.
        """
        # A trial with other parameters has no coordinates.
        if not self._space:
            return TrialOutcome(None, None)
        for name, distribution in self._space.items():
            if trial.distributions.get(name) != distribution:
                return TrialOutcome(None, None)
        transform = _transform(self._space)
        stored = json.loads(trial.system_attrs.get(STATE_ATTR, "{}"))
        memory: Memory = unpack(stored.get("m", {}), stored.get("by") == self.name)
        params = {name: trial.params[name] for name in self._space}
        # Stored coordinates are used only if they still decode to the trial's parameters.
        fits = len(memory.get("x", ())) == len(transform.bounds)
        if not fits or transform.untransform(_inside(memory["x"])) != params:
            memory = {"x": np.round(transform.transform(params), 6)}
        return TrialOutcome(np.zeros(0, dtype=np.bool_), None, memory=memory)


def _transform(search_space: Space) -> ParameterTransform:
    return ParameterTransform(search_space, transform_0_1=True)


def _inside(x_D: Real) -> Real:
    """Clip coordinates to [0, 1]. Rounding may have moved them slightly outside."""
    return np.clip(x_D, 0.0, 1.0)
