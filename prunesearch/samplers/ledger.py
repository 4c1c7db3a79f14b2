"""What a study's storage says, read once per trial: the only state a sampler has, and it can be rebuilt at any time."""

import statistics
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages._heartbeat import is_heartbeat_enabled
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from prunesearch.store.rdb import StudyStorage
from prunesearch.swarm.history import History, Outcome

logger = optuna.logging.get_logger("prunesearch")
_POLL_SECONDS = (0.005, 0.1)  # first and longest pause between two looks at a study that others are working on
_PATIENCE_SECONDS = 60.0  # how long a trial is waited for at least
_PATIENCE_TRIALS = 10.0  # and for how many median trials
_STALE_SECONDS = 1.0  # between two looks for workers whose heart has stopped
_ENOUGH = 12  # equal trials after which that is said


@dataclass(frozen=True)
class Basis:
    """What a proposal was derived from, so that it can be derived again.

    Attributes:
        end: the trials before this number.
        open: those of them that had not finished.
        known: trials under way, of any number, whose subsets were known.
    """

    end: int
    open: tuple[int, ...] = ()
    known: tuple[int, ...] = ()


@dataclass
class Ledger:
    """The trials of one study, by number.

    Args:
        read: turns a finished trial into an outcome, with its losses to be minimised.
        hinted: whether it has been said that all trials come out the same, or they do not.
    """

    study: Study
    history: History
    read: Callable[[FrozenTrial, Sequence[float]], Outcome]
    open: set[int] = field(default_factory=set)
    hinted: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._gone: set[int] = set()  # trials that are not waited for any more
        self._seconds: list[float] = []  # that finished trials took
        self._alike: tuple[list[float], int] = ([], 0)  # the losses of all trials so far, and their number
        self._signs = [-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in self.study.directions]

    def take_over(self, before: "Ledger") -> None:
        """Know what another ledger of the study has said and whom it waited for in vain."""
        self.hinted, self._gone = before.hinted, before._gone

    def refresh(self, end: int) -> None:
        """Read what is new among the trials before `end`: those not seen yet and those that had not finished."""
        with self._lock:
            self._read_missing(end)

    def _read_missing(self, end: int) -> None:
        missing = [*sorted(n for n in self.open if n < end), *range(len(self.history), end)]
        trials: Sequence[FrozenTrial] = ()
        if len(missing) > 1:  # one query for all
            trials = self.study._storage.get_all_trials(self.study._study_id, deepcopy=False)
        for number in missing:
            trial = trials[number] if number < len(trials) else self.trial(number)
            finished = trial is not None and trial.state.is_finished()
            outcome = self._outcome(trial) if trial is not None and finished else None
            if number == len(self.history):
                self.history.append(outcome)
            elif outcome is not None:
                self.history.settle(number, outcome)
            (self.open.discard if finished else self.open.add)(number)

    def trial(self, number: int) -> FrozenTrial | None:
        """The trial of that number as it is now; None if there is none yet."""
        trial_id = self._id(number)
        return None if trial_id is None else self.study._storage.get_trial(trial_id)

    def _id(self, number: int) -> int | None:
        try:
            return self.study._storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)
        except KeyError:
            return None

    def count(self) -> int:
        """How many trials the study has; where most are known, by looking for the next few numbers only."""
        number = len(self.history)
        if number == 0:
            return self.study._storage.get_n_trials(self.study._study_id)
        while self._id(number) is not None:
            number += 1
        return number

    def unfinished(self, end: int) -> tuple[int, ...]:
        """Numbers before `end` that have not finished."""
        with self._lock:
            self._read_missing(end)
            return tuple(sorted(n for n in self.open if n < end))

    def wait(self, end: int) -> bool:
        """Wait until all trials before `end` have finished; other threads or processes are working on them.

        A trial that takes much longer than others did is taken for one whose worker was killed. With a storage that
        has a heartbeat such a trial fails as soon as that stops.

        Returns:
            Whether all have finished; if not, the caller goes on without those.
        """
        pause, start, looked = _POLL_SECONDS[0], time.monotonic(), time.monotonic()
        while waiting := [number for number in self.unfinished(end) if number not in self._gone]:
            time.sleep(pause)
            pause = min(2.0 * pause, _POLL_SECONDS[1])
            now = time.monotonic()
            if now - looked > _STALE_SECONDS and is_heartbeat_enabled(self.study._storage):
                looked = now
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ExperimentalWarning)
                    optuna.storages.fail_stale_trials(self.study)
            if now - start > self._patience:
                self._gone |= set(waiting)
                logger.warning(
                    f"study {self.study.study_name!r}: going on without trial(s) {', '.join(map(str, waiting[:5]))}, "
                    f"which have not finished after {now - start:.0f} s; if their worker is gone, finish them: "
                    f"study.tell({waiting[0]}, state=optuna.trial.TrialState.FAIL)"
                )
        return not self.unfinished(end)

    @property
    def _patience(self) -> float:
        usual = statistics.median(self._seconds) if self._seconds else 0.0
        return max(_PATIENCE_SECONDS, _PATIENCE_TRIALS * usual)

    def _note(self, trial: FrozenTrial, losses: list[float] | None) -> None:
        """Remember how long a finished trial took, and say it once where all come out the same."""
        if trial.duration is not None:
            self._seconds.append(trial.duration.total_seconds())
        if self.hinted or trial.state != TrialState.COMPLETE or losses is None:
            return
        before, number = self._alike
        self._alike = losses, number + 1
        self.hinted = before not in ([], losses)
        if not self.hinted and number + 1 == _ENOUGH:
            self.hinted = True
            logger.warning(
                f"study {self.study.study_name!r}: the first {_ENOUGH} trials all have the same value, from which "
                "nothing can be learnt: score more data, or use an objective that tells candidates apart (KL rather "
                "than accuracy)"
            )

    def _outcome(self, trial: FrozenTrial) -> Outcome:
        values = trial.values
        if trial.state == TrialState.PRUNED and trial.intermediate_values:
            values = [trial.intermediate_values[max(trial.intermediate_values)]]
        if trial.state == TrialState.FAIL or values is None or len(values) != len(self._signs):
            losses: list[float] | None = None
        else:
            losses = [sign * value for sign, value in zip(self._signs, values, strict=True)]
        self._note(trial, losses)
        outcome = self.read(trial, losses or ())
        steps = {step: self._signs[0] * value for step, value in trial.intermediate_values.items()}
        return Outcome(
            outcome.X_D,
            tuple(losses) if losses else None,
            trial.state == TrialState.PRUNED,
            steps,
            outcome.memory,
            sum(max(0.0, violated) for violated in trial.constraints.values()),
        )


class Rebuilt:
    """A sampler that can be pickled: its lock and what it has read are left out, and made again."""

    _lock: threading.RLock
    _ledger: Ledger | None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_ledger")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock, self._ledger = threading.RLock(), None


def under_optimize(study: Study) -> bool:
    """Whether this thread is inside ``study.optimize``, where waiting for other workers cannot lock up."""
    return bool(study._thread_local.in_optimize_loop)


def create_trial(study: Study, template: FrozenTrial) -> int:
    """Add a trial in one transaction and return its number."""
    trial_id = study._storage.create_new_trial(study._study_id, template)
    return study._storage.get_trial_number_from_id(trial_id)


def set_attribute(study: Study, trial: FrozenTrial, name: str, value: Any) -> None:  # noqa: ANN401 (any JSON value)
    """Set a system attribute of a running trial."""
    study._storage.set_trial_system_attr(trial._trial_id, name, value)


def put_back(study: Study, trial: FrozenTrial) -> None:
    """Let a trial that was just created wait, so that whoever asks next gets it and no number is lost."""
    study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def create_running(study: Study) -> FrozenTrial:
    """Add an empty running trial."""
    storage = study._storage
    return storage.get_trial(storage.create_new_trial(study._study_id))


def set_params(
    study: Study,
    trial: FrozenTrial,
    params: Mapping[str, Any],
    distributions: Mapping[str, BaseDistribution],
    user_attrs: Mapping[str, Any],
) -> None:
    """Write the parameters and user attributes of a running trial."""
    storage = study._storage
    for name, value in params.items():
        distribution = distributions[name]
        storage.set_trial_param(trial._trial_id, name, distribution.to_internal_repr(value), distribution)
    for name, value in user_attrs.items():
        storage.set_trial_user_attr(trial._trial_id, name, value)


def start(
    study: Study,
    trial: FrozenTrial,
    params: Mapping[str, Any],
    distributions: Mapping[str, BaseDistribution],
    user_attrs: Mapping[str, Any],
) -> None:
    """Set a waiting trial running, with these parameters."""
    study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
    missing = {name: value for name, value in params.items() if name not in trial.params}
    set_params(study, trial, missing, distributions, user_attrs)


def fail(study: Study, number: int, reason: str) -> None:
    """Finish a running or waiting trial as failed, and say why in its attributes."""
    storage = study._storage
    trial_id = storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    storage.set_trial_user_attr(trial_id, "failure", reason)
    storage.set_trial_state_values(trial_id, TrialState.FAIL)


def annotate(study: Study, number: int, attributes: Mapping[str, Any]) -> None:
    """Set user attributes of a running trial by its number.

    A `StudyStorage` keeps them for a moment and writes them in one transaction with the trial's end.
    """
    _before_end(study, number, attributes, {})


def report(study: Study, number: int, step: int, value: float) -> None:
    """Report an intermediate value of a running trial by its number, as `annotate` sets attributes."""
    _before_end(study, number, {}, {step: value})


def _before_end(study: Study, number: int, attributes: Mapping[str, Any], reports: Mapping[int, float]) -> None:
    storage = study._storage
    trial_id = storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    backend = getattr(storage, "_backend", storage)
    if isinstance(backend, StudyStorage):
        backend.with_end(trial_id, attributes, reports)
        return
    for name, value in attributes.items():
        storage.set_trial_user_attr(trial_id, name, value)
    for step, reported in reports.items():
        storage.set_trial_intermediate_value(trial_id, step, reported)
