"""The engine of one process.

It scores the waiting candidates of all studies together, through the cache.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

from prunesearch import events
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.keys import latency_key
from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.errors import ScoringError
from prunesearch.evaluation.batch_evaluation import BatchEvaluation, CandidateRequest
from prunesearch.evaluation.cached_scorer import CachedResults, Scorer
from prunesearch.evaluation.local_scorer import LocalScorer
from prunesearch.execution.block_code import BlockCode
from prunesearch.execution.cancellation import EvaluationCancelled
from prunesearch.execution.device_memory import STATE_BYTES
from prunesearch.execution.latency import (
    LatencyModel,
    StoredLatency,
    machine,
    measure_latency_model,
    timed_tokens,
)
from prunesearch.execution.malloc import keep_freed_memory
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.base import Objective
from prunesearch.objectives.identity import numerics_of
from prunesearch.objectives.race import Race, items_of, rungs
from prunesearch.runtime import stopping


class LocalEngine:
    """Scores candidates of one model on one objective, through the cache.

    Several studies may use an engine at the same time. All waiting candidates are scored together,
    as one batch, in a thread, so that the event loop stays free. A candidate that several
    studies request is scored once, also if they run in other processes or on other machines that
    share the cache. When the last consumer is gone, or a stop is requested (Ctrl-C), the running
    forward pass ends at its next block.

    Args:
        loaded: the dense model.
        objective: objective to score candidates on.
        cache: evaluation cache.
        scorer: scorer of the candidates. Default: this process.
        state_memory: bytes that hidden states may take. None: by the free memory of a GPU.
        one_pass: True if a pass over the blocks is expensive (their weights are streamed).
        code: how this process runs blocks. Default: by the model's own code.

    Attributes:
        results: results on chunks: from the cache, by the scorer, or from another process.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        objective: Objective,
        cache: EvaluationCache,
        scorer: Scorer | None = None,
        state_memory: int | None = STATE_BYTES,
        one_pass: bool = False,
        code: BlockCode | None = None,
    ) -> None:
        keep_freed_memory()
        self.loaded = loaded
        self.objective = objective
        # The workers of another scorer decide for themselves how they run blocks.
        self._code = code if scorer is None else None
        scorer = scorer or LocalScorer(loaded, objective, state_memory, code)
        self.workers = scorer.workers
        self._cache = cache
        self._stop = threading.Event()
        self.results = CachedResults(scorer, cache, loaded.fingerprint, self._cancelled, one_pass)
        self._consumers = 0
        self._futures: dict[CandidateRequest, asyncio.Future[Evaluation]] = {}
        self._waiting: dict[CandidateRequest, asyncio.Future[Evaluation]] = {}
        self._scoring_task: asyncio.Task[None] | None = None

    @property
    def block_code(self) -> str | None:
        """How this process runs blocks (see `BlockCode.name`); None if workers score."""
        return None if self._code is None else self._code.name

    def _cancelled(self) -> bool:
        """Return True if no consumer waits for results any more, or the process is to stop."""
        return self._stop.is_set() or stopping.requested()

    async def evaluate(
        self, candidates: Sequence[LayerSubset], race: Race | None = None
    ) -> AsyncIterator[Evaluation]:
        """Yield one evaluation per distinct candidate, as soon as it is complete.

        Args:
            candidates: candidates to evaluate.
            race: what the candidates race against. A candidate that part of the data shows to be
                worse is not scored on the rest. None: all are scored in full.
        """
        futures = [
            self._submit(CandidateRequest(candidate, race))
            for candidate in dict.fromkeys(candidates)
        ]
        self._consumers += 1
        try:
            for done in asyncio.as_completed(futures):
                yield await done
        finally:
            self._consumers -= 1
            # Without a consumer, stop the scoring and cancel what still waits.
            if not self._consumers:
                self._stop.set()
                self._abort(self._waiting)
                self._waiting = {}

    def _submit(self, request: CandidateRequest) -> asyncio.Future[Evaluation]:
        """Return the future of a request.

        A new request is queued, and scoring is started if needed.
        """
        if request not in self._futures:
            self._futures[request] = self._waiting[request] = (
                asyncio.get_running_loop().create_future()
            )
            if self._scoring_task is None or self._scoring_task.done():
                self._scoring_task = asyncio.create_task(self._score_waiting())
        return self._futures[request]

    async def _score_waiting(self) -> None:
        """Score waiting requests in batches until none is left."""
        loop = asyncio.get_running_loop()

        def settle(request: CandidateRequest, evaluation: Evaluation) -> None:
            loop.call_soon_threadsafe(self._settle, request, evaluation)

        while self._waiting:
            # Give every study that is about to submit candidates the chance to do so.
            await asyncio.sleep(0)
            taken, self._waiting = self._waiting, {}
            error: BaseException | None = None
            # Clear the flag here. The thread may start after the last consumer has set it again.
            self._stop.clear()
            try:
                scoring = asyncio.to_thread(self._evaluate, list(taken), settle)
                (error,) = await asyncio.gather(scoring, return_exceptions=True)
            finally:
                self._abort(taken, error)

    def _settle(self, request: CandidateRequest, evaluation: Evaluation) -> None:
        future = self._futures.pop(request, None)
        if future is not None:
            future.set_result(evaluation)

    def _abort(
        self,
        batch: Mapping[CandidateRequest, asyncio.Future[Evaluation]],
        error: BaseException | None = None,
    ) -> None:
        """Fail the futures of a batch with the reason, for example that the cache cannot be
        written.

        Args:
            batch: requests and their futures. Futures that are done are left alone.
            error: the reason. None: the futures are cancelled.
        """
        for request, future in batch.items():
            # A request that is done may have been submitted again since.
            if future.done():
                continue
            del self._futures[request]
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
            [CandidateRequest(c) for c in asked],
            lambda request, e: done.update({request.candidate: e}),
        )
        stopping.check()
        return [done[candidate] for candidate in asked]

    def score_free(self, requests: Sequence[CandidateRequest]) -> BatchEvaluation:
        """Score in this thread what requests lack and no other process is scoring.

        Results that other processes are scoring are not waited for, so the requests need not be
        complete afterwards.

        Returns:
            The state of the requests: which candidates were scored here, and which failed.
        """
        self._stop.clear()
        self.results.waits = False
        batch = BatchEvaluation(self.results, self.objective, requests)
        try:
            self._run(batch, requests, lambda request, evaluation: None)
        finally:
            self.results.waits = True
        return batch

    def losses(self, candidates: Iterable[LayerSubset]) -> list[Sequence[float]]:
        """Return each candidate's losses on the items of the data, in the given order.

        See `Objective.losses`.

        Raises:
            InputError: the metric is not defined for single items.
            ScoringError: a candidate cannot be scored.
            StopRequested: a stop was requested meanwhile.
        """
        asked = list(dict.fromkeys(candidates))
        self._stop.clear()
        batch = BatchEvaluation(
            self.results, self.objective, [CandidateRequest(candidate) for candidate in asked]
        )
        chunks = len(self.objective.chunks)
        try:
            for _ in batch.fill(chunks):
                pass
        except EvaluationCancelled:
            stopping.check()
            raise
        # The rows are read once: margins tell right from wrong without lm-eval's templates.
        found: list[Sequence[float]] = []
        for candidate in asked:
            if candidate in batch.failed:
                raise ScoringError(batch.failure(candidate))
            found.append(items_of(self.objective, batch.leading(candidate, chunks)).losses)
        return found

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
        requests: Sequence[CandidateRequest],
        settle: Callable[[CandidateRequest, Evaluation], None],
    ) -> None:
        """Evaluate requests together, and settle each as soon as it is done."""
        self._run(BatchEvaluation(self.results, self.objective, requests), requests, settle)

    def _run(
        self,
        batch: BatchEvaluation,
        requests: Sequence[CandidateRequest],
        settle: Callable[[CandidateRequest, Evaluation], None],
    ) -> None:
        """Evaluate the requests of a batch.

        Requests with a race are evaluated in rungs, each on more of the data. Without races there
        is one rung.
        """
        chunks = len(self.objective.chunks)
        races = any(request.race for request in requests)
        try:
            for rung in rungs(chunks) if races else [chunks]:
                for request in batch.fill(rung):
                    settle(request, batch.evaluation(request))
                for request in batch.finish(rung):
                    settle(request, batch.evaluation(request))
        except EvaluationCancelled:
            return
