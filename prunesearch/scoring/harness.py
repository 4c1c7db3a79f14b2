"""The bridge to lm-eval: its requests are built once, our engine answers them, its metrics read the answers.

lm-eval tokenises, cuts rolling texts into windows, filters, aggregates and gives standard errors; of its `HFLM` only
the forward passes are replaced (`scoring.answers`). Tasks that generate text go through `HFLM` whole.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import lm_eval.evaluator
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.model.anatomy import input_device
from prunesearch.model.handover import tokenizer_copy, unchanged_by
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
from prunesearch.scoring.generation import generation_chunk
from prunesearch.scoring.lm_eval_tasks import (
    LM_EVAL,
    bootstrap_here,
    choose_metric,
    configure,
    data_errors,
    flat_metrics,
    freeze,
    load_tasks,
    quiet_lm_eval,
    rules_of,
)
from prunesearch.scoring.objectives import (
    SCORING_VERSION,
    Chunk,
    Metrics,
    Scored,
    Work,
    content_digest,
    not_finite,
    numerics_of,
    tokens_digest,
)
from prunesearch.scoring.text import check_ids

CHUNK_REQUESTS = 256
"""Requests of a chunk, up to the end of a document: 64 of HellaSwag's."""
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens of a forward pass by device."""
BOOTSTRAP_ITERS = 1000
"""Resamples for standard errors without a formula (perplexity, f1); lm-eval's default of 100,000 takes minutes."""
_WORTH = 0.8  # share of a plain pass's tokens below which a token tree is faster

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
        self._tasks = load_tasks(task, data, include_path, generate)
        configure(self._tasks, num_fewshot)
        tokenizer = tokenizer_copy(loaded.tokenizer)  # HFLM gives it a padding token
        with unchanged_by("lm-eval", loaded.model), quiet_lm_eval(), data_errors(task, data):
            self._lm = _Recorder(pretrained=loaded.model, tokenizer=tokenizer, batch_size=1)
            dummy = self._evaluate(self._lm)
            for leaf in self._tasks["tasks"].values():
                freeze(leaf)
        self.metric, self.maximize = choose_metric(dummy, task, metric)
        device = input_device(loaded.model).type
        self._batch_tokens = batch_tokens or BATCH_TOKENS.get(device, 2048)
        self._head = Head(loaded.model)
        self._questions = _by_document([(c, t) for _, c, t in self._lm.requests])
        self._prompts = self._lm.prompts
        check_ids(loaded.model, max((max((*c, *t), default=0) for _, c, t in self._lm.requests), default=0))
        if self._prompts and loaded.layers.one_pass:
            raise InputError(f"task {task!r} generates text, which needs all weights in memory: leave --weights out")
        self._readings: dict[int, list[Reading]] = {}
        self._trees: bool | None = None
        numerics = {**numerics_of(loaded.model), "batch_tokens": str(self._batch_tokens)}
        self.chunks = [
            Chunk(index, _identity(questions, numerics, self._lm.max_length), _tokens(questions))
            for index, questions in enumerate(self._questions)
        ]
        if self._prompts:
            index = len(self._questions)
            with unchanged_by("lm-eval", loaded.model), quiet_lm_eval(), data_errors(task, data):
                self.chunks.append(generation_chunk(index, self._lm, self._prompts, loaded.tokenizer, numerics))
        # What is asked, what counts as right and how: the study's identity, not the store's key.
        targets = [
            leaf.doc_to_target(doc)
            for leaf in self._tasks["tasks"].values()
            for _, doc in leaf.doc_iterator(rank=0, limit=limit, world_size=1)
        ]
        asked = [chunk.identity.get("tokens", chunk.identity) for chunk in self.chunks]
        self.digest = tokens_digest([task, self.metric, asked, targets])
        self.settings: Mapping[str, Any] = {
            "lm-eval version": LM_EVAL,
            "task truncation": max(chunk.identity.get("truncation", 0) for chunk in self.chunks),
            "task scoring": content_digest([targets, *map(rules_of, self._tasks["tasks"].values())]),
        }

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
        table = flat_metrics(self._evaluate(self._replay(results)), self._name)
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
        with bootstrap_here():
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


def _tokens(questions: list[Question]) -> int:
    return sum(len(context) + len(continuation) - 1 for context, continuation in questions)


def _identity(questions: list[Question], numerics: dict[str, str], longest: int) -> dict[str, Any]:
    """What a chunk of log-likelihoods is; the truncation length is part of it where something is cut."""
    identity = {
        "kind": "loglikelihood",
        "version": SCORING_VERSION,
        "numerics": numerics,
        "tokens": tokens_digest(questions),
    }
    if any(len(context) + len(continuation) > longest + 1 for context, continuation in questions):
        identity["truncation"] = longest
    return identity


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
        with unchanged_by("lm-eval", self.model), torch.inference_mode(), quiet_lm_eval():
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
