"""`PSOSampler` and `WOASampler`: the swarms as Optuna samplers; the only file that touches Optuna's private API.

The samplers keep no state. A trial's number gives its place, ``generation, slot = divmod(number, population)``; the
random numbers are keyed by (seed, generation, slot); and generation g is a function of the finished trials before
it. So a killed and resumed study, or another process, proposes the identical sequence of trials.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, RunError
from prunesearch.space import SearchSpace
from prunesearch.swarm.moves import Algorithm, Mask, Real, Swarm, first_generation, generator, unseen
from prunesearch.swarm.pso import ParticleSwarm
from prunesearch.swarm.woa import Whales

STATE_ATTR = "ps:s"
_FINISHED = (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED)


class GenerationPendingError(RunError):
    """A trial of the next generation was asked for while one of the last is still running."""


@dataclass(frozen=True)
class Proposal:
    """A candidate for a trial number, with the algorithm's state to be stored beside it."""

    number: int
    candidate: LayerSubset
    state: str


class SwarmSampler(BaseSampler):
    """Proposes subsets of a `SearchSpace` by moving a swarm; use `PSOSampler` or `WOASampler`.

    Args:
        space: which blocks may be dropped and how many must be.
        seed: of the random numbers.
        population: particles, which is trials per generation; at least 2.
    """

    def __init__(self, space: SearchSpace, algorithm: Algorithm, *, seed: int = 0, population: int = 16) -> None:
        if population < 2:
            raise InputError(f"population {population} is no swarm: use at least 2 particles")
        self.space = space
        self.algorithm = algorithm
        self.seed = seed
        self.population = population
        self._free_D: Mask = np.isin(np.arange(space.n_layers), space.droppable)
        self._distributions: dict[str, BaseDistribution] = {name: IntDistribution(0, 1) for name in space.param_names}
        self._independent = RandomSampler(seed)
        self._plan: tuple[tuple[str, int, int], list[tuple[Mask, Real]]] | None = None  # of the latest generation

    def propose(self, study: Study, number: int) -> Proposal:
        """Return the candidate of trial `number`.

        Raises:
            GenerationPendingError: a trial of the generation before it is still running.
        """
        generation, slot = divmod(number, self.population)
        key = (study.study_name, id(study._storage), generation)
        if self._plan is None or self._plan[0] != key:
            self._plan = (key, self._plan_generation(study, generation))
        X_D, V_D = self._plan[1][slot]
        candidate = LayerSubset.of(self.space.n_layers, np.flatnonzero(X_D).tolist())
        velocity = {i: round(v, 6) for i, v in enumerate(V_D.tolist()) if round(v, 6)}
        return Proposal(number, candidate, json.dumps({"by": self.algorithm.name, "v": velocity}))

    def ask(
        self, study: Study, describe: Callable[[LayerSubset], Mapping[str, Any]] = lambda candidate: {}
    ) -> Proposal:
        """Create the study's next trial, running, in one transaction, and return its proposal.

        Only for a study with one writer: the number is foreseen.

        Args:
            describe: user attributes of a candidate, written with the trial.

        Raises:
            GenerationPendingError: a trial of the generation before it is still running.
            RunError: another process added a trial meanwhile.
        """
        proposal = self.propose(study, len(study._get_trials(deepcopy=False)))
        template = create_trial(
            state=TrialState.RUNNING,
            params=self.space.to_params(proposal.candidate),
            distributions=self._distributions,
            user_attrs={"dropped": proposal.candidate.text, **describe(proposal.candidate)},
            system_attrs={STATE_ATTR: proposal.state},
        )
        trial_id = study._storage.create_new_trial(study._study_id, template)
        number = study._storage.get_trial_number_from_id(trial_id)
        if number != proposal.number:
            raise RunError(
                f"another process added trial {proposal.number} to study {study.study_name!r}; "
                "a study has one writer: stop the other and run again"
            )
        return proposal

    def _plan_generation(self, study: Study, generation: int) -> list[tuple[Mask, Real]]:
        """All positions and velocities of a generation; each is unlike every one before it in the study."""
        trials = study._get_trials(deepcopy=False)[: generation * self.population]
        seen = {mask.tobytes() for mask in map(self._mask, trials) if mask is not None}
        if generation == 0:
            starts = first_generation(self._free_D, self.space.k, self.population, self.seed)
            moved = [(X_D, np.zeros(X_D.size)) for X_D in starts]
        else:
            swarm = self._swarm(study, trials, generation)
            moved = [
                self.algorithm.move(swarm, i, self._free_D, generator(self.seed, generation, i))
                for i in range(self.population)
            ]
        plan = []
        for slot, (X_D, V_D) in enumerate(moved):
            # A stream of its own, so that what is seen cannot shift the swarm's random numbers.
            novelty = generator(self.seed, generation, self.population + slot)
            Y_D = unseen(X_D, self._free_D, seen, novelty)
            seen.add(Y_D.tobytes())
            plan.append((Y_D, V_D))
        return plan

    def _swarm(self, study: Study, trials: Sequence[FrozenTrial], generation: int) -> Swarm:
        """Rebuild the swarm that trials before `generation` left; trials without a subset stand for a random one."""
        waiting = [t.number for t in trials[-self.population :] if t.state not in _FINISHED]
        if waiting or len(trials) < generation * self.population:
            raise GenerationPendingError(
                f"generation {generation} needs the results of trial(s) {waiting or [len(trials)]}: tell them first"
            )
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        substitutes = first_generation(self._free_D, self.space.k, self.population, self.seed)
        losses = np.full((generation, self.population), np.inf)
        masks: list[list[Mask]] = [list(substitutes) for _ in range(generation)]
        for trial in trials:
            g, i = divmod(trial.number, self.population)
            mask = self._mask(trial)
            if mask is None:
                continue
            masks[g][i] = mask
            if trial.state == TrialState.COMPLETE and trial.value is not None and not np.isnan(trial.value):
                losses[g, i] = sign * trial.value
        best = np.argmin(losses, axis=0)
        particles = range(self.population)
        return Swarm(
            X_PD=np.stack(masks[-1]),
            V_PD=np.stack([self._velocity(t) for t in trials[-self.population :]]),
            loss_P=losses[-1],
            best_X_PD=np.stack([masks[best[i]][i] for i in particles]),
            best_loss_P=losses[best, list(particles)],
            generation=generation,
        )

    def _mask(self, trial: FrozenTrial) -> Mask | None:
        try:
            candidate = self.space.from_params(trial.params)
        except InputError:
            return None
        return np.isin(np.arange(self.space.n_layers), candidate.dropped)

    def _velocity(self, trial: FrozenTrial) -> Real:
        V_D = np.zeros(self.space.n_layers)
        stored = json.loads(trial.system_attrs.get(STATE_ATTR, "{}"))
        for unit, value in stored.get("v", {}).items():
            V_D[int(unit)] = value
        return V_D

    def reseed_rng(self) -> None:
        """Nothing to do: the random numbers are keyed by trial."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The space's binary parameters, whatever the study has seen."""
        return self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose the trial's whole subset, for ``study.optimize`` and ``study.ask``."""
        if study._is_multi_objective():
            raise InputError(f"{type(self).__name__} searches one objective; the study has several")
        proposal = self.propose(study, trial.number)
        study._storage.set_trial_system_attr(trial._trial_id, STATE_ATTR, proposal.state)
        return self.space.to_params(proposal.candidate)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:  # noqa: ANN401 (the type is Optuna's)
        """Parameters that are not of the space are drawn at random."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)


class PSOSampler(SwarmSampler):
    """Set-based particle swarm optimization (see `swarm.pso`)."""

    def __init__(self, space: SearchSpace, *, seed: int = 0, population: int = 16) -> None:
        super().__init__(space, ParticleSwarm(), seed=seed, population=population)


class WOASampler(SwarmSampler):
    """Whale optimization with set moves (see `swarm.woa`)."""

    def __init__(self, space: SearchSpace, *, seed: int = 0, population: int = 16) -> None:
        super().__init__(space, Whales(), seed=seed, population=population)


def annotate(study: Study, number: int, attributes: Mapping[str, Any]) -> None:
    """Set user attributes of a running trial by its number."""
    trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    for name, value in attributes.items():
        study._storage.set_trial_user_attr(trial_id, name, value)


SAMPLERS: dict[str, type[PSOSampler] | type[WOASampler]] = {"pso": PSOSampler, "woa": WOASampler}
