"""Checks of data before a model is loaded or a search begins, which may take long.

They find what is wrong with a name: a file that is missing or is not read, a task that lm-eval does
not know. What is inside the files is checked where they are used.
"""

from pathlib import Path

from prunesearch.config.data import DataSection
from prunesearch.config.objective import ObjectiveSection
from prunesearch.config.recovery import Recovery
from prunesearch.objectives.calibration_sources.registry import source_of
from prunesearch.objectives.registry import task_entry
from prunesearch.objectives.text_files import check_beginning
from prunesearch.pipeline.held_out_data import HeldOutOptions


def check_data(objective: ObjectiveSection, data: DataSection) -> None:
    """Check the data of an objective.

    Raises:
        InputError: a setting has no effect on the objective.
        DataError: a text, a file or a folder cannot be read.
        UnknownNameError: lm-eval does not know a task.
    """
    objective.check_data(data)
    if objective.calibrated:
        check_text(data.calibration)
    for task in objective.task_names:
        task_entry().check_task(task, data.task_data, data.include_path)


def check_recovery(recovery: Recovery | None) -> None:
    """Check the texts of a healing.

    Raises:
        DataError: one cannot be read.
    """
    if recovery is None or recovery.heal is None:
        return
    check_text(recovery.heal.data)
    if recovery.heal.held_out is not None:
        check_text(recovery.heal.held_out)


def check_held_out(options: HeldOutOptions) -> None:
    """Check held-out data that the user names.

    Raises:
        DataError: a text or a file cannot be read.
    """
    if options.text is not None:
        check_text(options.text)
    if options.documents is not None:
        check_beginning(Path(options.documents))


def check_text(name: str) -> None:
    """Check a calibration text.

    Raises:
        DataError: it cannot be read.
    """
    source_of(name).check(name)
