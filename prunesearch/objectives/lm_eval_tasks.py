"""lm-eval's tasks: finding and loading them, with the user's own data if given, and reading their
metrics.
"""

import contextlib
import functools
import importlib.metadata
import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias, TypedDict

import datasets
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from prunesearch.cache.keys import minor
from prunesearch.errors import DataError, InputError, UnknownNameError
from prunesearch.models.guard import guarded
from prunesearch.objectives.task_index import task_manager
from prunesearch.objectives.text_files import check_beginning, read_rows
from prunesearch.runtime.json_values import Json, JsonObject, as_object
from prunesearch.units import noun_for

LM_EVAL = minor(importlib.metadata.version("lm_eval"))
"""Major and minor version of lm-eval, whose filters and metrics decide the values of a study's
trials.
"""
_ONE_PROCESS = "DISABLE_MULTIPROC"  # environment variable of lm-eval
FEWSHOT_SEED = 1234  # the default of lm_eval.simple_evaluate


TaskSetting: TypeAlias = str | Callable[..., dict[str, datasets.Dataset]] | None
"""A setting of a task: a name, or a function that returns the data set."""


class LoadedTasks(TypedDict):
    """Tasks as lm-eval loads them.

    Attributes:
        tasks: tasks by name.
        groups: groups by name.
        group_map: names of the members of each group.
    """

    tasks: dict[str, Task]
    groups: dict[str, Group]
    group_map: dict[str, list[str]]


class TaskOutcome(TypedDict):
    """The parts of lm-eval's results that are read.

    Attributes:
        results: metrics of each task and group, and other values.
        higher_is_better: for each task and metric, whether more is better.
        samples: documents of each task with their metrics, if they were asked for.
    """

    results: dict[str, dict[str, float | str]]
    higher_is_better: dict[str, dict[str, bool | None]]
    samples: dict[str, list[dict[str, Json]]]


@functools.lru_cache(maxsize=4)
def _task_manager(include_path: str | None) -> TaskManager:
    """Return lm-eval's index of tasks. It is made once per process."""
    return task_manager(include_path)


def check_task(task: str, data: str | None, include_path: str | None) -> None:
    """Check that a task exists, without loading its documents.

    Args:
        task, data, include_path: see `load_tasks`.

    Raises:
        UnknownNameError, DataError, InputError: see `load_tasks`.
    """
    if data is not None:
        check_beginning(Path(data))
    with quiet_lm_eval():
        _manager_of(task, data, include_path)


def _manager_of(task: str, data: str | None, include_path: str | None) -> TaskManager:
    """Return the index of tasks, if it has the task."""
    if include_path is not None and not Path(include_path).is_dir():
        raise DataError(f"no folder {include_path!r} for `include_path`")
    with guarded(f"cannot read the tasks in {include_path!r}", include_path or (), kind=DataError):
        manager = _task_manager(include_path)
    if task not in manager.all_tasks:
        raise UnknownNameError("task", task, manager.all_tasks)
    if data is not None and task not in manager.all_subtasks:
        raise InputError(
            f"`task_data` replaces the data of one task; {task!r} is a group of several"
        )
    return manager


def load_tasks(
    task: str, data: str | None, include_path: str | None, generate: bool
) -> LoadedTasks:
    """Find a task, tag or group and load it.

    Args:
        task: name of a task, tag or group.
        data: local file that replaces the data of a single task.
        include_path: folder with further task YAML files.
        generate: allow tasks that generate text.

    Raises:
        UnknownNameError: see `objectives.task.TaskObjective`.
        DataError: see there.
        InputError: see there.
    """
    with quiet_lm_eval():
        manager = _manager_of(task, data, include_path)
        rows = read_rows(Path(data)) if data is not None else None
        with data_errors(task, data):
            spec = task if rows is None else _with_rows(task, rows)
            tasks: LoadedTasks = manager.load([spec])
            for leaf in tasks["tasks"].values():
                process_once(leaf)
    # The group that replaces the data is an implementation detail, so it is removed again.
    if rows is not None:
        tasks = LoadedTasks(tasks=tasks["tasks"], groups={}, group_map={})
    for name, leaf in tasks["tasks"].items():
        if leaf.OUTPUT_TYPE == "generate_until" and not generate:
            raise InputError(
                f"task {name!r} generates text; a search needs a multiple-choice or log-likelihood "
                f"task "
                "(prunesearch evaluate takes it)"
            )
    return tasks


def _with_rows(task: str, rows: list[JsonObject]) -> dict[str, str | list[dict[str, TaskSetting]]]:
    """Return a task with its data source replaced.

    It is a group with one task, because a group is lm-eval's public way to override fields.
    """
    splits = {"local": datasets.Dataset.from_list(rows)}
    overrides: dict[str, TaskSetting] = {
        "custom_dataset": lambda **_: splits,
        "training_split": None,
        "validation_split": "local",
        "test_split": None,
        "fewshot_split": "local",
    }
    return {"group": "local", "task": [{"task": task, **overrides}]}


def configure(tasks: LoadedTasks, num_fewshot: int | None) -> None:
    """Apply the settings that `lm_eval.simple_evaluate` applies to tasks before it evaluates
    them.
    """
    for leaf in tasks["tasks"].values():
        default = leaf.get_config("num_fewshot")
        if num_fewshot is not None and default != 0:
            leaf.set_config(key="num_fewshot", value=num_fewshot)
        elif default is None:
            leaf.set_config(key="num_fewshot", value=0)
        leaf.set_fewshot_seed(seed=FEWSHOT_SEED)


def process_once(leaf: Task) -> None:
    """Make a task process the documents of a split once.

    lm-eval would process all of them each time that it reads some.
    """
    process = leaf.config.process_docs
    if process is None:
        return
    # The documents are kept with the result, so that no other documents can have their id.
    known: dict[int, tuple[object, object]] = {}

    @functools.wraps(process)
    def processed(documents: object) -> object:
        if id(documents) not in known:
            known[id(documents)] = (documents, process(documents))
        return known[id(documents)][1]

    leaf.config.process_docs = processed


def documents_after(tasks: LoadedTasks, first: int, limit: int | None) -> dict[str, list[int]]:
    """Return the numbers of the documents of each task after its first ones.

    Args:
        tasks: loaded tasks.
        first: number of documents that are left out.
        limit: largest number of documents of each task. None: all others.

    Raises:
        DataError: a task has no more documents.
    """
    chosen = {}
    for name, leaf in tasks["tasks"].items():
        count = len(leaf.eval_docs)
        if first >= count:
            raise DataError(
                f"task {name!r} has {count} {noun_for(count, 'document')}, and none is left after "
                f"the first {first}"
            )
        end = count if limit is None else min(count, first + limit)
        chosen[name] = list(range(first, end))
    return chosen


def freeze(leaf: Task) -> None:
    """Make later evaluations reuse a task's processed documents and requests.

    Only answers are cleared.
    """

    def reuse(**_: object) -> None:
        for instance in leaf.instances:
            instance.resps = []
            instance.filtered_resps = {}

    leaf.build_all_requests = reuse
    # lm-eval would process all documents again each time they are read.
    if leaf.config.process_docs is not None:
        split = leaf.config.test_split or leaf.config.validation_split
        leaf.dataset = {**leaf.dataset, split: leaf.eval_docs}
        leaf.config.process_docs = None


def rules_of(leaf: Task) -> JsonObject:
    """Return the fields of a task's config that decide how answers become metrics.

    Functions are represented by their source.
    """
    config = leaf.dump_config()
    rules = {
        name: config.get(name)
        for name in ("output_type", "metric_list", "filter_list", "process_results")
    }
    # A function without source is shown with its address, which differs between processes.
    text = re.sub(r" at 0x[0-9a-f]+", "", json.dumps(rules, sort_keys=True, default=str))
    return as_object(json.loads(text), "the rules of a task")


def flat_metrics(outcome: TaskOutcome, task: str) -> dict[str, float]:
    """Return the metrics of a task or group, with names such as ``acc_norm`` and
    ``acc_norm_stderr``.

    The metrics of a tag are averaged over its tasks.
    """
    results = outcome["results"]
    # A tag has no table of its own, so the tables of its tasks are used.
    tables = [results[task]] if task in results else list(results.values())
    flat: dict[str, list[float]] = {}
    for table in tables:
        for name, value in table.items():
            if isinstance(value, int | float) and "," in name:
                flat.setdefault(name.split(",")[0], []).append(float(value))
    # Keep the metrics that all tables have. Standard errors cannot be averaged.
    metrics = {}
    for name, values in flat.items():
        averaged_error = name.endswith("_stderr") and len(tables) > 1
        if len(values) == len(tables) and not averaged_error:
            metrics[name] = sum(values) / len(values)
    return metrics


def choose_metric(outcome: TaskOutcome, task: str, asked: str | None) -> tuple[str, bool]:
    """Return the name of the searched metric, and True if a larger metric is better."""
    names = [name for name in flat_metrics(outcome, task) if not name.endswith("_stderr")]
    if not names:
        raise InputError(
            f"task {task!r} has no metric that all its tasks share: search one of them instead"
        )
    if asked is not None and asked not in names:
        raise UnknownNameError(f"{task} metric", asked, names)
    default = "acc_norm" if "acc_norm" in names else names[0]
    metric = asked or default
    # A smaller metric is better only if all tasks say so.
    directions = {d[metric] for d in outcome["higher_is_better"].values() if metric in d}
    return metric, directions != {False}


@contextmanager
def data_errors(task: str, data: str | None) -> Iterator[None]:
    """Translate the errors of lm-eval and jinja for documents that do not fit the task's
    template.
    """
    where = repr(data) if data else "its own data set"
    advice = "" if data else "without a network give `task_data` FILE.jsonl"
    try:
        with guarded(
            f"task {task!r} cannot use {where}", kind=DataError, advice=advice, passes=(KeyError,)
        ):
            yield
    except KeyError as error:
        raise DataError(f"task {task!r} needs a field {error} that {where} does not have") from None


@contextmanager
def bootstrap_here() -> Iterator[None]:
    """Run lm-eval's bootstrap in this process and without output.

    lm-eval would otherwise fork processes, and each of them would hold the model.
    """
    before = os.environ.get(_ONE_PROCESS)
    os.environ[_ONE_PROCESS] = "1"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        # Restore the user's setting.
        if before is None:
            del os.environ[_ONE_PROCESS]
        else:
            os.environ[_ONE_PROCESS] = before


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Suppress the warnings of lm-eval, and the progress bars of lm-eval and datasets."""
    logger = logging.getLogger("lm_eval")
    before, bars = logger.level, not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
        if bars:
            datasets.enable_progress_bars()
