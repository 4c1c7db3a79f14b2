"""Base class of all subset samplers.

It maps subsets to Optuna parameters, writes a whole trial in one transaction, and connects to
``study.optimize``.
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalChoiceType, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from optuna.trial import create_trial as trial_template

from prunesearch.algorithms.constraints import Constraints
from prunesearch.algorithms.history import History, TrialOutcome
from prunesearch.algorithms.operators import Mask
from prunesearch.algorithms.registry import names_with
from prunesearch.algorithms.subset_constraints import SubsetConstraints
from prunesearch.algorithms.width_constraints import WidthConstraints
from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, RunError
from prunesearch.objectives.digests import content_digest
from prunesearch.runtime.json_values import Json, JsonObject
from prunesearch.samplers.parameters import draw
from prunesearch.samplers.settings import checked_population, checked_seed, hold_to, refuse_first
from prunesearch.samplers.stored_memory import STATE_ATTR, unpack
from prunesearch.space import SearchSpace, Space
from prunesearch.studies.optuna_internals.access import enqueued_params, is_same_study
from prunesearch.studies.trial_log import (
    PicklableSampler,
    TrialLog,
    annotate,
    create_trial,
    fail,
    set_attribute,
    start,
    under_optimize,
)
from prunesearch.widths.space import WidthSpace

_ASK_TRIES = 5


class GenerationPendingError(RunError):
    """The proposal of the requested trial depends on a trial that is still running."""


@dataclass(frozen=True)
class Proposal:
    """A candidate for a trial number.

    Attributes:
        number: number of the trial.
        candidate: proposed subset.
        state: state of the algorithm as JSON, stored with the trial.
        partial_subset: True for a partial subset. It removes less than the space demands, so it
            cannot be a result.
        attributes: user attributes of the trial: facts about the proposal.
    """

    number: int
    candidate: LayerSubset
    state: str
    partial_subset: bool = False
    attributes: Mapping[str, Json] = field(default_factory=dict)


class SubsetSampler(PicklableSampler, BaseSampler):
    """Base class of samplers that propose candidates of a `SearchSpace` or a `WidthSpace`.
    Subclasses implement `propose`.

    Args:
        space: search space: the blocks that may be dropped and how many must be, or the widths and
            the budget.
        seed: seed of the random generator; None to draw one when the study is new.
        population: trials per generation.
        first: candidates that are proposed before all others.

    Attributes:
        study_seed: seed of the most recent study.
    """

    name = "subset"
    several_objectives = False
    """Whether the sampler can search studies with more than one direction."""
    asynchronous = False
    """Whether a trial can be requested at any time, without waiting for a generation."""

    def __init__(
        self,
        space: Space,
        *,
        seed: int | None = 0,
        population: int = 16,
        first: Sequence[LayerSubset] = (),
    ) -> None:
        self.space = checked_space(space, type(self).__name__)
        self.seed = checked_seed(seed)
        self.study_seed = self.seed or 0
        self.population = checked_population(population)
        self.constraints = constraints_of(space)
        self.first = tuple(first)
        self._first_ED = [self.mask_of_candidate(candidate) for candidate in self.first]
        self._distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(low, high, step=step)
            for name, (low, high, step) in space.param_ranges.items()
        }
        self._lock = threading.RLock()
        self._trial_log: TrialLog | None = None

    @property
    def config(self) -> JsonObject:
        """Settings that determine the proposals, as JSON values.

        A study can only be resumed with the same ones.
        """
        config: JsonObject = {
            "seed": self.seed,
            "population": self.population,
            "units": self.constraints.count,
        }
        if self.first:
            config["first"] = content_digest([candidate.text for candidate in self.first])
        elif isinstance(self.space, WidthSpace):
            config["first"] = None
        return config

    @property
    def batch(self) -> int:
        """Number of trials that can usefully run at once."""
        return self.population

    def propose(self, study: Study, number: int) -> Proposal:
        """Return the proposal for trial `number`.

        Raises:
            GenerationPendingError: the proposal depends on a trial that is still running.
        """
        raise NotImplementedError

    def ask(
        self,
        study: Study,
        describe: Callable[[LayerSubset], Mapping[str, Json]] = lambda candidate: {},
    ) -> Proposal:
        """Create the study's next trial as running, in one transaction, and return its proposal.

        The study must have a single writer, because the trial's number is predicted. If another
        process enqueues a trial at the same moment, the trial that was created under a later number
        fails and another is created.

        Args:
            study: study to add the trial to.
            describe: function that returns the user attributes of a candidate, which are written
                with the trial.

        Raises:
            GenerationPendingError: the proposal depends on a trial that is still running.
            RunError: another process keeps adding trials.
        """
        for _ in range(_ASK_TRIES):
            # Propose for the number that the next trial will get, and write the trial complete.
            proposal = self.propose(study, self.trial_log(study).count())
            template = trial_template(
                state=TrialState.RUNNING,
                params=self.space.to_params(proposal.candidate),
                distributions=self._distributions,
                user_attrs={
                    "dropped": proposal.candidate.text,
                    **describe(proposal.candidate),
                    **proposal.attributes,
                },
                system_attrs={STATE_ATTR: proposal.state},
            )
            number = create_trial(study, template)
            if number == proposal.number:
                return proposal
            # Another process was faster: the proposal is for another number than the trial has.
            fail(study, number, f"trial {proposal.number} was added by somebody else meanwhile")
        raise RunError(
            f"another process keeps adding trials to study {study.study_name!r}; "
            "a study has one writer: stop the other and run again"
        )

    def missing(self, study: Study) -> int:
        """Return how many trials the sampler's plan still needs; 0 for a sampler without a plan."""
        return 0

    def enqueued(
        self,
        study: Study,
        describe: Callable[[LayerSubset], Mapping[str, Json]] = lambda candidate: {},
    ) -> list[tuple[int, LayerSubset]]:
        """Start the enqueued trials and return their numbers and candidates.

        An enqueued trial fails if its parameters do not belong to the space, or remove too much.

        Args:
            study: the study.
            describe: function that returns the user attributes of a candidate.
        """
        started = []
        for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            params = {**trial.params, **enqueued_params(trial)}
            try:
                candidate = self.space.any_subset(params)
                if self.space.removes_more(candidate):
                    candidate = self.space.from_params(params)  # raises an error with the reason
            except InputError as error:
                fail(study, trial.number, str(error))
                continue
            start(
                study,
                trial,
                self.space.to_params(candidate),
                self._distributions,
                {"dropped": candidate.text, **describe(candidate)},
            )
            started.append((trial.number, candidate))
        return started

    def holds(self, trial: FrozenTrial) -> bool:
        """Return whether a trial's subset belongs to the space."""
        X_D = self.mask(trial)
        return X_D is not None and self.constraints.holds(X_D)

    def is_partial_subset(self, candidate: LayerSubset) -> bool:
        """Return whether a candidate removes less than the space demands.

        It cannot be a result then.
        """
        return self.space.removes_less(candidate)

    def trial_log(self, study: Study) -> TrialLog:
        """Return the log of the study's trials.

        Raises:
            InputError: the study has several objectives and the sampler supports one, or the study
                was sampled with other settings before.
        """
        with self._lock:
            known = self._trial_log
            # A sampler may be used with one study after the other: start again for another study.
            if known is None or not is_same_study(known.study, study):
                objectives = len(study.directions)
                if objectives > 1 and not self.several_objectives:
                    raise InputError(
                        f"the sampler {self.name!r} searches one objective and the study has "
                        f"{objectives}: "
                        f"use one of {', '.join(names_with('several_objectives'))}"
                    )
                self.study_seed = hold_to(study, self.name, self.config)
                self._reset_caches()
                self._trial_log = known = TrialLog(
                    study, History(self.space.n_units, objectives), self._read
                )
            return known

    def _reset_caches(self) -> None:
        """Drop everything that was derived from another study's trials."""

    def mask(self, trial: FrozenTrial) -> Mask | None:
        """Return the subset of a trial, of any size; None if the trial lacks some of the units."""
        if not trial.params.keys() >= self._distributions.keys():
            # Optuna has not written all parameters yet: use the subset stored by `sample_relative`.
            stored = json.loads(trial.system_attrs.get(STATE_ATTR, "{}")).get("d")
            if stored is None or trial.state.is_finished():
                return None
            return self._mask_of_units(stored)
        return self._mask_of_units(self.space.units_in(trial.params))

    def mask_of_candidate(self, candidate: LayerSubset) -> Mask:
        """Return a candidate as a mask."""
        return self._mask_of_units(self.space.units_of(candidate))

    def _mask_of_units(self, units: Sequence[int]) -> Mask:
        X_D = np.zeros(self.space.n_units, dtype=np.bool_)
        X_D[np.asarray(units, dtype=np.intp)] = True
        return X_D

    def _read(self, trial: FrozenTrial, losses: Sequence[float]) -> TrialOutcome:
        """Return a finished trial's subset, if it belongs to the space, and the algorithm's stored
        memory.
        """
        X_D = self.mask(trial)
        if X_D is None or not self.constraints.holds(X_D):
            return TrialOutcome(None, None)
        stored = json.loads(trial.system_attrs.get(STATE_ATTR, "{}"))
        return TrialOutcome(
            X_D, None, memory=unpack(stored.get("m", {}), stored.get("by") == self.name)
        )

    def reseed_rng(self) -> None:
        """Do nothing: the random numbers depend on the trial's number only."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Refuse a study that was sampled with other settings.

        Raises:
            InputError: see `trial_log`.
        """
        refuse_first(study, trial, lambda: self.trial_log(study))

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the space's parameters, independent of the study's trials."""
        return self._distributions

    def proposal_for(self, study: Study, trial: FrozenTrial) -> Proposal:
        """Return the proposal for a trial that Optuna created.

        If there is none yet, the trial fails.
        """
        try:
            return self.propose(study, trial.number)
        except GenerationPendingError as error:
            self._give_up(study, trial, str(error))
            raise

    def _give_up(self, study: Study, trial: FrozenTrial, reason: str) -> None:
        """Finish a trial that gets no proposal. Inside ``study.optimize``, Optuna finishes it."""
        if not under_optimize(study):
            fail(study, trial.number, reason)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, int]:
        """Propose the trial's whole subset, for ``study.optimize`` and ``study.ask``.

        Raises:
            InputError: the proposal is a partial subset.
        """
        proposal = self.proposal_for(study, trial)
        if proposal.partial_subset:
            # Optuna would count the trial as complete, so it is refused here.
            self._give_up(study, trial, "a partial subset cannot be a result")
            raise InputError(
                f"{self.name} proposes partial subsets first, which Optuna would take for results: "
                "use its ask(), and tell those as pruned"
            )
        # Optuna writes the parameters one by one. Until all are written, "d" holds the subset.
        dropped = list(self.space.units_of(proposal.candidate))
        state = {**json.loads(proposal.state), "d": dropped}
        set_attribute(study, trial, STATE_ATTR, json.dumps(state))
        if proposal.attributes:
            annotate(study, trial.number, proposal.attributes)
        return self.space.to_params(proposal.candidate)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> CategoricalChoiceType:
        """Draw a parameter that is not part of the space at random."""
        self.trial_log(study)
        return draw(self.study_seed, trial.number, param_name, param_distribution)


def checked_space(space: Space, owner: str) -> Space:
    """Check the space that a user gave to a sampler.

    Args:
        space: the space.
        owner: name of the sampler's class, for the error message.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(space, SearchSpace | WidthSpace):
        raise InputError(
            f"{owner} needs a prunesearch.SearchSpace or WidthSpace, not {type(space).__name__} "
            f"{space!r:.60}"
        )
    return space


def constraints_of(space: Space) -> Constraints:
    """Return the constraints on the candidates of a space, as the algorithms use them."""
    if isinstance(space, WidthSpace):
        return WidthConstraints(space)
    assert isinstance(space, SearchSpace)
    free_D = np.isin(np.arange(space.n_units), space.droppable)
    return SubsetConstraints.of(free_D, space.k_min, space.k, np.array(space.kinds, dtype=np.intp))
