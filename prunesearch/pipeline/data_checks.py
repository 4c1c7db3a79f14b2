"""Checks of data before a model is loaded or a search begins, which may take long.

They find what is wrong with a name: a file that is missing or is not read, a task that lm-eval does
not know. What is inside the files is checked where they are used.
"""

from prunesearch.config.data import DataSection
from prunesearch.config.objective import ObjectiveSection
from prunesearch.config.recovery import Recovery
from prunesearch.objectives.calibration_sources.registry import source_of
from prunesearch.objectives.metrics.task import check_task


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
    # A mix names its tasks; otherwise there is one task at most.
    tasks = objective.tasks if objective.task is None else (objective.task,)
    for task in tasks:
        check_task(task, data.task_data, data.include_path)


def check_recovery(recovery: Recovery | None) -> None:
    """Check the data of a recovery.

    Raises:
        InputError, DataError, UnknownNameError: see `check_data`.
    """
    if recovery is None:
        return
    if recovery.heal is not None:
        check_text(recovery.heal.data)
        if recovery.heal.held_out is not None:
            check_text(recovery.heal.held_out)
    if recovery.evaluate is not None:
        check_data(recovery.evaluate.objective, recovery.evaluate.data)


def check_text(name: str) -> None:
    """Check a calibration text.

    Raises:
        DataError: it cannot be read.
    """
    source_of(name).check(name)
