"""A log of a study's trials, and functions that read and write trials in the storage.

A sampler has no other state than the log. Each finished trial is read once, and the log can be
rebuilt at any time.
"""

import math
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalChoiceType
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from prunesearch.algorithms.history import History, TrialOutcome
from prunesearch.runtime.json_values import Json
from prunesearch.studies.optuna_internals.access import (
    backend_of,
    has_heartbeat,
    is_inside_optimize,
    storage_of,
    study_id_of,
    trial_id_of,
)
from prunesearch.studies.rdb import StudyStorage
from prunesearch.studies.recommendation import STANDARD_ERROR_ATTR
from prunesearch.units import noun_for

logger = optuna.logging.get_logger("prunesearch")
_POLL_SECONDS = (0.005, 0.1)  # first and longest pause between two reads while waiting for trials
_PATIENCE_SECONDS = 60.0  # shortest time to wait for a trial
_PATIENCE_TRIALS = 10.0  # the same, in medians of the trials' durations
_STALE_SECONDS = 1.0  # time between two searches for workers without a heartbeat
_ENOUGH = 12  # number of equal trials after which a warning is logged


@dataclass(frozen=True)
class ProposalInputs:
    """Trials that a proposal was derived from, so that it can be derived again.

    Attributes:
        end: the proposal used the trials before this number.
        open: trials before `end` that had not finished.
        known: running trials, of any number, whose subsets were known.
    """

    end: int
    open: tuple[int, ...] = ()
    known: tuple[int, ...] = ()


@dataclass
class TrialLog:
    """Log of one study's trials, by number.

    Args:
        study: study whose trials are read.
        history: arrays of the finished trials.
        read: function that turns a finished trial and its losses (to be minimised) into an outcome.
        open: numbers of the trials that have not finished.
        hinted: True once the check for equal values is done: the trials differ, or the warning was
            logged.
    """

    study: Study
    history: History
    read: Callable[[FrozenTrial, Sequence[float]], TrialOutcome]
    open: set[int] = field(default_factory=set)
    hinted: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._gone: set[int] = set()  # trials that `wait` no longer waits for
        self._seconds: list[float] = []  # durations of the finished trials
        self._alike: tuple[list[float], int] = (
            [],
            0,
        )  # losses that all trials share, and their number
        # Losses are minimised, so values of a maximised objective change their sign.
        self._signs = [-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in self.study.directions]

    def take_over(self, before: "TrialLog") -> None:
        """Copy from an older log of the study which warnings were logged and which trials are given
        up.
        """
        self.hinted, self._gone = before.hinted, before._gone

    def refresh(self, end: int) -> None:
        """Read the trials before `end` that are new or had not finished."""
        with self._lock:
            self._read_missing(end)

    def _read_missing(self, end: int) -> None:
        missing = [*self._open_before(end), *range(len(self.history), end)]
        # Several trials are read with one query.
        trials: Sequence[FrozenTrial] = ()
        if len(missing) > 1:
            trials = storage_of(self.study).get_all_trials(study_id_of(self.study), deepcopy=False)
        for number in missing:
            trial = trials[number] if number < len(trials) else self.trial(number)
            outcome = None
            if trial is not None and trial.state.is_finished():
                outcome = self._outcome(trial)
            # A trial that has not finished still takes its place in the history.
            if number == len(self.history):
                self.history.append(outcome)
            elif outcome is not None:
                self.history.settle(number, outcome)
            if outcome is None:
                self.open.add(number)
            else:
                self.open.discard(number)

    def _open_before(self, end: int) -> list[int]:
        """Return the numbers before `end` that had not finished when last read, in order."""
        return sorted(n for n in self.open if n < end)

    def trial(self, number: int) -> FrozenTrial | None:
        """Read the current state of the trial with this number; None if it does not exist."""
        trial_id = self._id(number)
        if trial_id is None:
            return None
        return storage_of(self.study).get_trial(trial_id)

    def _id(self, number: int) -> int | None:
        """Return the storage's id of the trial with this number; None if it does not exist."""
        try:
            return storage_of(self.study).get_trial_id_from_study_id_trial_number(
                study_id_of(self.study), number
            )
        except KeyError:
            return None

    def count(self) -> int:
        """Return the number of trials in the study."""
        number = len(self.history)
        if number == 0:
            return storage_of(self.study).get_n_trials(study_id_of(self.study))
        # Most trials are known already: look up the next few numbers instead of counting all.
        while self._id(number) is not None:
            number += 1
        return number

    def unfinished(self, end: int) -> tuple[int, ...]:
        """Return the numbers of the trials before `end` that have not finished."""
        with self._lock:
            self._read_missing(end)
            return tuple(self._open_before(end))

    def wait(self, end: int) -> bool:
        """Wait until other threads or processes have finished all trials before `end`.

        A trial that takes much longer than the others is given up: its worker was probably killed.
        If the storage has a heartbeat, such a trial fails as soon as its heartbeat stops.

        Returns:
            True if all have finished. If not, the caller continues without the unfinished trials.
        """
        pause, start, looked = _POLL_SECONDS[0], time.monotonic(), time.monotonic()
        while waiting := [number for number in self.unfinished(end) if number not in self._gone]:
            time.sleep(pause)
            pause = min(2.0 * pause, _POLL_SECONDS[1])
            now = time.monotonic()
            # Let Optuna fail the trials of workers whose heartbeat has stopped.
            if now - looked > _STALE_SECONDS and has_heartbeat(self.study):
                looked = now
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ExperimentalWarning)
                    optuna.storages.fail_stale_trials(self.study)
            # Give up the trials that are still running after a long time.
            if now - start > self._patience:
                self._gone |= set(waiting)
                logger.warning(
                    f"study {self.study.study_name!r}: going on without "
                    f"{noun_for(len(waiting), 'trial')} {', '.join(map(str, waiting[:5]))}, which "
                    f"{noun_for(len(waiting), 'has', 'have')} not finished after "
                    f"{now - start:.0f} s; if {noun_for(len(waiting), 'its', 'their')} worker is "
                    f"gone, finish {noun_for(len(waiting), 'it', 'them')}: "
                    f"study.tell({waiting[0]}, state=optuna.trial.TrialState.FAIL)"
                )
        return not self.unfinished(end)

    @property
    def _patience(self) -> float:
        """Seconds to wait for a trial before it is given up."""
        usual = statistics.median(self._seconds) if self._seconds else 0.0
        return max(_PATIENCE_SECONDS, _PATIENCE_TRIALS * usual)

    def _note(self, trial: FrozenTrial, losses: list[float] | None) -> None:
        """Record the duration of a finished trial, and warn once if the first trials all have the
        same value.
        """
        if trial.duration is not None:
            self._seconds.append(trial.duration.total_seconds())
        if self.hinted or trial.state != TrialState.COMPLETE or losses is None:
            return
        # Compare with the losses that all trials had so far.
        before, number = self._alike
        self._alike = losses, number + 1
        self.hinted = before not in ([], losses)
        if not self.hinted and number + 1 == _ENOUGH:
            self.hinted = True
            logger.warning(
                f"study {self.study.study_name!r}: the first {_ENOUGH} trials all have the same "
                f"value, from which nothing can be learnt: use an objective that tells them apart; "
                "for a model that is more data, or KL instead of accuracy"
            )

    def _outcome(self, trial: FrozenTrial) -> TrialOutcome:
        """Convert a finished trial to an outcome, with losses that are to be minimised."""
        values = trial.values
        # The value of a pruned trial is its last intermediate value.
        if trial.state == TrialState.PRUNED and trial.intermediate_values:
            values = [trial.intermediate_values[max(trial.intermediate_values)]]
        if trial.state == TrialState.FAIL or values is None or len(values) != len(self._signs):
            losses: list[float] | None = None
        else:
            losses = [sign * value for sign, value in zip(self._signs, values, strict=True)]
        self._note(trial, losses)
        outcome = self.read(trial, losses or ())
        steps = {step: self._signs[0] * value for step, value in trial.intermediate_values.items()}
        return TrialOutcome(
            outcome.X_D,
            tuple(losses) if losses else None,
            trial.state == TrialState.PRUNED,
            steps,
            outcome.memory,
            sum(max(0.0, violated) for violated in trial.constraints.values()),
            _error_of(trial),
        )


def _error_of(trial: FrozenTrial) -> float:
    """Return the standard error that is stored with a trial; NaN if there is none."""
    error = trial.user_attrs.get(STANDARD_ERROR_ATTR)
    if isinstance(error, bool) or not isinstance(error, int | float) or error <= 0.0:
        return math.nan
    return float(error)


class PicklableSampler:
    """Mixin that makes a sampler picklable.

    Its lock and its trial log are left out and created again.
    """

    _lock: threading.RLock
    _trial_log: TrialLog | None

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in vars(self).items() if name not in ("_lock", "_trial_log")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock, self._trial_log = threading.RLock(), None


def under_optimize(study: Study) -> bool:
    """Return whether this thread is inside ``study.optimize``, where waiting for other workers
    cannot deadlock.
    """
    return is_inside_optimize(study)


def create_trial(study: Study, template: FrozenTrial) -> int:
    """Add a trial in one transaction and return its number."""
    trial_id = storage_of(study).create_new_trial(study_id_of(study), template)
    return storage_of(study).get_trial_number_from_id(trial_id)


def set_attribute(study: Study, trial: FrozenTrial, name: str, value: Json) -> None:
    """Set a system attribute of a running trial."""
    storage_of(study).set_trial_system_attr(trial_id_of(trial), name, value)


def put_back(study: Study, trial: FrozenTrial) -> None:
    """Set a new trial to waiting, so that the next caller gets it and its number is not lost."""
    storage_of(study).set_trial_state_values(trial_id_of(trial), TrialState.WAITING)


def create_running(study: Study) -> FrozenTrial:
    """Add an empty running trial and return it."""
    storage = storage_of(study)
    return storage.get_trial(storage.create_new_trial(study_id_of(study)))


def set_params(
    study: Study,
    trial: FrozenTrial,
    params: Mapping[str, CategoricalChoiceType],
    distributions: Mapping[str, BaseDistribution],
    user_attrs: Mapping[str, Json],
) -> None:
    """Write the parameters and user attributes of a running trial."""
    storage = storage_of(study)
    for name, value in params.items():
        distribution = distributions[name]
        storage.set_trial_param(
            trial_id_of(trial), name, distribution.to_internal_repr(value), distribution
        )
    for name, attribute in user_attrs.items():
        storage.set_trial_user_attr(trial_id_of(trial), name, attribute)


def start(
    study: Study,
    trial: FrozenTrial,
    params: Mapping[str, CategoricalChoiceType],
    distributions: Mapping[str, BaseDistribution],
    user_attrs: Mapping[str, Json],
) -> None:
    """Set a waiting trial to running, with the given parameters."""
    storage_of(study).set_trial_state_values(trial_id_of(trial), TrialState.RUNNING)
    # An enqueued trial may have some parameters already.
    missing = {name: value for name, value in params.items() if name not in trial.params}
    set_params(study, trial, missing, distributions, user_attrs)


def fail(study: Study, number: int, reason: str) -> None:
    """Finish a running or waiting trial as failed, with the reason as a user attribute."""
    storage = storage_of(study)
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id_of(study), number)
    storage.set_trial_user_attr(trial_id, "failure", reason)
    storage.set_trial_state_values(trial_id, TrialState.FAIL)


def annotate(study: Study, number: int, attributes: Mapping[str, Json]) -> None:
    """Set user attributes of a running trial.

    A `StudyStorage` writes them together with the trial's final state, in one transaction.
    """
    _before_end(study, number, attributes, {})


def report(study: Study, number: int, step: int, value: float) -> None:
    """Report an intermediate value of a running trial.

    It is written like the attributes of `annotate`.
    """
    _before_end(study, number, {}, {step: value})


def _before_end(
    study: Study, number: int, attributes: Mapping[str, Json], reports: Mapping[int, float]
) -> None:
    """Write attributes and intermediate values, if possible in one transaction with the trial's
    final state.
    """
    storage = storage_of(study)
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id_of(study), number)
    # Optuna wraps a database storage in a cached one.
    backend = backend_of(study)
    if isinstance(backend, StudyStorage):
        backend.with_end(trial_id, attributes, reports)
        return
    for name, value in attributes.items():
        storage.set_trial_user_attr(trial_id, name, value)
    for step, reported in reports.items():
        storage.set_trial_intermediate_value(trial_id, step, reported)
