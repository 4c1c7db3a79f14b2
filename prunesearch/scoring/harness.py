"""The bridge to lm-eval: its requests are built once, our engine answers them, its metrics read the answers.

lm-eval tokenises, cuts rolling texts into windows, filters, aggregates and gives standard errors; of its `HFLM` only
the forward passes are replaced (`scoring.answers`). Tasks that generate text go through `HFLM` whole.
"""

import contextlib
import functools
import io
import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
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
from prunesearch.errors import DataError, InputError, UnknownNameError, one_line
from prunesearch.model.anatomy import input_device
from prunesearch.model.loading import LoadedModel
from prunesearch.model.surgery import pruned
from prunesearch.scoring.answers import (
    Answer,
    Question,
    Reading,
    inputs_of,
    read_rows,
    read_trees,
    reads_trees,
    tree_depth_fits,
)
from prunesearch.scoring.forward import Forward, Head
from prunesearch.scoring.objectives import (
    SCORING_VERSION,
    Chunk,
    Metrics,
    Scored,
    Work,
    not_finite,
    numerics_of,
    tokens_digest,
)
from prunesearch.scoring.text import read_jsonl

CHUNK_REQUESTS = 256
"""Requests of a chunk, up to the end of a document: 64 of HellaSwag's."""
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens of a forward pass by device."""
BOOTSTRAP_ITERS = 1000
"""Resamples for standard errors without a formula (perplexity, f1); lm-eval's default of 100,000 takes minutes."""
_WORTH = 0.8  # share of a plain pass's tokens below which a token tree is faster
FEWSHOT_SEED = 1234  # lm_eval.simple_evaluate's default

Request = tuple[Any, list[int], list[int]]  # lm-eval's: (texts, context ids, continuation ids)


class TaskObjective:
    """Scores candidates on an lm-eval task or group.

    Args:
        loaded: the dense model.
        task: name of a task, tag or group.
        metric: which of its metrics is searched; default: acc_norm where there is one, else the first.
        data: local .jsonl[.gz|.bz2] file that replaces the data of a single task.
        include_path: folder with further task YAML files.
        batch_tokens: tokens of a forward pass; default: by device.
        generate: allow tasks that generate text, which takes too long for a search.

    Raises:
        UnknownNameError: no such task or metric.
        DataError: the data are missing or lack a field that the task's template needs.
        InputError: the task generates text and that is not allowed.
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
        batch_tokens: int | None = None,
        generate: bool = False,
    ) -> None:
        self._model = loaded.model
        self._name = task
        self._limit = limit
        self._tasks = _load_tasks(task, data, include_path, generate)
        _configure(self._tasks, num_fewshot)
        with _quiet_lm_eval(), _data_errors(task, data):
            self._lm = _Recorder(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=1)
            dummy = self._evaluate(self._lm)
            for leaf in self._tasks["tasks"].values():
                _freeze(leaf)
        self.metric, self.maximize = _choose_metric(dummy, task, metric)
        device = input_device(loaded.model).type
        self._batch_tokens = batch_tokens or BATCH_TOKENS.get(device, 2048)
        self._head = Head(loaded.model)
        self._questions = _by_document([(c, t) for _, c, t in self._lm.requests])
        self._prompts = self._lm.prompts
        if self._prompts and loaded.layers.one_pass:
            raise InputError(f"task {task!r} generates text, which needs all weights in memory: leave --weights out")
        self._readings: dict[int, list[Reading]] = {}
        self._trees: bool | None = None
        numerics = {**numerics_of(loaded.model), "batch_tokens": str(self._batch_tokens)}
        identities = [("loglikelihood", tokens_digest(questions)) for questions in self._questions]
        if self._prompts:
            identities.append(("generation", tokens_digest([repr(p.args) for p in self._prompts])))
        self.chunks = [
            Chunk(
                index,
                {"kind": kind, "version": SCORING_VERSION, "numerics": numerics, "tokens": digest},
                sum(len(c) + len(t) - 1 for c, t in self._questions[index]) if kind == "loglikelihood" else 0,
            )
            for index, (kind, digest) in enumerate(identities)
        ]
        # What is asked and what counts as right: the study's identity, not the store's key.
        targets = [
            leaf.doc_to_target(doc)
            for leaf in self._tasks["tasks"].values()
            for _, doc in leaf.doc_iterator(rank=0, limit=limit, world_size=1)
        ]
        self.digest = tokens_digest([task, self.metric, [digest for _, digest in identities], targets])

    def score(self, work: Work, forward: Forward) -> Iterator[Scored]:
        """Yield ``[log-likelihood, greedy]`` per request, or its text, of each chunk for each of its candidates."""
        asked = [(chunk, candidates) for chunk, candidates in work if candidates]
        jobs = [
            (chunk, reading, candidates)
            for chunk, candidates in asked
            if chunk.index < len(self._questions)
            for reading in self._read(chunk.index, forward)
        ]
        left = Counter(chunk.index for chunk, _, _ in jobs)
        found: dict[tuple[int, LayerSubset], dict[int, Answer]] = defaultdict(dict)
        passes = forward.run([(reading.batch, candidates) for _, reading, candidates in jobs])
        for job, states in groupby(passes, key=itemgetter(0)):
            chunk, reading, candidates = jobs[job]
            for _, candidate, state_BLE in states:
                found[chunk.index, candidate].update(reading.answers(self._head, state_BLE))
            left[chunk.index] -= 1
            for candidate in candidates if not left[chunk.index] else ():
                answers = found.pop((chunk.index, candidate))
                if all(math.isfinite(value) for value, _ in answers.values()):
                    yield chunk.index, candidate, [list(answers[i]) for i in range(len(answers))]
                else:
                    yield chunk.index, candidate, not_finite(candidate)
        for chunk, candidates in asked:
            if chunk.index >= len(self._questions):
                for candidate in candidates:
                    with pruned(self._model, candidate):
                        yield chunk.index, candidate, self._lm.generate(self._prompts)

    def metrics(self, results: Sequence[list[Any]]) -> Metrics:
        """Let lm-eval's filters, metrics and aggregation read the answers."""
        table = _flat_metrics(self._evaluate(self._replay(results)), self._name)
        values = {name: value for name, value in table.items() if not name.endswith("_stderr")}
        stderr = {name.removesuffix("_stderr"): v for name, v in table.items() if name.endswith("_stderr")}
        return Metrics(values, stderr)

    def losses(self, results: Sequence[list[Any]]) -> Sequence[float]:
        """The metric of each document whose answers are all there, turned so that less is better.

        Raises:
            InputError: the task gives no number per document.
        """
        have = sum(map(len, results))
        outcome = self._evaluate(self._replay(results), samples=True)
        sign = -1.0 if self.maximize else 1.0
        losses: list[float] = []
        asked = 0
        for rows in outcome["samples"].values():
            for row in rows:
                asked += len(row["arguments"])
                if asked > have:
                    break
                value = row.get(self.metric)
                if not isinstance(value, int | float):
                    raise InputError(f"metric {self.metric!r} is no number per document, which --race needs")
                losses.append(sign * float(value))
        return losses

    def _read(self, index: int, forward: Forward) -> list[Reading]:
        """A chunk's batches, laid out once: as token trees where the model reads them, and where they are shorter."""
        if index not in self._readings:
            if self._trees is None:
                self._trees = reads_trees(self._model, forward)
            questions = self._questions[index]
            sequences = inputs_of(questions, self._lm.max_length)
            rows = read_rows(questions, sequences, self._batch_tokens)
            if self._trees and tree_depth_fits(self._model.config, sequences):
                trees = read_trees(questions, sequences, self._batch_tokens)
                if sum(r.batch.tokens for r in trees) < _WORTH * sum(r.batch.tokens for r in rows):
                    rows = trees
            self._readings[index] = [reading.on(self._model) for reading in rows]
        return self._readings[index]

    def _replay(self, results: Sequence[list[Any]]) -> "_Replay":
        """Stored results as a model; what is missing at the end is answered with nothing."""
        asked = len(self._questions)
        answers = [(float(value), bool(greedy)) for chunk in results[:asked] for value, greedy in chunk]
        answers += [(0.0, False)] * (sum(map(len, self._questions)) - len(answers))
        texts = [text for chunk in results[asked:] for text in chunk]
        return _Replay(answers, self._lm.windows, texts + [""] * (len(self._prompts) - len(texts)))

    def _evaluate(self, lm: Any, samples: bool = False) -> dict[str, Any]:  # noqa: ANN401 (lm-eval is untyped)
        with _bootstrap_here():
            outcome: dict[str, Any] = lm_eval.evaluator.evaluate(
                lm=lm, task_dict=self._tasks, limit=self._limit, log_samples=samples, bootstrap_iters=BOOTSTRAP_ITERS
            )
        return outcome


def _by_document(questions: list[Question]) -> list[list[Question]]:
    """Cut requests into chunks; one ends where the context changes, so that no document is in two."""
    chunks: list[list[Question]] = []
    before: Sequence[int] = ()
    for question in questions:
        if not chunks or (len(chunks[-1]) >= CHUNK_REQUESTS and question[0] != before):
            chunks.append([])
        chunks[-1].append(question)
        before = question[0]
    return chunks


class _Recorder(HFLM):  # type: ignore[misc]
    """lm-eval's own model, which notes tokenised requests instead of answering until it is asked to."""

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        self._device = input_device(self.model)  # HFLM looks at the first weight, which may be offloaded
        self.requests: list[Request] = []
        self.windows: list[int] = []  # tokenised requests per request: 1, or the windows of a rolling one
        self.prompts: list[Instance] = []

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

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        self.prompts += requests
        return [""] * len(requests)

    def generate(self, prompts: list[Instance]) -> list[str]:
        """Generate with the model as it stands."""
        with torch.inference_mode(), _quiet_lm_eval():
            return list(super().generate_until(prompts, disable_tqdm=True))


class _Replay:
    """Answers lm-eval's requests, in their order, from stored answers."""

    rank, world_size = 0, 1

    def __init__(self, answers: list[Answer], windows: list[int], texts: list[str]) -> None:
        self._answers = iter(answers)
        self._windows = iter(windows)
        self._texts = iter(texts)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return [next(self._texts) for _ in requests]

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


def _load_tasks(task: str, data: str | None, include_path: str | None, generate: bool) -> dict[str, Any]:
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
