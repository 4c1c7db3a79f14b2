"""The objective on lm-eval tasks.

lm-eval builds its requests once, this package answers them, and lm-eval's metrics read the answers.
lm-eval tokenises, cuts rolling texts into windows, filters, aggregates and computes standard
errors. Only the forward passes of its `HFLM` are replaced, see `objectives.loglikelihood`. Tasks
that generate text use `HFLM` unchanged.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import lm_eval.evaluator
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.execution.batches import TASK_BATCH_TOKENS
from prunesearch.execution.head import Head
from prunesearch.execution.shared_forward import Forward
from prunesearch.execution.token_trees import TREE_KERNELS
from prunesearch.models.handover import tokenizer_copy, unchanged_by
from prunesearch.models.loading import LoadedModel
from prunesearch.models.structure import input_device
from prunesearch.models.surgery import pruned
from prunesearch.objectives.base import (
    Chunk,
    ChunkResult,
    Metrics,
    Row,
    Work,
    not_finite,
    numbers_of,
)
from prunesearch.objectives.calibration_data import check_ids
from prunesearch.objectives.choice_margins import ChoiceDocument, choice_documents
from prunesearch.objectives.digests import content_digest
from prunesearch.objectives.generation import generation_chunk
from prunesearch.objectives.identity import (
    numerics_of,
    tokens_digest,
)
from prunesearch.objectives.lm_eval_models import ReplayModel, RequestRecorder
from prunesearch.objectives.lm_eval_tasks import (
    LM_EVAL,
    TaskOutcome,
    bootstrap_here,
    choose_metric,
    configure,
    data_errors,
    documents_after,
    flat_metrics,
    freeze,
    load_tasks,
    quiet_lm_eval,
    rules_of,
)
from prunesearch.objectives.loglikelihood import LogLikelihood, Request, ScoredBatch
from prunesearch.objectives.request_chunks import RequestChunks
from prunesearch.runtime.json_values import as_list

BOOTSTRAP_ITERS = 1000
"""Resamples for standard errors without a formula (perplexity, f1).

lm-eval's default of 100,000 takes minutes.
"""


class TaskObjective:
    """Scores candidates on an lm-eval task or group.

    Args:
        loaded: the dense model.
        task: name of a task, tag or group.
        metric: metric that is searched. Default: acc_norm if the task has it, otherwise its first.
        data: local .jsonl[.gz|.bz2] file that replaces the data of a single task.
        include_path: folder with further task YAML files.
        limit: number of documents of each task. Default: all.
        first: number of documents of each task that are left out before those.
        num_fewshot: number of examples in the prompt. Default: the task's own.
        batch_tokens: tokens of a forward pass. Default: by device.
        generate: allow tasks that generate text, which takes too long for a search.

    Raises:
        UnknownNameError: the task or the metric does not exist.
        DataError: the data are missing or lack a field that the task's template needs.
        InputError: the task generates text and `generate` is False.
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
        first: int = 0,
        num_fewshot: int | None = None,
        batch_tokens: int | None = None,
        generate: bool = False,
    ) -> None:
        self._model = loaded.model
        self._name = task
        self._first, self._limit = first, limit
        # Build all requests once: a first evaluation with dummy answers records them.
        self._tasks = load_tasks(task, data, include_path, generate)
        configure(self._tasks, num_fewshot)
        self._chosen = documents_after(self._tasks, first, limit) if first else None
        tokenizer = tokenizer_copy(loaded.tokenizer)  # a copy, since HFLM sets its padding token
        with unchanged_by("lm-eval", loaded.model), quiet_lm_eval(), data_errors(task, data):
            self._lm = RequestRecorder(
                input_device(loaded.model),
                pretrained=loaded.model,
                tokenizer=tokenizer,
                batch_size=1,
            )
            dummy = self._evaluate(self._lm)
            for leaf in self._tasks["tasks"].values():
                freeze(leaf)
        self.metric, self.maximize = choose_metric(dummy, task, metric)
        device = input_device(loaded.model).type
        self._batch_tokens = batch_tokens or TASK_BATCH_TOKENS.get(device, 2048)
        self._head = Head(loaded.model)
        self._prompts = self._lm.prompts
        self._requests = RequestChunks(
            loaded.model, self._recorded_requests(loaded), self._lm.max_length, self._batch_tokens
        )
        self._choices: list[ChoiceDocument] | None = None
        if not self._prompts:
            leaves = self._tasks["tasks"].items()
            self._choices = choice_documents(
                [(leaf, [doc for _, doc in self._documents(name, leaf)]) for name, leaf in leaves],
                self.metric,
            )
        with unchanged_by("lm-eval", loaded.model), quiet_lm_eval(), data_errors(task, data):
            self.chunks = self._describe_chunks(loaded)
        # The requests, the correct answers and the rules of scoring are part of the study's
        # identity. They are not part of the cache's keys.
        targets = []
        for name, leaf in self._tasks["tasks"].items():
            for _, doc in self._documents(name, leaf):
                targets.append(leaf.doc_to_target(doc))
        asked = [chunk.identity.get("tokens", chunk.identity) for chunk in self.chunks]
        self.digest = tokens_digest([task, self.metric, asked, targets])
        truncations = [chunk.identity.get("truncation") for chunk in self.chunks]
        self.settings: Mapping[str, str | int] = {
            "lm-eval version": LM_EVAL,
            "task truncation": self._lm.max_length if any(truncations) else 0,
            "task scoring": content_digest(
                [targets, *map(rules_of, self._tasks["tasks"].values())]
            ),
        }

    @property
    def task_count(self) -> int:
        """Number of tasks that each give documents."""
        return len(self._tasks["tasks"])

    @property
    def further_documents(self) -> int:
        """Number of documents of each task after those that are read; of the smallest task."""
        if self._limit is None:
            return 0
        counts = [len(leaf.eval_docs) for leaf in self._tasks["tasks"].values()]
        return max(0, min(counts) - self._first - self._limit)

    def _documents(self, name: str, leaf: Task) -> Iterator[tuple[int, Any]]:
        """Yield the numbers and documents of a task that are scored."""
        chosen = None if self._chosen is None else self._chosen[name]
        limit = self._limit if chosen is None else None
        documents: Iterator[tuple[int, Any]] = leaf.doc_iterator(
            rank=0, limit=limit, world_size=1, samples=chosen
        )
        return documents

    def _recorded_requests(self, loaded: LoadedModel) -> list[Request]:
        """Return the recorded requests for log-likelihoods.

        Raises:
            InputError: a token id is too large for the model, or the task generates text and the
                weights are streamed.
        """
        requests: list[Request] = []
        largest_id = 0
        for _, context, continuation in self._lm.requests:
            requests.append((context, continuation))
            largest_id = max((largest_id, *context, *continuation))
        check_ids(loaded.model, largest_id)
        if self._prompts and loaded.layers.streamed_once:
            raise InputError(
                f"task {self._name!r} generates text, which needs all weights in memory: leave "
                "`offload` out"
            )
        return requests

    def _describe_chunks(self, loaded: LoadedModel) -> list[Chunk]:
        """Describe the chunks of log-likelihoods, and the generated texts as one chunk."""
        numerics = {**numerics_of(loaded.model), "batch_tokens": str(self._batch_tokens)}
        kernels = TREE_KERNELS.get(input_device(loaded.model).type)
        if kernels is not None:
            numerics["trees"] = kernels
        chunks = self._requests.described(numerics)
        if self._prompts:
            chunks.append(
                generation_chunk(len(chunks), self._lm, self._prompts, loaded.tokenizer, numerics)
            )
        return chunks

    def score(self, work: Work, forward: Forward) -> Iterator[ChunkResult]:
        """Yield the results of each chunk for each of its candidates.

        The result of a request is ``[log-likelihood, greedy]`` or the generated text.
        """
        # One job per batch of a chunk of log-likelihoods. `left` counts the open jobs of each
        # chunk.
        jobs: list[tuple[Chunk, ScoredBatch, Sequence[LayerSubset]]] = []
        left: Counter[int] = Counter()
        for piece in work:
            chunk = piece.chunk
            if piece.candidates and chunk.index < len(self._requests):
                for batch in self._requests.batches(chunk.index, forward):
                    jobs.append((chunk, batch, piece.candidates))
                    left[chunk.index] += 1

        # Read the answers of each job. A chunk's results are complete after its last job.
        found: dict[tuple[int, LayerSubset], dict[int, LogLikelihood]] = defaultdict(dict)
        passes = forward.run([(batch.batch, candidates) for _, batch, candidates in jobs])
        for job, states in groupby(passes, key=itemgetter(0)):
            chunk, batch, candidates = jobs[job]
            for _, candidate, state_BLE in states:
                found[chunk.index, candidate].update(batch.answers(self._head, state_BLE))
            left[chunk.index] -= 1
            if left[chunk.index]:
                continue
            for candidate in candidates:
                answers = found.pop((chunk.index, candidate))
                if all(math.isfinite(value) for value, _ in answers.values()):
                    rows: list[Row] = [list(answers[i]) for i in range(len(answers))]
                    yield ChunkResult(chunk, candidate, rows)
                else:
                    yield ChunkResult(chunk, candidate, error=not_finite(candidate))

        # Texts are generated by each candidate in turn, without shared prefixes.
        for piece in work:
            if piece.chunk.index >= len(self._requests):
                for candidate in piece.candidates:
                    with pruned(self._model, candidate):
                        texts = self._lm.generate(self._prompts)
                    yield ChunkResult(piece.chunk, candidate, texts)

    def metrics(self, results: Sequence[Sequence[Row]]) -> Metrics:
        """Compute the metrics with lm-eval's filters, metrics and aggregation."""
        table = flat_metrics(self._evaluate(self._replay(results)), self._name)
        values: dict[str, float] = {}
        stderr: dict[str, float] = {}
        for name, value in table.items():
            if name.endswith("_stderr"):
                stderr[name.removesuffix("_stderr")] = value
            else:
                values[name] = value
        return Metrics(values, stderr)

    def items(self) -> frozenset[str]:
        """Return a digest of the tokens of each request for a log-likelihood."""
        return frozenset(tokens_digest(request) for request in self._requests.all())

    def losses(self, results: Sequence[Sequence[Row]]) -> Sequence[float]:
        """Return the metric of each document whose answers are complete.

        The sign is turned if needed, so that a smaller value is better.

        Raises:
            InputError: the metric is not the mean of a number per document.
        """
        for leaf in self._tasks["tasks"].values():
            if leaf.aggregation().get(self.metric) is not mean:
                raise self._no_losses()
        have = sum(map(len, results))
        outcome = self._evaluate(self._replay(results), samples=True)
        sign = -1.0 if self.maximize else 1.0
        losses: list[float] = []
        # Documents come in the order of their requests, so the first incomplete one ends the list.
        asked = 0
        for rows in outcome["samples"].values():
            for row in rows:
                asked += len(as_list(row["arguments"], "arguments"))
                if asked > have:
                    break
                value = row.get(self.metric)
                if not isinstance(value, int | float):
                    raise self._no_losses()
                losses.append(sign * float(value))
        return losses

    def _no_losses(self) -> InputError:
        """Return the error of a metric without losses of documents.

        Of a perplexity, for example, lm-eval keeps the log-likelihood of a document.
        """
        return InputError(
            f"metric {self.metric!r} is not the mean of a number per document, which `race` needs"
        )

    def margins(self, results: Sequence[Sequence[Row]]) -> Sequence[float] | None:
        """Return the margin of the answer to each document whose answers are complete.

        It is above 0 where the answer is right. None: the metric has no margin.
        """
        if self._choices is None:
            return None
        values = [float(value) for rows in results for value, _ in numbers_of(rows)]
        margins: list[float] = []
        start = 0
        for document in self._choices:
            end = start + len(document.lengths)
            if end > len(values):
                break
            margins.append(document.margin(values[start:end]))
            start = end
        return margins

    def laid_out(self) -> list[ScoredBatch]:
        """Return the batches of log-likelihoods that were laid out so far."""
        return self._requests.laid_out()

    def _replay(self, results: Sequence[Sequence[Row]]) -> ReplayModel:
        """Return a model that answers with stored results.

        Requests at the end that have no result get a dummy answer.
        """
        asked = len(self._requests)
        answers: list[LogLikelihood] = []
        for rows in results[:asked]:
            for value, greedy in numbers_of(rows):
                answers.append((float(value), bool(greedy)))
        answers += [(0.0, False)] * (len(self._requests.all()) - len(answers))
        texts: list[str] = []
        for rows in results[asked:]:
            texts += [str(text) for text in rows]
        texts += [""] * (len(self._prompts) - len(texts))
        return ReplayModel(answers, self._lm.windows, texts)

    def _evaluate(self, lm: Any, samples: bool = False) -> TaskOutcome:  # noqa: ANN401 (untyped)
        """Run lm-eval's evaluation with a model."""
        with bootstrap_here():
            outcome: TaskOutcome = lm_eval.evaluator.evaluate(
                lm=lm,
                task_dict=self._tasks,
                limit=self._limit if self._chosen is None else None,
                samples=self._chosen,
                log_samples=samples,
                bootstrap_iters=BOOTSTRAP_ITERS,
            )
        return outcome
