"""Access to a study's storage, and names for private functions that Optuna's samplers use."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from optuna._transform import _SearchSpaceTransform
from optuna.samplers._base import _process_constraints_after_trial
from optuna.storages import BaseStorage
from optuna.storages._heartbeat import is_heartbeat_enabled
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from prunesearch.runtime.json_values import Json


def storage_of(study: Study) -> BaseStorage:
    """Return the storage of a study, with the cache that Optuna puts in front of a database.

    Stands for `Study._storage`.
    """
    storage: BaseStorage = study._storage
    return storage


def backend_of(study: Study) -> BaseStorage:
    """Return the storage of a study without the cache that Optuna puts in front of it.

    Stands for `_CachedStorage._backend`.
    """
    storage = storage_of(study)
    backend: BaseStorage = getattr(storage, "_backend", storage)
    return backend


def study_id_of(study: Study) -> int:
    """Return the number by which the storage knows a study. Stands for `Study._study_id`."""
    return study._study_id


def trial_id_of(trial: FrozenTrial) -> int:
    """Return the number by which the storage knows a trial.

    Stands for `FrozenTrial._trial_id`.
    """
    return trial._trial_id


def enqueued_params(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters that a trial was enqueued with; empty if it was not enqueued.

    They are in a system attribute of the trial, which `Study.enqueue_trial` writes.
    """
    return dict(trial.system_attrs.get("fixed_params", {}))


def is_same_study(one: Study, other: Study) -> bool:
    """Return whether two objects stand for the same study in the same storage object."""
    return storage_of(one) is storage_of(other) and study_id_of(one) == study_id_of(other)


def system_attributes(study: Study) -> dict[str, Any]:
    """Return the system attributes of a study, which no public method returns."""
    return storage_of(study).get_study_system_attrs(study_id_of(study))


def set_system_attribute(study: Study, name: str, value: Json) -> None:
    """Set a system attribute of a study to a JSON value."""
    storage_of(study).set_study_system_attr(study_id_of(study), name, value)


def as_live_trial(study: Study, trial: FrozenTrial) -> Any:  # noqa: ANN401
    """Return a finished trial in the form that optuna-dashboard's `save_note` takes.

    An `optuna.Trial` would ask the sampler for parameters again. Stands for `Trial.storage`,
    `Trial.study` and `Trial._trial_id`. Tested with optuna-dashboard 0.21.0.
    """
    return SimpleNamespace(storage=storage_of(study), study=study, _trial_id=trial_id_of(trial))


def as_gathering_study(storage: object) -> Any:  # noqa: ANN401
    """Return what optuna-dashboard's `save_plotly_graph_object` takes as a study.

    Stands for `Study._storage` and `Study._study_id`. Tested with optuna-dashboard 0.21.0.

    Args:
        storage: takes the system attributes that would be written.
    """
    return SimpleNamespace(_storage=storage, _study_id=0)


def is_inside_optimize(study: Study) -> bool:
    """Return whether this thread is inside `study.optimize`.

    Stands for `Study._thread_local.in_optimize_loop`.
    """
    return bool(study._thread_local.in_optimize_loop)


def has_heartbeat(study: Study) -> bool:
    """Return whether the workers of a study record a heartbeat in its storage."""
    return is_heartbeat_enabled(storage_of(study))


ParameterTransform = _SearchSpaceTransform
"""Maps parameters to coordinates and back, as Optuna's own samplers do."""


def store_constraints(
    constraints: Callable[[FrozenTrial], Sequence[float]],
    study: Study,
    trial: FrozenTrial,
    state: TrialState,
) -> None:
    """Compute the constraints of a finished trial and store them as Optuna's samplers do."""
    _process_constraints_after_trial(constraints, study, trial, state)
