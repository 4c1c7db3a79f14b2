"""Notes about a study and its best trial, which optuna-dashboard shows.

They are attributes of the study, not of its trials. No sampler reads them, so they do not change
the trials of a study.
"""

import hashlib
import importlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial

from prunesearch.studies.optuna_internals.access import (
    as_live_trial,
    set_system_attribute,
    system_attributes,
)

_OURS_ATTR = "prunesearch:notes"


@dataclass(frozen=True)
class Notes:
    """The notes of a study.

    Attributes:
        study: Markdown text for the study's page.
        best: the best trial. None without one, as for a Pareto study.
        trial: Markdown text for the best trial's page.
    """

    study: str
    best: FrozenTrial | None = None
    trial: str = ""


def write(study: Study, notes: Notes) -> None:
    """Write the notes that have changed, and remove the note of the trial that was the best before.

    A note that a user has edited in the dashboard is not changed.
    """
    # 1. Remove the note of another trial.
    number = None if notes.best is None else notes.best.number
    before = _ours(study).get("number")
    if before is not None and before != number:
        _put(study, study.get_trials(deepcopy=False)[before], "trial", "")
    # 2. Write the notes of the best trial and of the study.
    if notes.best is not None:
        _put(study, notes.best, "trial", notes.trial, number=number)
    _put(study, None, "study", notes.study)


def _put(study: Study, trial: FrozenTrial | None, kind: str, text: str, **more: Any) -> None:  # noqa: ANN401 (JSON values)
    """Write one note, unless it has not changed, or a user wrote the present one."""
    dashboard = _dashboard()
    target = study if trial is None else as_live_trial(study, trial)
    there, ours = dashboard.get_note(target), _ours(study)
    if there == text or (there and _digest(there) not in ours.get(kind, ())):
        return
    # Store the digests of both texts first. If the process is killed before it writes the note, the
    # present text is still recognised.
    known = {**ours, kind: [_digest(there), _digest(text)], **more}
    set_system_attribute(study, _OURS_ATTR, known)
    dashboard.save_note(target, text)


def _dashboard() -> ModuleType:
    """Import optuna_dashboard. This takes a second.

    If an optional package is missing, the import keeps the exception, and with it all frames of the
    call stack, for the rest of the process. The frames of a thread of its own do not hold a model.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(importlib.import_module, "optuna_dashboard").result()


def _ours(study: Study) -> dict[str, Any]:
    """Return the digests of prunesearch's own notes, and the number of the trial with a note."""
    found: dict[str, Any] = system_attributes(study).get(_OURS_ATTR, {})
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
