"""lm-eval's tasks: found, loaded on data of one's own, held still, and their tables of metrics read."""

import contextlib
import functools
import importlib.metadata
import io
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
from lm_eval.tasks import TaskManager

from prunesearch.errors import DataError, InputError, UnknownNameError
from prunesearch.model.guard import guarded
from prunesearch.scoring.text_files import read_rows
from prunesearch.store.keys import minor

LM_EVAL = minor(importlib.metadata.version("lm_eval"))
"""Major and minor part of lm-eval's version: its filters and metrics decide what a study's trials are worth."""
FEWSHOT_SEED = 1234  # lm_eval.simple_evaluate's default


@functools.lru_cache(maxsize=4)
def _task_manager(include_path: str | None) -> TaskManager:
    """lm-eval's index of tasks; it reads thousands of files, so it is made once a process."""
    return TaskManager(include_path=include_path)


def load_tasks(task: str, data: str | None, include_path: str | None, generate: bool) -> dict[str, Any]:
    """Find a task, tag or group and load it, on a local file where one is given.

    Raises:
        UnknownNameError, DataError, InputError: see `scoring.harness.TaskObjective`.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise DataError(f"no folder {include_path!r} for --include-path")
    rows = read_rows(Path(data)) if data is not None else None
    with quiet_lm_eval():
        with guarded(f"cannot read the tasks in {include_path!r}", include_path or (), kind=DataError):
            manager = _task_manager(include_path)
        if task not in manager.all_tasks:
            raise UnknownNameError("task", task, manager.all_tasks)
        if rows is not None and task not in manager.all_subtasks:
            raise InputError(f"--task-data replaces the data of one task; {task!r} is a group of several")
        with data_errors(task, data):
            tasks: dict[str, Any] = manager.load([task] if rows is None else [_with_rows(task, rows)])
    if rows is not None:
        tasks = {"tasks": tasks["tasks"], "groups": {}, "group_map": {}}
    for name, leaf in tasks["tasks"].items():
        if leaf.OUTPUT_TYPE == "generate_until" and not generate:
            raise InputError(
                f"task {name!r} generates text; a search needs a multiple-choice or log-likelihood task "
                "(prunesearch evaluate takes it)"
            )
    return tasks


def _with_rows(task: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The stock task with its data source replaced; a one-task group is lm-eval's public way to override fields."""
    splits = {"local": datasets.Dataset.from_list(rows)}
    overrides = {
        "custom_dataset": lambda **_: splits,
        "training_split": None,
        "validation_split": "local",
        "test_split": None,
        "fewshot_split": "local",
    }
    return {"group": "local", "task": [{"task": task, **overrides}]}


def configure(tasks: dict[str, Any], num_fewshot: int | None) -> None:
    """What `lm_eval.simple_evaluate` sets on tasks before it evaluates them."""
    for leaf in tasks["tasks"].values():
        default = leaf.get_config("num_fewshot")
        if num_fewshot is not None and default != 0:
            leaf.set_config(key="num_fewshot", value=num_fewshot)
        elif default is None:
            leaf.set_config(key="num_fewshot", value=0)
        leaf.set_fewshot_seed(seed=FEWSHOT_SEED)


def freeze(leaf: Any) -> None:  # noqa: ANN401
    """Keep a task's processed documents and built requests for every later evaluation; only answers are cleared."""

    def reuse(**_: object) -> None:
        for instance in leaf.instances:
            instance.resps = []
            instance.filtered_resps = {}

    leaf.build_all_requests = reuse
    if leaf.config.process_docs is not None:  # lm-eval would process all documents again at every look
        split = leaf.config.test_split or leaf.config.validation_split
        leaf.dataset = {**leaf.dataset, split: leaf.eval_docs}
        leaf.config.process_docs = None


def rules_of(leaf: Any) -> dict[str, Any]:  # noqa: ANN401
    """How a task turns answers into metrics: the fields of its config that say so, functions by their source."""
    config = leaf.dump_config()
    rules = {name: config.get(name) for name in ("output_type", "metric_list", "filter_list", "process_results")}
    # A function without source is shown with its address, which is another one in each process.
    text = re.sub(r" at 0x[0-9a-f]+", "", json.dumps(rules, sort_keys=True, default=str))
    plain: dict[str, Any] = json.loads(text)
    return plain


def flat_metrics(outcome: dict[str, Any], task: str) -> dict[str, float]:
    """Metrics of the task or group as ``acc_norm`` and ``acc_norm_stderr``; a tag's are averaged over its tasks."""
    results = outcome["results"]
    tables = [results[task]] if task in results else list(results.values())
    flat: dict[str, list[float]] = {}
    for table in tables:
        for name, value in table.items():
            if isinstance(value, int | float) and "," in name:
                flat.setdefault(name.split(",")[0], []).append(float(value))
    return {
        name: sum(values) / len(values)
        for name, values in flat.items()
        if len(values) == len(tables) and not (name.endswith("_stderr") and len(tables) > 1)
    }


def choose_metric(outcome: dict[str, Any], task: str, asked: str | None) -> tuple[str, bool]:
    """The metric that is searched, and whether more of it is better."""
    names = [name for name in flat_metrics(outcome, task) if not name.endswith("_stderr")]
    if not names:
        raise InputError(f"task {task!r} has no metric that all its tasks share: search one of them instead")
    if asked is not None and asked not in names:
        raise UnknownNameError(f"metric of task {task!r}", asked, names)
    metric = asked or ("acc_norm" if "acc_norm" in names else names[0])
    directions = {d[metric] for d in outcome["higher_is_better"].values() if metric in d}
    return metric, directions != {False}


@contextmanager
def data_errors(task: str, data: str | None) -> Iterator[None]:
    """Translate what lm-eval and jinja say when documents do not fit the task's template."""
    where = repr(data) if data else "its own data set"
    advice = "" if data else "without a network give --task-data FILE.jsonl"
    try:
        with guarded(f"task {task!r} cannot use {where}", kind=DataError, advice=advice, passes=(KeyError,)):
            yield
    except KeyError as error:
        raise DataError(f"task {task!r} needs a field {error} that {where} does not have") from None


@contextmanager
def bootstrap_here() -> Iterator[None]:
    """Keep lm-eval's bootstrap in this process (it would fork one that holds a model) and off stdout."""
    with mock.patch.dict(os.environ, {"DISABLE_MULTIPROC": "1"}), contextlib.redirect_stdout(io.StringIO()):
        yield


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Keep lm-eval's warnings and the bars that it and datasets draw off the terminal."""
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
