"""The identifier of a study in experiment trackers, and the trials that they may not have yet."""

import math
import uuid

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from prunesearch.events import ToldTrial
from prunesearch.studies import persistence

RUN_ATTR = "tracker_run"
"""User attribute of a study: its identifier in trackers. A study without one was never tracked."""


def run_of(study: Study) -> str:
    """Return the identifier of a study, which is made the first time.

    It does not follow from the name, because many databases have studies of the same name.
    """
    return persistence.get_or_set_attr(study, RUN_ATTR, lambda: uuid.uuid4().hex[:16])


def told_trials(study: Study) -> tuple[ToldTrial, ...]:
    """Return the finished trials of a study, in the order in which they were finished."""
    finished: list[tuple[float, FrozenTrial]] = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished() and trial.datetime_complete is not None:
            finished.append((trial.datetime_complete.timestamp(), trial))
    finished.sort(key=lambda pair: (pair[0], pair[1].number))
    return tuple(_told(at, trial) for at, trial in finished)


def _told(at: float, trial: FrozenTrial) -> ToldTrial:
    """Return what is kept of a trial."""
    figures: dict[str, float] = {}
    for name, value in trial.user_attrs.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            figures[name] = float(value)
    # The trials of a tuning have hyper-parameters, and those of a search have 0 or 1 for each unit.
    if "cache" in trial.user_attrs:
        figures["cache_hit"] = float(trial.user_attrs["cache"] == "hit")
    # A pruned trial has a value for the part of the data that was scored, or for its partial
    # subset.
    value = trial.values[0] if trial.values else None
    if value is None and trial.intermediate_values:
        value = trial.intermediate_values[max(trial.intermediate_values)]
    complete = trial.state == TrialState.COMPLETE
    return ToldTrial(trial.number, value, complete, at, figures)
