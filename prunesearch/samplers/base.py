"""What every sampler of subsets shares: parameters, trials written whole, and the way into ``study.optimize``."""

import json
import secrets
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from optuna.trial import create_trial as trial_template

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, RunError
from prunesearch.recipe import PARETO_SAMPLERS
from prunesearch.samplers.ledger import (
    Ledger,
    Rebuilt,
    create_trial,
    fail,
    logger,
    put_back,
    set_attribute,
    start,
    under_optimize,
)
from prunesearch.space import SearchSpace
from prunesearch.store.keys import minor
from prunesearch.swarm.history import History, Outcome
from prunesearch.swarm.moves import Mask, Real, Units, generator

STATE_ATTR = "ps:s"
_CONFIG_ATTR = "ps:config:"
_ASK_TRIES = 5


class GenerationPendingError(RunError):
    """A trial was asked for whose proposal depends on one that is still running."""


@dataclass(frozen=True)
class Proposal:
    """A candidate for a trial number, with the algorithm's state to be stored beside it.

    Attributes:
        stone: the candidate is a stepping stone: it drops fewer blocks than the space demands and is no result.
    """

    number: int
    candidate: LayerSubset
    state: str
    stone: bool = False


class SubsetSampler(Rebuilt, BaseSampler):
    """Proposes subsets of a `SearchSpace`; subclasses say which.

    Args:
        space: which blocks may be dropped and how many must be.
        seed: of the random numbers; None: the study's own, drawn when it is new.
        population: trials per generation.

    Attributes:
        study_seed: the seed of the study that was proposed for last.
    """

    name = "subset"
    several_objectives = False
    """Whether studies with more than one direction can be searched."""
    asynchronous = False
    """Whether a trial can be asked for at any time."""

    def __init__(self, space: SearchSpace, *, seed: int | None = 0, population: int = 16) -> None:
        if not isinstance(space, SearchSpace):
            raise InputError(
                f"{type(self).__name__} needs a prunesearch.SearchSpace, not {type(space).__name__} {space!r:.60}"
            )
        self.space = space
        self.seed = checked_seed(seed)
        self.study_seed = self.seed or 0
        self.population = checked_population(population)
        self.units = units_of(space)
        self._distributions: dict[str, BaseDistribution] = {name: IntDistribution(0, 1) for name in space.param_names}
        self._lock = threading.RLock()
        self._ledger: Ledger | None = None

    @property
    def config(self) -> dict[str, Any]:
        """What determines the proposals beside the trials, as JSON values; a study is held to it."""
        return {"seed": self.seed, "population": self.population, "units": self.units.count}

    @property
    def batch(self) -> int:
        """How many trials may usefully be under way at once."""
        return self.population

    def propose(self, study: Study, number: int) -> Proposal:
        """Return the candidate of trial `number`.

        Raises:
            GenerationPendingError: it depends on a trial that is still running.
        """
        raise NotImplementedError

    def ask(
        self, study: Study, describe: Callable[[LayerSubset], Mapping[str, Any]] = lambda candidate: {}
    ) -> Proposal:
        """Create the study's next trial, running, in one transaction, and return its proposal.

        Only for a study with one writer: the number is foreseen. When somebody enqueues a trial in that very moment,
        the trial that was created under a later number fails and another is made.

        Args:
            describe: user attributes of a candidate, written with the trial.

        Raises:
            GenerationPendingError: it depends on a trial that is still running.
            RunError: another process keeps adding trials.
        """
        for _ in range(_ASK_TRIES):
            proposal = self.propose(study, self.ledger(study).count())
            template = trial_template(
                state=TrialState.RUNNING,
                params=self.space.to_params(proposal.candidate),
                distributions=self._distributions,
                user_attrs={"dropped": proposal.candidate.text, **describe(proposal.candidate)},
                system_attrs={STATE_ATTR: proposal.state},
            )
            number = create_trial(study, template)
            if number == proposal.number:
                return proposal
            fail(study, number, f"trial {proposal.number} was added by somebody else meanwhile")
        raise RunError(
            f"another process keeps adding trials to study {study.study_name!r}; "
            "a study has one writer: stop the other and run again"
        )

    def missing(self, study: Study) -> int:
        """How many trials the plan of a study still needs; 0 where the sampler has no plan to complete."""
        return 0

    def enqueued(self, study: Study) -> list[tuple[int, LayerSubset]]:
        """Start the trials that somebody enqueued; those that are no subset of these units fail."""
        started = []
        for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            params = {**trial.params, **trial.system_attrs.get("fixed_params", {})}
            try:
                candidate = self.space.any_subset(params)
                if self.space.count(candidate) > self.space.k:
                    candidate = self.space.from_params(params)  # says why it is refused
            except InputError as error:
                fail(study, trial.number, str(error))
                continue
            start(study, trial, self.space.to_params(candidate), self._distributions, {"dropped": candidate.text})
            started.append((trial.number, candidate))
        return started

    def holds(self, trial: FrozenTrial) -> bool:
        """Whether a trial's subset is one of the space's."""
        X_D = self.mask(trial)
        return X_D is not None and self.units.holds(X_D)

    def is_stone(self, candidate: LayerSubset) -> bool:
        """Whether a candidate drops fewer units than the space demands, so that it is no result."""
        return self.space.count(candidate) < self.space.k_min

    def ledger(self, study: Study) -> Ledger:
        """The study's trials.

        Raises:
            InputError: the study has several objectives and the sampler knows one, or it was sampled otherwise before.
        """
        with self._lock:
            known = self._ledger
            if known is None or known.study._storage is not study._storage or known.study._study_id != study._study_id:
                objectives = len(study.directions)
                if objectives > 1 and not self.several_objectives:
                    raise InputError(
                        f"the sampler {self.name!r} searches one objective and the study has {objectives}: "
                        f"use one of {', '.join(PARETO_SAMPLERS)}"
                    )
                self.study_seed = hold_to(study, self.name, self.config)
                self._forget()
                self._ledger = known = Ledger(study, History(self.space.n_units, objectives), self._read)
            return known

    def _forget(self) -> None:
        """Drop what was derived from another study's trials."""

    def mask(self, trial: FrozenTrial) -> Mask | None:
        """The subset of a trial, of any size; None if it has none of these units."""
        values = [trial.params.get(name) for name in self.space.param_names]
        if None in values:
            stored = json.loads(trial.system_attrs.get(STATE_ATTR, "{}")).get("d")
            if stored is None or trial.state.is_finished():
                return None
            return np.isin(np.arange(self.space.n_units), stored)
        return np.array(values, dtype=np.bool_)

    def _read(self, trial: FrozenTrial, losses: Sequence[float]) -> Outcome:
        """A finished trial's subset, if it is of the space, and what the algorithm stored with it."""
        X_D = self.mask(trial)
        if X_D is None or not self.units.holds(X_D):
            return Outcome(None, None)
        stored = json.loads(trial.system_attrs.get(STATE_ATTR, "{}"))
        return Outcome(X_D, None, memory=unpack(stored.get("m", {}), stored.get("by") == self.name))

    def reseed_rng(self) -> None:
        """Nothing to do: the random numbers are keyed by trial."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Refuse a study that was sampled otherwise before it gets another trial.

        Raises:
            InputError: see `ledger`.
        """
        refuse_first(study, trial, lambda: self.ledger(study))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The space's binary parameters, whatever the study has seen."""
        return self._distributions

    def proposal_for(self, study: Study, trial: FrozenTrial) -> Proposal:
        """The candidate of a trial that Optuna has created; the trial fails if there is none yet."""
        try:
            return self.propose(study, trial.number)
        except GenerationPendingError as error:
            self._give_up(study, trial, str(error))
            raise

    def _give_up(self, study: Study, trial: FrozenTrial, reason: str) -> None:
        """Finish a trial that gets no proposal; under ``study.optimize`` Optuna does."""
        if not under_optimize(study):
            fail(study, trial.number, reason)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose the trial's whole subset, for ``study.optimize`` and ``study.ask``.

        Raises:
            InputError: the proposal is a stepping stone.
        """
        proposal = self.proposal_for(study, trial)
        if proposal.stone:
            self._give_up(study, trial, "a partial subset cannot be a result")
            raise InputError(
                f"{self.name} proposes partial subsets first, which Optuna would take for results: "
                "use its ask(), and tell those as pruned"
            )
        params = self.space.to_params(proposal.candidate)
        # Optuna writes parameters one by one; until then "d" says which subset is under way.
        state = {**json.loads(proposal.state), "d": [unit for unit, name in enumerate(params) if params[name]]}
        set_attribute(study, trial, STATE_ATTR, json.dumps(state))
        return params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:  # noqa: ANN401 (the type is Optuna's)
        """Parameters that are not of the space are drawn at random."""
        self.ledger(study)
        return draw(self.study_seed, trial.number, param_name, param_distribution)


def draw(seed: int, number: int, name: str, distribution: BaseDistribution) -> Any:  # noqa: ANN401
    """A uniform random value (in the log domain where the distribution is) that depends on these four alone."""
    rng = generator(seed, number, zlib.crc32(name.encode()), stream=8)
    transform = _SearchSpaceTransform({name: distribution})
    low, high = transform.bounds.T
    return untransform(transform, rng.uniform(low, high))[name]


def untransform(transform: _SearchSpaceTransform, x_D: Real) -> dict[str, Any]:
    """Parameters from coordinates, as plain Python numbers; Optuna's own clipping leaves some of numpy's."""
    params = transform.untransform(x_D)
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in params.items()}


def units_of(space: SearchSpace) -> Units:
    """The space's subsets, as the algorithms see them."""
    free_D = np.isin(np.arange(space.n_units), space.droppable)
    return Units.of(free_D, space.k_min, space.k, np.array(space.kinds, dtype=np.intp))


def pack(memory: Mapping[str, Any]) -> dict[str, Any]:
    """An algorithm's memory as JSON values: vectors by name, zeros left out."""
    return {
        name: {"n": len(values), **{str(i): v for i, v in enumerate(values.tolist()) if v}}
        for name, values in memory.items()
    }


def unpack(stored: Mapping[str, Any], own: bool) -> dict[str, Any]:
    """The inverse of `pack`; nothing if another algorithm stored it."""
    memory = {}
    for name, values in stored.items() if own else ():
        vector = np.zeros(int(values["n"]))
        for index, value in values.items():
            if index != "n":
                vector[int(index)] = value
        memory[name] = vector
    return memory


def checked_seed(seed: int | None) -> int | None:
    """A seed that the random generator takes.

    Raises:
        InputError: it is no whole number from 0 to 2**63 - 1.
    """
    if seed is None or (isinstance(seed, int | np.integer) and 0 <= seed < 2**63):
        return None if seed is None else int(seed)
    raise InputError(f"seed = {seed!r}: give a whole number from 0 to 2**63 - 1, or None")


def checked_population(population: int, least: int = 1) -> int:
    """A number of trials per generation.

    Raises:
        InputError: it is no whole number, or too small.
    """
    if isinstance(population, bool) or not isinstance(population, int | np.integer):
        raise InputError(f"population = {population!r}: give a whole number")
    if population < least:
        raise InputError(f"population {population} is no swarm: use at least {least} particles")
    return int(population)


def refuse_first(study: Study, trial: FrozenTrial, check: Callable[[], object]) -> None:
    """Run a check before a trial that Optuna has just created gets parameters.

    If it is refused, the trial waits for a sampler that is not; a failed one would take a place in its generation.

    Raises:
        InputError: the check's.
    """
    try:
        check()
    except InputError:
        put_back(study, trial)
        raise


def hold_to(study: Study, name: str, config: Mapping[str, Any]) -> int:
    """Remember how a study is sampled, and refuse to go on otherwise.

    Returns:
        The study's seed: the one in `config`; if that is None, the one that was drawn when the study was new.

    Raises:
        InputError: the study was sampled with other settings before.
    """
    numpy_now = minor(np.__version__)
    attributes = study._storage.get_study_system_attrs(study._study_id)
    key = _CONFIG_ATTR + name
    if key not in attributes:
        new = {**config, "numpy": numpy_now}
        if config["seed"] is None:
            new["seed"] = secrets.randbits(32)
        study._storage.set_study_system_attr(study._study_id, key, json.dumps(new, sort_keys=True))
        return int(new["seed"])
    stored = json.loads(attributes[key])
    asked = {k: v for k, v in config.items() if not (k == "seed" and v is None)}
    differing = [f"{k} was {stored.get(k)!r}, is {v!r}" for k, v in asked.items() if stored.get(k) != v]
    if differing:
        raise InputError(
            f"study {study.study_name!r} was sampled by {name} with other settings ({'; '.join(differing)}): "
            "use the same, or a new study"
        )
    if stored.get("numpy", numpy_now) != numpy_now:
        logger.warning(
            f"study {study.study_name!r} was begun with numpy {stored['numpy']}, this is {numpy_now}: what is proposed "
            "from here on may differ from what that version would propose"
        )
    return int(stored["seed"])
