"""The engine of one process.

It scores the waiting candidates of all studies together, through the cache.
"""

import asyncio
import math
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prunesearch import events
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.keys import latency_key
from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.errors import one_line
from prunesearch.evaluation import FAILURES
from prunesearch.evaluation.cached_scorer import CachedScorer, Scorer
from prunesearch.execution.latency import (
    LatencyModel,
    StoredLatency,
    machine,
    measure_latency_model,
    timed_tokens,
)
from prunesearch.execution.malloc import keep_freed_memory
from prunesearch.execution.shared_forward import EvaluationCancelled, Forward
from prunesearch.models.bf16_cpu import wide_products
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.base import Chunk, ChunkResult, Metrics, Objective, Row, Work
from prunesearch.objectives.identity import numerics_of
from prunesearch.objectives.race import is_worse, rungs
from prunesearch.runtime import stopping


class LocalScorer:
    """A scorer that uses the model of this process."""

    workers = 1

    def __init__(self, loaded: LoadedModel, objective: Objective, state_memory: int) -> None:
        self._objective = objective
        self.forward = Forward(loaded.model, loaded.layers, state_memory)

    def score(self, work: Work, stopped: Callable[[], bool]) -> Iterator[ChunkResult]:
        """Score candidates on chunks together; see `Scorer.score`."""
        self.forward.stopped = stopped
        with wide_products():
            yield from self._objective.score(work, self.forward)


class LocalEngine:
    """Scores candidates of one model on one objective, through the cache.

    Several studies may use an engine at the same time. All waiting candidates are scored together,
    as one generation, in a thread, so that the event loop stays free. A candidate that several
    studies request is scored once, also if they run in other processes or on other machines that
    share the cache. When a consumer is cancelled (Ctrl-C), the running forward pass ends at its
    next block.

    Args:
        loaded: the dense model.
        objective: objective to score candidates on.
        cache: evaluation cache.
        scorer: scorer of the candidates. Default: this process.
        state_memory: bytes that hidden states may take.

    Attributes:
        scores: the scorer's results on chunks, through the cache.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        objective: Objective,
        cache: EvaluationCache,
        scorer: Scorer | None = None,
        state_memory: int = 2**31,
    ) -> None:
        keep_freed_memory()
        self.loaded = loaded
        self.objective = objective
        scorer = scorer or LocalScorer(loaded, objective, state_memory)
        self.workers = scorer.workers
        self._cache = cache
        self._stop = threading.Event()
        self.scores = CachedScorer(scorer, cache, loaded.fingerprint, self._stopped)
        self._consumers = 0
        self._futures: dict[_EvaluationRequest, asyncio.Future[Evaluation]] = {}
        self._waiting: dict[_EvaluationRequest, asyncio.Future[Evaluation]] = {}
        self._pump: asyncio.Task[None] | None = None

    def _stopped(self) -> bool:
        """Return True if no consumer waits for results any more."""
        return self._stop.is_set() or stopping.requested()

    async def evaluate(
        self, candidates: Sequence[LayerSubset], baseline: LayerSubset | None = None
    ) -> AsyncIterator[Evaluation]:
        """Yield one evaluation per distinct candidate, as soon as it is complete.

        Args:
            candidates: candidates to evaluate.
            baseline: candidate to race against. A candidate that is worse than it on part of the
                data is not scored on the rest.
        """
        asked = [
            self._submit(_EvaluationRequest(candidate, baseline))
            for candidate in dict.fromkeys(candidates)
        ]
        self._consumers += 1
        try:
            for done in asyncio.as_completed(asked):
                yield await done
        finally:
            self._consumers -= 1
            # Without a consumer, stop the scoring and cancel what still waits.
            if not self._consumers:
                self._stop.set()
                self._give_up(self._waiting)
                self._waiting = {}

    def _submit(self, task: "_EvaluationRequest") -> asyncio.Future[Evaluation]:
        """Return the future of a task. A new task is queued, and scoring is started if needed."""
        if task not in self._futures:
            self._futures[task] = self._waiting[task] = asyncio.get_running_loop().create_future()
            if self._pump is None or self._pump.done():
                self._pump = asyncio.create_task(self._score_waiting())
        return self._futures[task]

    async def _score_waiting(self) -> None:
        """Score waiting tasks in batches until none is left."""
        loop = asyncio.get_running_loop()

        def settle(task: _EvaluationRequest, evaluation: Evaluation) -> None:
            loop.call_soon_threadsafe(self._settle, task, evaluation)

        while self._waiting:
            # Give every study that is about to submit candidates the chance to do so.
            await asyncio.sleep(0)
            batch, self._waiting = self._waiting, {}
            error: BaseException | None = None
            # Clear the flag here. The thread may start after the last consumer has set it again.
            self._stop.clear()
            try:
                scoring = asyncio.to_thread(self._evaluate, list(batch), settle)
                (error,) = await asyncio.gather(scoring, return_exceptions=True)
            finally:
                self._give_up(batch, error)

    def _settle(self, task: "_EvaluationRequest", evaluation: Evaluation) -> None:
        future = self._futures.pop(task, None)
        if future is not None:
            future.set_result(evaluation)

    def _give_up(
        self,
        batch: Mapping["_EvaluationRequest", asyncio.Future[Evaluation]],
        error: BaseException | None = None,
    ) -> None:
        """Fail the futures of a batch with the reason, for example that the cache cannot be
        written.

        Args:
            batch: tasks and their futures. Futures that are done are left alone.
            error: the reason. None: the futures are cancelled.
        """
        for task, future in batch.items():
            # A task that is done may have been submitted again since.
            if future.done():
                continue
            del self._futures[task]
            if error is None:
                future.cancel()
            else:
                future.set_exception(error)
                # Mark the exception as retrieved. Its consumer may be gone, and asyncio would warn.
                future.exception()

    def evaluate_now(self, candidates: Iterable[LayerSubset]) -> list[Evaluation]:
        """Evaluate candidates in this thread on all data, and return evaluations in the given
        order.

        Raises:
            StopRequested: a stop was requested meanwhile.
        """
        asked = list(dict.fromkeys(candidates))
        done: dict[LayerSubset, Evaluation] = {}
        self._stop.clear()
        self._evaluate(
            [_EvaluationRequest(c) for c in asked], lambda task, e: done.update({task.candidate: e})
        )
        stopping.check()
        return [done[candidate] for candidate in asked]

    def losses(self, candidates: Iterable[LayerSubset]) -> list[Sequence[float]]:
        """Return each candidate's losses on the items of the data, in the given order.

        See `Objective.losses`.

        Raises:
            InputError: the metric is not defined for single items.
        """
        asked = list(dict.fromkeys(candidates))
        self._stop.clear()
        batch = _BatchEvaluation(self, [_EvaluationRequest(candidate) for candidate in asked])
        chunks = len(self.objective.chunks)
        for _ in batch.fill(chunks):
            pass
        return [self.objective.losses(batch.leading(candidate, chunks)) for candidate in asked]

    def latency_model(self) -> LatencyModel:
        """Return the per-block latencies of the model on this machine.

        They are measured once and kept in the cache.
        """
        model = self.loaded.model
        key = latency_key(
            self.loaded.fingerprint, machine(model), numerics_of(model), timed_tokens(model)
        )
        return LatencyModel.from_json(self._cache.once(key, self._measure_latency))

    def _measure_latency(self) -> StoredLatency:
        events.tell(events.StageProgress("timing the blocks"))
        return measure_latency_model(self.loaded.model, self.loaded.layers).as_json()

    def _evaluate(
        self,
        tasks: Sequence["_EvaluationRequest"],
        settle: Callable[["_EvaluationRequest", Evaluation], None],
    ) -> None:
        """Evaluate tasks together, and settle each as soon as it is done.

        Tasks with a baseline race in rungs, each on more of the data. Without baselines there is
        one rung.
        """
        batch = _BatchEvaluation(self, tasks)
        chunks = len(self.objective.chunks)
        races = any(task.baseline for task in tasks)
        try:
            for rung in rungs(chunks) if races else [chunks]:
                for task in batch.fill(rung):
                    settle(task, batch.evaluation(task))
                for task in batch.finish(rung):
                    settle(task, batch.evaluation(task))
        except EvaluationCancelled:
            return


@dataclass(frozen=True)
class _EvaluationRequest:
    """A request for one evaluation.

    Attributes:
        candidate: candidate to evaluate.
        baseline: candidate to race against; None: no race.
    """

    candidate: LayerSubset
    baseline: LayerSubset | None = None


class _BatchEvaluation:
    """State of tasks that are evaluated together, chunk by chunk."""

    def __init__(self, engine: LocalEngine, tasks: Sequence[_EvaluationRequest]) -> None:
        self._engine = engine
        self._objective = engine.objective
        self._left = list(dict.fromkeys(tasks))
        self._start = time.perf_counter()
        self._results: dict[LayerSubset, dict[int, Sequence[Row]]] = {}
        self._computed: set[LayerSubset] = set()
        self._saved: dict[LayerSubset, float] = defaultdict(float)
        self._failure: dict[LayerSubset, str] = {}
        self._steps: dict[_EvaluationRequest, dict[int, float]] = defaultdict(dict)
        self._out: set[_EvaluationRequest] = set()

    def fill(self, rung: int) -> Iterator[_EvaluationRequest]:
        """Get results on the first `rung` chunks for all tasks left, from the cache or by scoring.

        Yields:
            Each task without a baseline as soon as it has the results of all chunks.
        """
        chunks = self._objective.chunks
        # List the candidates of the tasks that are left, and their baselines, each once.
        runners: dict[LayerSubset, None] = {}
        for task in self._left:
            if task.baseline is not None:
                runners[task.baseline] = None
            runners[task.candidate] = None
        # List the results that are missing.
        wanted: list[tuple[Chunk, LayerSubset]] = []
        for candidate in runners:
            have = self._results.setdefault(candidate, {})
            if candidate not in self._failure:
                wanted += [(chunk, candidate) for chunk in chunks[:rung] if chunk.index not in have]
        yield from self._done_of(runners)
        self._tell(len(runners))
        # Record each result.
        for result in self._engine.scores.results(wanted):
            if result.saved_seconds is None:
                self._computed.add(result.candidate)
            else:
                self._saved[result.candidate] += result.saved_seconds
            if result.error is not None:
                self._failure.setdefault(result.candidate, str(result.error))
            else:
                self._results[result.candidate][result.chunk.index] = result.rows
            self._tell(len(runners))
            yield from self._done_of([result.candidate])

    def _tell(self, candidates: int) -> None:
        """Report progress in pieces. A piece is one candidate on one chunk of the data."""
        chunks = len(self._objective.chunks)
        done = 0
        for candidate, found in self._results.items():
            done += chunks if candidate in self._failure else len(found)
        name = f"scoring {candidates} candidates" if candidates > 1 else "scoring"
        events.tell(events.StageProgress(name, done, chunks * len(self._results), "pieces"))

    def _done_of(self, candidates: Iterable[LayerSubset]) -> Iterator[_EvaluationRequest]:
        """Take out and yield the tasks without a baseline that have the results of all chunks."""
        for candidate in list(candidates):
            task = _EvaluationRequest(candidate)
            if task in self._left and len(self._results[task.candidate]) == len(
                self._objective.chunks
            ):
                self._left.remove(task)
                yield task

    def finish(self, rung: int) -> list[_EvaluationRequest]:
        """Take out and return the tasks that are done after a rung.

        These are tasks that failed, that were scored in full, or that are worse than their
        baseline.
        """
        last = rung == len(self._objective.chunks)
        done = []
        for task in self._left:
            # Record the metric at this rung, and compare the candidate with its baseline.
            metrics = self._metrics(task.candidate, rung)
            if metrics is not None and task.baseline is not None:
                self._steps[task][rung] = metrics.values[self._objective.metric]
                if not last and self._is_worse(task.candidate, task.baseline, rung):
                    self._out.add(task)
            if metrics is None or last or task in self._out:
                done.append(task)
        self._left = [task for task in self._left if task not in done]
        return done

    def evaluation(self, task: _EvaluationRequest) -> Evaluation:
        """Return the evaluation of a task that is done.

        Candidates are scored together, so the time is shared equally among them.
        """
        candidate = task.candidate
        share = (time.perf_counter() - self._start) / max(1, len(self._computed))
        seconds = share if candidate in self._computed else 0.0
        metrics = self._metrics(candidate, len(self._results[candidate]))
        if metrics is None:
            return Evaluation(candidate, failure=self._failure[candidate], seconds=seconds)
        return Evaluation(
            candidate,
            metrics.values,
            metrics.stderr,
            candidate not in self._computed,
            seconds,
            steps=dict(self._steps[task]),
            raced_out=task in self._out,
            saved=self._saved[candidate],
        )

    def _metrics(self, candidate: LayerSubset, chunks: int) -> Metrics | None:
        """Return a candidate's metrics on the first chunks; None if it failed."""
        if candidate in self._failure:
            return None
        try:
            metrics = self._objective.metrics(self.leading(candidate, chunks))
        except FAILURES as error:
            self._failure[candidate] = f"{type(error).__name__}: {one_line(error)}"
            return None
        value = metrics.values[self._objective.metric]
        if not math.isfinite(value):
            self._failure[candidate] = f"{self._objective.metric} is {value}"
            return None
        return metrics

    def leading(self, candidate: LayerSubset, chunks: int) -> list[Sequence[Row]]:
        """Return a candidate's results on the first chunks."""
        return [self._results[candidate][index] for index in range(chunks)]

    def _is_worse(self, candidate: LayerSubset, baseline: LayerSubset, chunks: int) -> bool:
        """Return True if a candidate loses the race on the first chunks.

        A baseline that failed decides nothing.
        """
        if baseline in self._failure:
            return False
        losses = self._objective.losses
        return is_worse(
            losses(self.leading(candidate, chunks)), losses(self.leading(baseline, chunks))
        )
