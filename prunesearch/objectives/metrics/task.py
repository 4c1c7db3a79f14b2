"""The objective ``task``: a metric of an lm-eval task or group, such as HellaSwag's accuracy."""

import sys

from prunesearch import events
from prunesearch.objectives.base import Objective
from prunesearch.objectives.registry import ObjectiveEntry, ObjectiveInputs, register


def build(inputs: ObjectiveInputs) -> Objective:
    """Read a task's documents.

    Raises:
        UnknownNameError, DataError, InputError: see `objectives.task.TaskObjective`.
    """
    _announce_lm_eval()
    from prunesearch.objectives.task import TaskObjective

    assert inputs.task is not None, "a recipe with this objective names a task"
    task = inputs.task
    events.tell(events.StageProgress(f"reading the documents of {task.task}"))
    return TaskObjective(
        inputs.loaded,
        task.task,
        metric=task.metric,
        data=task.data,
        include_path=task.include_path,
        limit=task.limit,
        first=task.first,
        num_fewshot=task.num_fewshot,
        batch_tokens=task.batch_tokens,
        generate=task.generate,
    )


def check_task(task: str, data: str | None, include_path: str | None) -> None:
    """Check that a task exists and that its data can be opened, without a model.

    Raises:
        UnknownNameError, DataError, InputError: see `objectives.task.TaskObjective`.
    """
    _announce_lm_eval()
    from prunesearch.objectives import lm_eval_tasks

    lm_eval_tasks.check_task(task, data, include_path)


def _announce_lm_eval() -> None:
    """Say that lm-eval is loaded, which takes seconds."""
    if "lm_eval" not in sys.modules:
        events.tell(events.StageProgress("loading lm-eval"))


register(
    ObjectiveEntry(
        "task",
        "a metric of an lm-eval task",
        build=build,
        order=90,
        needs_calibration=False,
        needs_task=True,
        in_mixes=False,  # a mix names its tasks
        check_task=check_task,
    )
)
