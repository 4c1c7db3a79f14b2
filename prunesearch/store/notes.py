"""Notes that optuna-dashboard shows, of a study and of its best trial.

They are attributes of the study, not of its trials. No sampler reads them, so the trials of a study are the same with
them and without.
"""

import hashlib
import importlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial

_OURS_ATTR = "prunesearch:notes"


@dataclass(frozen=True)
class Notes:
    """What to write.

    Attributes:
        study: Markdown, for the study's page.
        best: the best trial; None where there is none, as on a front.
        trial: Markdown, for the best trial's page.
    """

    study: str
    best: FrozenTrial | None = None
    trial: str = ""


def write(study: Study, notes: Notes) -> None:
    """Write the notes where they differ from what is there; the trial that was the best before loses its own.

    A note that somebody has edited in the dashboard is left alone.
    """
    number = None if notes.best is None else notes.best.number
    before = _ours(study).get("number")
    if before is not None and before != number:
        _put(study, study.get_trials(deepcopy=False)[before], "trial", "")
    if notes.best is not None:
        _put(study, notes.best, "trial", notes.trial, number=number)
    _put(study, None, "study", notes.study)


def _put(study: Study, trial: FrozenTrial | None, kind: str, text: str, **more: Any) -> None:  # noqa: ANN401 (JSON values)
    """Write one note, unless it is there, or is not ours."""
    dashboard = _dashboard()
    target = study if trial is None else _noted(study, trial)
    there, ours = dashboard.get_note(target), _ours(study)
    if there == text or (there and _digest(there) not in ours.get(kind, ())):
        return
    # First which texts are ours, the old one and the new one: after a kill in between both are known.
    known = {**ours, kind: [_digest(there), _digest(text)], **more}
    study._storage.set_study_system_attr(study._study_id, _OURS_ATTR, known)
    dashboard.save_note(target, text)


def _dashboard() -> ModuleType:
    """Import optuna_dashboard, which takes a second.

    Where an optional package is missing, the import keeps the exception and with it all frames below it for good. In a
    thread there are none that hold a model.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(importlib.import_module, "optuna_dashboard").result()


def _ours(study: Study) -> dict[str, Any]:
    """Digests of the notes that were written here, and the number of the trial that has one."""
    attributes = study._storage.get_study_system_attrs(study._study_id)
    found: dict[str, Any] = attributes.get(_OURS_ATTR, {})
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _noted(study: Study, trial: FrozenTrial) -> Any:  # noqa: ANN401 (stands for an optuna.Trial)
    """A finished trial as `save_note` reads it: an `optuna.Trial` would ask the sampler for parameters again."""
    return SimpleNamespace(storage=study._storage, study=study, _trial_id=trial._trial_id)
