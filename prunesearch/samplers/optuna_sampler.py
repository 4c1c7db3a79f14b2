"""Optuna's own samplers over the same parameters."""

import pkgutil
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from prunesearch.algorithms.history import TrialOutcome
from prunesearch.algorithms.operators import Mask, generator
from prunesearch.algorithms.registry import AlgorithmEntry
from prunesearch.candidate import LayerSubset
from prunesearch.runtime.json_values import Json
from prunesearch.samplers.base import Proposal, SubsetSampler
from prunesearch.samplers.settings import SamplerSettings
from prunesearch.space import Space
from prunesearch.studies.trial_log import create_running, set_params


class OptunaSampler(SubsetSampler):
    """Wraps one of Optuna's own samplers over the same parameters.

    Its suggestion is repaired until it is a new candidate of the space: units are dropped or added
    at random, and widths are moved to the nearest ones that meet the budget.

    The random state of Optuna's sampler lives in memory, so a resumed study continues with other
    random numbers.

    Args:
        space, seed, population, first: see `SubsetSampler`.
        inner: Optuna's sampler.
        name: name of the sampler on the command line.
        several_objectives: whether Optuna's sampler supports more than one direction.
    """

    def __init__(
        self,
        space: Space,
        inner: BaseSampler,
        name: str,
        *,
        seed: int | None = 0,
        population: int = 16,
        several_objectives: bool = True,
        first: Sequence[LayerSubset] = (),
    ) -> None:
        super().__init__(space, seed=seed, population=population, first=first)
        self.inner, self.name = inner, name
        self.several_objectives = several_objectives
        self._reset_caches()

    def _reset_caches(self) -> None:
        self._seen: set[bytes] = set()

    def ask(
        self,
        study: Study,
        describe: Callable[[LayerSubset], Mapping[str, Json]] = lambda candidate: {},
    ) -> Proposal:
        """Create the study's next trial and return its proposal."""
        self.trial_log(study)
        # The trial is created first, because `inner` writes to it.
        trial = create_running(study)
        self.before_trial(study, trial)
        params = self.sample_relative(study, trial, self._distributions)
        candidate = self.space.from_params(params)
        set_params(
            study,
            trial,
            params,
            self._distributions,
            {"dropped": candidate.text, **describe(candidate)},
        )
        return Proposal(trial.number, candidate, "{}")

    def sample_relative(
        self,
        study: Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, int]:
        """Let `inner` suggest every parameter, then repair the subset."""
        trial_log = self.trial_log(study)
        with self._lock:
            trial_log.refresh(trial.number)
            if trial.number < len(self.first):
                return self._unseen_params(self._first_ED[trial.number], trial.number)
            # Let Optuna's sampler suggest.
            space = self.inner.infer_relative_search_space(study, trial)
            relative = {name: d for name, d in space.items() if name in search_space}
            params = self.inner.sample_relative(study, trial, relative)
            for name, distribution in search_space.items():
                if name not in params:
                    params[name] = self.inner.sample_independent(study, trial, name, distribution)
            # Repair the suggestion, and replace one that was proposed before by a new one.
            suggested_D = self._mask_of_units(self.space.units_in(params))
            return self._unseen_params(suggested_D, trial.number)

    def _unseen_params(self, suggested_D: Mask, number: int) -> dict[str, int]:
        """Return the parameters of a new candidate near to a suggestion for a trial."""
        rng = generator(self.study_seed, number, 0)
        repaired_D = self.constraints.completed(suggested_D, rng)
        X_D = self.constraints.unseen(repaired_D, self._seen, rng)
        self._seen.add(X_D.tobytes())
        return self.space.to_params(self.space.with_units(np.flatnonzero(X_D).tolist()))

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Check the study as `SubsetSampler` does, then delegate to Optuna's sampler."""
        super().before_trial(study, trial)
        self.inner.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Delegate to Optuna's sampler."""
        self.inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Delegate to Optuna's sampler."""
        self.inner.reseed_rng()

    def _read(self, trial: FrozenTrial, losses: Sequence[float]) -> TrialOutcome:
        X_D = self.mask(trial)
        if X_D is not None:
            self._seen.add(X_D.tobytes())
        return super()._read(trial, losses)


def build_optuna(entry: AlgorithmEntry, space: Space, settings: SamplerSettings) -> OptunaSampler:
    """Build the Optuna sampler that an entry names, wrapped for subsets."""
    facts = entry.optuna
    if facts is None:
        raise ValueError(f"the entry {entry.name!r} names no class of Optuna")
    options: dict[str, bool | int | float | str | None] = dict(facts.options)
    if facts.population_argument is not None:
        options[facts.population_argument] = max(settings.population, facts.least_population)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        inner: BaseSampler = pkgutil.resolve_name(facts.path)(seed=settings.seed, **options)
    return OptunaSampler(
        space,
        inner,
        entry.name,
        seed=settings.seed,
        population=settings.population,
        several_objectives=entry.several_objectives,
        first=settings.first,
    )
