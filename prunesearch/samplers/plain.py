"""PSO and WOA over a study's own parameters: float, int, log, step and categorical, one or several objectives.

The textbook swarms of `swarm.textbook`, on coordinates in [0, 1]: Optuna's own transformation gives a number one
coordinate, in the log domain where the distribution says so, and a categorical parameter one for each choice. The first
generation is random, since a define-by-run study has no parameters before; later ones move the parameters that every
completed trial had, with the same distribution. The rest are drawn at random.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from prunesearch.samplers.base import (
    STATE_ATTR,
    checked_population,
    checked_seed,
    draw,
    hold_to,
    pack,
    refuse_first,
    unpack,
    untransform,
)
from prunesearch.samplers.ledger import Basis, Ledger, Rebuilt, set_attribute, under_optimize
from prunesearch.swarm.history import History, Outcome, gather
from prunesearch.swarm.moves import Real, Units, generator
from prunesearch.swarm.textbook import fly, swim

Space = dict[str, BaseDistribution]
_NO_UNITS = Units.of(np.zeros(0, dtype=np.bool_), 0)


class PlainSwarm(Rebuilt, BaseSampler):
    """A swarm over whatever the objective suggests.

    Args:
        law: ``pso`` or ``woa``.
        seed: of the random numbers; None: the study's own, drawn when it is new.
        population: particles; at least 2.
        asynchronous: never wait for a generation.
    """

    def __init__(
        self, law: Literal["pso", "woa"], *, seed: int | None = None, population: int = 20, asynchronous: bool = False
    ) -> None:
        self.name, self.asynchronous = law, asynchronous
        self.seed, self.population = checked_seed(seed), checked_population(population, 2)
        self.study_seed = self.seed or 0
        self._lock = threading.RLock()
        self._ledger: Ledger | None = None
        self._space: Space = {}
        self._memo: tuple[Basis | None, Space] = None, {}

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Refuse a study that was sampled otherwise before it gets another trial.

        Raises:
            InputError: the study was sampled with another seed or population.
        """
        refuse_first(study, trial, lambda: self._study_ledger(study))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        """The parameters that every completed trial before the generation had alike."""
        return self._shared(study, self._basis(study, trial.number))

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Space) -> dict[str, Any]:
        """Move the trial's particle."""
        basis = self._basis(study, trial.number)
        memory = self._move(study, trial.number, search_space, basis) if search_space else None
        if memory is None:
            return {name: draw(self.study_seed, trial.number, name, d) for name, d in search_space.items()}
        kept = {"basis": {"open": basis.open}} if basis.open else {}
        set_attribute(study, trial, STATE_ATTR, json.dumps({"by": self.name, "m": pack(memory), **kept}))
        return untransform(_transform(search_space), _inside(memory["x"]))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:  # noqa: ANN401 (the type is Optuna's)
        """Draw a value that depends on seed, trial and name alone."""
        self._study_ledger(study)
        return draw(self.study_seed, trial.number, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Nothing to do: the random numbers are keyed by trial."""

    def _basis(self, study: Study, number: int) -> Basis:
        """The trials that a proposal is made from.

        Under ``study.optimize`` a synchronous swarm waits for the generation before; outside, where waiting might
        never end, it takes what has finished.
        """
        ledger = self._study_ledger(study)
        end = number if self.asynchronous else number - number % self.population
        if not self.asynchronous and under_optimize(study):
            ledger.wait(end)
        return Basis(end, ledger.unfinished(end))

    def _move(self, study: Study, number: int, search_space: Space, basis: Basis) -> dict[str, Real] | None:
        """The particle's next coordinates; None in the first generation, or where nothing has been completed."""
        generation, particle = divmod(number, self.population)
        with self._lock:
            self._fit(study, search_space)
            ledger = self._study_ledger(study)
            ledger.refresh(basis.end)
            view = ledger.history.view(basis.end, basis.open)
            leaders = generator(self.study_seed, generation, particle, stream=1)
            swarm = gather(view, _NO_UNITS, generation, self.population, leaders) if generation else None
            if swarm is None:
                return None
            rng = generator(self.study_seed, generation, particle)
            x_PD = np.stack([memory["x"] for memory in swarm.memory_P])
            leader_D = ledger.history.memories[int(swarm.leader_P[particle])]["x"]
            if self.name == "woa":
                return {"x": np.round(swim(x_PD[particle], leader_D, x_PD, generation, 10, 1, rng)[0], 6)}
            own_D = swarm.best_memory_P[particle]["x"]
            v_D = swarm.memory_P[particle].get("v", np.zeros(own_D.size))
            x_MD, v_MD = fly(x_PD[particle], v_D, own_D, leader_D, 1, rng)
            return {"x": np.round(x_MD[0], 6), "v": np.round(v_MD[0], 6)}

    def _shared(self, study: Study, basis: Basis) -> Space:
        """Intersect the distributions of the completed trials of the basis; sorted by name."""
        ledger, shared, hidden = self._study_ledger(study), None, set(basis.open)
        if self._memo[0] == basis:
            return self._memo[1]
        for number in range(basis.end):
            trial = ledger.trial(number) if number not in hidden else None
            if trial is None or trial.state != TrialState.COMPLETE:
                continue
            own = {name: d for name, d in trial.distributions.items() if not d.single()}
            shared = own if shared is None else {n: d for n, d in shared.items() if own.get(n) == d}
        self._memo = basis, dict(sorted((shared or {}).items()))
        return self._memo[1]

    def _study_ledger(self, study: Study) -> Ledger:
        with self._lock:
            known = self._ledger
            if known is None or known.study._storage is not study._storage or known.study._study_id != study._study_id:
                self.study_seed = hold_to(study, self.name, {"seed": self.seed, "population": self.population})
                self._memo = None, {}
                self._ledger = known = Ledger(study, History(0, len(study.directions)), self._read)
            return known

    def _fit(self, study: Study, search_space: Space) -> None:
        """Read the history anew when the parameters have changed: coordinates are theirs."""
        if search_space != self._space:
            before = self._study_ledger(study)
            self._space, self._ledger = search_space, None
            self._study_ledger(study).take_over(before)
        self._study_ledger(study)

    def _read(self, trial: FrozenTrial, losses: Sequence[float]) -> Outcome:
        """The trial's coordinates: those that were stored, or those of its parameters where it stored none."""
        if not self._space or any(trial.distributions.get(name) != d for name, d in self._space.items()):
            return Outcome(None, None)
        transform = _transform(self._space)
        stored = json.loads(trial.system_attrs.get(STATE_ATTR, "{}"))
        memory: Mapping[str, Any] = unpack(stored.get("m", {}), stored.get("by") == self.name)
        params = {name: trial.params[name] for name in self._space}
        if len(memory.get("x", ())) != len(transform.bounds) or transform.untransform(_inside(memory["x"])) != params:
            memory = {"x": np.round(transform.transform(params), 6)}
        return Outcome(np.zeros(0, dtype=np.bool_), None, memory=memory)


def _transform(search_space: Space) -> _SearchSpaceTransform:
    return _SearchSpaceTransform(search_space, transform_0_1=True)


def _inside(x_D: Real) -> Real:
    """Coordinates inside [0, 1]; rounding may have put them a little outside."""
    return np.clip(x_D, 0.0, 1.0)
