"""The engine of one process: one model in memory, one thread that scores."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.errors import CorruptEntryError, ScoringError, one_line
from prunesearch.model.loading import LoadedModel
from prunesearch.scoring.cost import TOKENS, LatencyModel, machine, measure_latency_model
from prunesearch.scoring.objectives import Chunk, Objective, numerics_of
from prunesearch.store.disk import EvaluationStore
from prunesearch.store.keys import Key, evaluation_key, latency_key

# What a candidate's own scoring may raise; it fails that candidate and nothing else. RuntimeError is torch's (out of
# memory among others), the last three come from metrics: exp of a huge loss, or a task's own code.
_FAILURES = (ScoringError, RuntimeError, MemoryError, ArithmeticError, ValueError, LookupError)


class _StoppedError(BaseException):
    """Raised inside a forward pass to leave it; never seen outside this module."""


class LocalEngine:
    """Scores candidates of one model on one objective, through the store.

    Scoring runs in a thread so that the event loop stays free; when the consumer stops early (Ctrl-C), the forward
    pass that is under way is left at its next call of the model.
    """

    workers = 1

    def __init__(self, loaded: LoadedModel, objective: Objective, store: EvaluationStore) -> None:
        self.loaded = loaded
        self.objective = objective
        self.damaged = 0
        """Stored entries that were found damaged and computed again."""
        self._store = store
        self._stop = threading.Event()
        loaded.model.register_forward_pre_hook(self._leave_if_stopped)

    async def evaluate(self, candidates: Sequence[LayerSubset]) -> AsyncIterator[Evaluation]:
        """Yield one evaluation per distinct candidate, as each is done."""
        for candidate in dict.fromkeys(candidates):
            try:
                evaluation = await asyncio.to_thread(self.evaluate_one, candidate)
            except asyncio.CancelledError:
                self._stop.set()
                raise
            yield evaluation

    def evaluate_one(self, candidate: LayerSubset) -> Evaluation:
        """Evaluate a candidate now, in this thread."""
        self._stop.clear()
        start = time.perf_counter()
        try:
            chunks = [self._chunk_results(candidate, chunk) for chunk in self.objective.chunks]
            metrics = self.objective.metrics([results for results, _ in chunks])
            if not math.isfinite(metrics.values[self.objective.metric]):
                raise ScoringError(f"{self.objective.metric} is {metrics.values[self.objective.metric]}")
        except _FAILURES as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            return Evaluation(candidate, failure=reason, seconds=time.perf_counter() - start)
        except _StoppedError:
            return Evaluation(candidate, failure="stopped")
        cached = all(hit for _, hit in chunks)
        seconds = 0.0 if cached else time.perf_counter() - start
        return Evaluation(candidate, metrics.values, metrics.stderr, cached, seconds)

    def latency_model(self) -> LatencyModel:
        """Per-block latencies of the model on this machine, measured once and kept in the store."""
        model = self.loaded.model
        key = latency_key(self.loaded.fingerprint, machine(model), numerics_of(model), TOKENS)
        stored = self._lookup(key)
        if stored is not None:
            return LatencyModel.from_json(stored)
        latency = measure_latency_model(model)
        self._store.put(key, latency.as_json())
        return latency

    def _chunk_results(self, candidate: LayerSubset, chunk: Chunk) -> tuple[list[Any], bool]:
        key = evaluation_key(self.loaded.fingerprint, candidate.canonical, chunk.identity)
        stored = self._lookup(key)
        if stored is not None:
            return stored, True
        results = self.objective.score(candidate, chunk)
        self._store.put(key, results)
        return results, False

    def _lookup(self, key: Key) -> Any | None:  # noqa: ANN401 (any JSON value)
        try:
            return self._store.get(key)
        except CorruptEntryError:
            self.damaged += 1
            self._store.discard(key)
            return None

    def _leave_if_stopped(self, *_: object) -> None:
        if self._stop.is_set():
            raise _StoppedError
