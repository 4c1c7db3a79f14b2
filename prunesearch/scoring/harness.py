"""The bridge to lm-eval: its requests are built once, its own model class scores them, its metrics read the answers.

Because `HFLM` does the forward passes, a score equals `lm_eval.simple_evaluate`: to the bit while the requests fit one
chunk (`CHUNK_REQUESTS`), since lm-eval's batches are then the same, and to rounding beyond.
"""

import contextlib
import functools
import io
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import jinja2
import lm_eval.evaluator
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from prunesearch.candidate import LayerSubset
from prunesearch.errors import DataError, InputError, ScoringError, UnknownNameError, one_line
from prunesearch.model.anatomy import input_device
from prunesearch.model.loading import LoadedModel
from prunesearch.model.surgery import pruned
from prunesearch.scoring.objectives import SCORING_VERSION, Chunk, Metrics, numerics_of, tokens_digest
from prunesearch.scoring.text import read_jsonl

CHUNK_REQUESTS = 1024
BOOTSTRAP_ITERS = 1000
"""Resamples for standard errors without a formula (perplexity, f1); lm-eval's default of 100,000 takes minutes."""
FEWSHOT_SEED = 1234  # lm_eval.simple_evaluate's default

Request = tuple[Any, list[int], list[int]]  # lm-eval's: (texts, context ids, continuation ids)
Answer = tuple[float, bool]  # log-likelihood in nats, greedy decoding would have said the same


class TaskObjective:
    """Scores candidates on an lm-eval task or group of log-likelihood type.

    Args:
        loaded: the dense model.
        task: name of a task, tag or group.
        metric: which of its metrics is searched; default: acc_norm where there is one, else the first.
        data: local .jsonl[.gz|.bz2] file that replaces the data of a single task.
        include_path: folder with further task YAML files.

    Raises:
        UnknownNameError: no such task or metric.
        DataError: the data are missing or lack a field that the task's template needs.
        InputError: the task generates text, which a search cannot score.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        task: str,
        *,
        metric: str | None = None,
        data: str | None = None,
        include_path: str | None = None,
        limit: int | None = None,
        num_fewshot: int | None = None,
        batch_size: int = 16,
    ) -> None:
        self._loaded = loaded
        self._name = task
        self._limit = limit
        self._tasks = _load_tasks(task, data, include_path)
        _configure(self._tasks, num_fewshot)
        with _quiet_lm_eval(), _data_errors(task, data):
            self._lm = _Recorder(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size)
            dummy = self._evaluate(self._lm)
            for leaf in self._tasks["tasks"].values():
                _freeze(leaf)
        self.metric, self.maximize = _choose_metric(dummy, task, metric)
        requests = self._lm.requests
        self._chunks = [requests[i : i + CHUNK_REQUESTS] for i in range(0, len(requests), CHUNK_REQUESTS)]
        digests = [tokens_digest([(c, t) for _, c, t in chunk]) for chunk in self._chunks]
        # What is asked and what counts as right: the study's identity, not the store's key.
        targets = [
            leaf.doc_to_target(doc)
            for leaf in self._tasks["tasks"].values()
            for _, doc in leaf.doc_iterator(rank=0, limit=limit, world_size=1)
        ]
        self.digest = tokens_digest([task, self.metric, digests, targets])
        numerics = {**numerics_of(loaded.model), "batch_size": str(batch_size)}
        self.chunks = [
            Chunk(
                index,
                {"kind": "loglikelihood", "version": SCORING_VERSION, "numerics": numerics, "tokens": digest},
            )
            for index, digest in enumerate(digests)
        ]

    def score(self, candidate: LayerSubset, chunk: Chunk) -> list[Any]:
        """Return ``[log-likelihood, greedy]`` per request of the chunk.

        Raises:
            ScoringError: a log-likelihood is not a number.
        """
        with pruned(self._loaded.model, candidate):
            answers = self._lm.answer(self._chunks[chunk.index])
        if not all(math.isfinite(value) for value, _ in answers):
            raise ScoringError(f"dropping layers {candidate.text} makes a log-likelihood not finite")
        return [[value, greedy] for value, greedy in answers]

    def metrics(self, results: Sequence[list[Any]]) -> Metrics:
        """Let lm-eval's filters, metrics and aggregation read the answers."""
        answers = [(float(value), bool(greedy)) for chunk in results for value, greedy in chunk]
        table = _flat_metrics(self._evaluate(_Replay(answers, self._lm.windows)), self._name)
        values = {name: value for name, value in table.items() if not name.endswith("_stderr")}
        stderr = {name.removesuffix("_stderr"): v for name, v in table.items() if name.endswith("_stderr")}
        return Metrics(values, stderr)

    def _evaluate(self, lm: Any) -> dict[str, Any]:  # noqa: ANN401 (lm-eval is untyped)
        with _bootstrap_here():
            outcome: dict[str, Any] = lm_eval.evaluator.evaluate(
                lm=lm, task_dict=self._tasks, limit=self._limit, log_samples=False, bootstrap_iters=BOOTSTRAP_ITERS
            )
        return outcome


class _Recorder(HFLM):  # type: ignore[misc]
    """lm-eval's own model, which notes tokenised requests instead of answering until it is asked to."""

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        self._device = input_device(self.model)  # HFLM looks at the first weight, which may be offloaded
        self.requests: list[Request] = []
        self.windows: list[int] = []  # tokenised requests per request: 1, or the windows of a rolling one

    def _loglikelihood_tokens(self, requests: list[Request], **_: object) -> list[Answer]:
        self.requests.extend(requests)
        return [(0.0, False)] * len(requests)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Answer]:
        self.windows += [1] * len(requests)
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        for request in requests:
            before = len(self.requests)
            super().loglikelihood_rolling([request], disable_tqdm=True)
            self.windows.append(len(self.requests) - before)
        return [0.0] * len(requests)

    def answer(self, requests: list[Request]) -> list[Answer]:
        """Score tokenised requests with the model as it stands."""
        with torch.inference_mode():
            return list(super()._loglikelihood_tokens(requests, disable_tqdm=True))


class _Replay:
    """Answers lm-eval's requests, in their order, from stored answers."""

    rank, world_size = 0, 1

    def __init__(self, answers: list[Answer], windows: list[int]) -> None:
        self._answers = iter(answers)
        self._windows = iter(windows)

    def loglikelihood(self, requests: list[Instance]) -> list[Answer]:
        return [self._next()[0] for _ in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return [sum(value for value, _ in self._next()) for _ in requests]

    def _next(self) -> list[Answer]:
        return [next(self._answers) for _ in range(next(self._windows))]


@functools.lru_cache(maxsize=4)
def _task_manager(include_path: str | None) -> TaskManager:
    """lm-eval's index of tasks; it reads thousands of files, so it is made once a process."""
    return TaskManager(include_path=include_path)


def _load_tasks(task: str, data: str | None, include_path: str | None) -> dict[str, Any]:
    if include_path is not None and not Path(include_path).is_dir():
        raise DataError(f"no folder {include_path!r} for --include-path")
    rows = read_jsonl(Path(data)) if data is not None else None
    with _quiet_lm_eval():
        manager = _task_manager(include_path)
        if task not in manager.all_tasks:
            raise UnknownNameError("task", task, manager.all_tasks)
        if rows is not None and task not in manager.all_subtasks:
            raise InputError(f"--task-data replaces the data of one task; {task!r} is a group of several")
        with _data_errors(task, data):
            tasks: dict[str, Any] = manager.load([task] if rows is None else [_with_rows(task, rows)])
    if rows is not None:
        tasks = {"tasks": tasks["tasks"], "groups": {}, "group_map": {}}
    for name, leaf in tasks["tasks"].items():
        if leaf.OUTPUT_TYPE == "generate_until":
            raise InputError(f"task {name!r} generates text; a search needs a multiple-choice or log-likelihood task")
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


def _configure(tasks: dict[str, Any], num_fewshot: int | None) -> None:
    """What `lm_eval.simple_evaluate` sets on tasks before it evaluates them."""
    for leaf in tasks["tasks"].values():
        default = leaf.get_config("num_fewshot")
        if num_fewshot is not None and default != 0:
            leaf.set_config(key="num_fewshot", value=num_fewshot)
        elif default is None:
            leaf.set_config(key="num_fewshot", value=0)
        leaf.set_fewshot_seed(seed=FEWSHOT_SEED)


def _freeze(leaf: Any) -> None:  # noqa: ANN401
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


def _flat_metrics(outcome: dict[str, Any], task: str) -> dict[str, float]:
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


def _choose_metric(outcome: dict[str, Any], task: str, asked: str | None) -> tuple[str, bool]:
    names = [name for name in _flat_metrics(outcome, task) if not name.endswith("_stderr")]
    if not names:
        raise InputError(f"task {task!r} has no metric that all its tasks share: search one of them instead")
    if asked is not None and asked not in names:
        raise UnknownNameError(f"metric of task {task!r}", asked, names)
    metric = asked or ("acc_norm" if "acc_norm" in names else names[0])
    directions = {d[metric] for d in outcome["higher_is_better"].values() if metric in d}
    return metric, directions != {False}


@contextmanager
def _data_errors(task: str, data: str | None) -> Iterator[None]:
    """Translate what lm-eval and jinja say when documents do not fit the task's template."""
    where = repr(data) if data else "its own data set"
    try:
        yield
    except KeyError as error:
        raise DataError(f"task {task!r} needs a field {error} that {where} does not have") from None
    except (ValueError, TypeError, AttributeError, IndexError, OSError, RuntimeError, jinja2.TemplateError) as error:
        fix = "" if data else "; without a network give --task-data FILE.jsonl"
        raise DataError(f"task {task!r} cannot use {where}: {one_line(error)}{fix}") from None


@contextmanager
def _bootstrap_here() -> Iterator[None]:
    """Keep lm-eval's bootstrap in this process (it would fork one that holds a model) and off stdout."""
    with mock.patch.dict(os.environ, {"DISABLE_MULTIPROC": "1"}), contextlib.redirect_stdout(io.StringIO()):
        yield


@contextmanager
def _quiet_lm_eval() -> Iterator[None]:
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
