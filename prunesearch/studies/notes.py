"""Notes about a study and its best trial, which optuna-dashboard shows.

They are attributes of the study, not of its trials. No sampler reads them, so they do not change
the trials of a study.
"""

import hashlib
import importlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, TypedDict

from optuna.study import Study
from optuna.trial import FrozenTrial

from prunesearch.runtime.json_values import to_json
from prunesearch.studies.optuna_internals.access import (
    as_live_trial,
    set_system_attribute,
    system_attributes,
)

_OURS_ATTR = "prunesearch:notes"


class _Known(TypedDict, total=False):
    """Digests of prunesearch's own notes, and the number of the trial with a note."""

    study: list[str]
    trial: list[str]
    number: int


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


def _put(
    study: Study,
    trial: FrozenTrial | None,
    kind: Literal["study", "trial"],
    text: str,
    number: int | None = None,
) -> None:
    """Write one note, unless it has not changed, or a user wrote the present one."""
    dashboard = optuna_dashboard_module()
    target = study if trial is None else as_live_trial(study, trial)
    there, ours = dashboard.get_note(target), _ours(study)
    if there == text or (there and _digest(there) not in ours.get(kind, [])):
        return
    # Store the digests of both texts first. If the process is killed before it writes the note, the
    # present text is still recognised.
    known = ours.copy()
    known[kind] = [_digest(there), _digest(text)]
    if number is not None:
        known["number"] = number
    set_system_attribute(study, _OURS_ATTR, to_json(known))
    dashboard.save_note(target, text)


def optuna_dashboard_module() -> ModuleType:
    """Import optuna_dashboard. This takes a second.

    If an optional package is missing, the import keeps the exception, and with it all frames of the
    call stack, for the rest of the process. The frames of a thread of its own do not hold a model.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(importlib.import_module, "optuna_dashboard").result()


def _ours(study: Study) -> _Known:
    """Return the digests of prunesearch's own notes, and the number of the trial with a note."""
    known: _Known = system_attributes(study).get(_OURS_ATTR, {})
    return known


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
