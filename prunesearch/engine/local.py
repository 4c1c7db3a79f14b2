"""The engine of one process: candidates of all studies that wait are scored together, through the store."""

import asyncio
import math
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunesearch import events, stopping
from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.engine import FAILURES
from prunesearch.engine.memory import keep_freed_memory
from prunesearch.engine.stored import Scorer, StoredScorer
from prunesearch.errors import ScoringError, one_line
from prunesearch.model.arithmetic import wide_products
from prunesearch.model.loading import LoadedModel
from prunesearch.scoring.cost import LatencyModel, machine, measure_latency_model, timed_tokens
from prunesearch.scoring.forward import Forward, Stopped
from prunesearch.scoring.objectives import Metrics, Objective, Scored, Work, numerics_of
from prunesearch.scoring.race import is_worse, rungs
from prunesearch.store.evaluations import EvaluationStore
from prunesearch.store.keys import latency_key


class InProcess:
    """Scores with the model of this process."""

    workers = 1

    def __init__(self, loaded: LoadedModel, objective: Objective, state_memory: int) -> None:
        self._objective = objective
        self.forward = Forward(loaded.model, loaded.layers, state_memory)

    def score(self, work: Work, stopped: Callable[[], bool]) -> Iterator[Scored]:
        """Score candidates on chunks."""
        self.forward.stopped = stopped
        with wide_products():
            yield from self._objective.score(work, self.forward)


class LocalEngine:
    """Scores candidates of one model on one objective, through the store.

    Any number of studies may ask at once. What waits is scored together, as one generation, in a thread, so that the
    event loop stays free; a candidate that several ask for is scored once, be it in other processes or on other
    machines that share the store. When a consumer is cancelled (Ctrl-C), the pass that is under way is left at its next
    block.

    Args:
        scorer: who does the work; default: this process.
        state_memory: bytes that hidden states may take.

    Attributes:
        scores: results on chunks, through the store.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        objective: Objective,
        store: EvaluationStore,
        scorer: Scorer | None = None,
        state_memory: int = 2**31,
    ) -> None:
        keep_freed_memory()
        self.loaded = loaded
        self.objective = objective
        scorer = scorer or InProcess(loaded, objective, state_memory)
        self.workers = scorer.workers
        self._store = store
        self._stop = threading.Event()
        self.scores = StoredScorer(scorer, store, loaded.fingerprint, self._stopped)
        self._consumers = 0
        self._futures: dict[_Task, asyncio.Future[Evaluation]] = {}
        self._waiting: dict[_Task, asyncio.Future[Evaluation]] = {}
        self._pump: asyncio.Task[None] | None = None

    def _stopped(self) -> bool:
        """Whether nobody waits for results any more."""
        return self._stop.is_set() or stopping.requested()

    async def evaluate(
        self, candidates: Sequence[LayerSubset], rival: LayerSubset | None = None
    ) -> AsyncIterator[Evaluation]:
        """Yield one evaluation per distinct candidate, as each is done.

        Args:
            rival: race against it: a candidate that is worse on part of the data is not scored on the rest.
        """
        asked = [self._submit(_Task(candidate, rival)) for candidate in dict.fromkeys(candidates)]
        self._consumers += 1
        try:
            for done in asyncio.as_completed(asked):
                yield await done
        finally:
            self._consumers -= 1
            if not self._consumers:  # nobody waits for what is left
                self._stop.set()
                self._give_up(self._waiting)
                self._waiting = {}

    def _submit(self, task: "_Task") -> asyncio.Future[Evaluation]:
        if task not in self._futures:
            self._futures[task] = self._waiting[task] = asyncio.get_running_loop().create_future()
            if self._pump is None or self._pump.done():
                self._pump = asyncio.create_task(self._score_waiting())
        return self._futures[task]

    async def _score_waiting(self) -> None:
        loop = asyncio.get_running_loop()

        def settle(task: _Task, evaluation: Evaluation) -> None:
            loop.call_soon_threadsafe(self._settle, task, evaluation)

        while self._waiting:
            await asyncio.sleep(0)  # every study that is about to ask does so first
            batch, self._waiting = self._waiting, {}
            error: BaseException | None = None
            self._stop.clear()  # here and not in the thread, which may start after everybody has left
            try:
                scoring = asyncio.to_thread(self._evaluate, list(batch), settle)
                (error,) = await asyncio.gather(scoring, return_exceptions=True)
            finally:
                self._give_up(batch, error)

    def _settle(self, task: "_Task", evaluation: Evaluation) -> None:
        future = self._futures.pop(task, None)
        if future is not None:
            future.set_result(evaluation)

    def _give_up(self, batch: Mapping["_Task", asyncio.Future[Evaluation]], error: BaseException | None = None) -> None:
        """Whoever waits for an evaluation hears why there will be none: the store cannot be written, say."""
        for task, future in batch.items():
            if future.done():  # the task may have been asked for again since
                continue
            del self._futures[task]
            if error is None:
                future.cancel()
            else:
                future.set_exception(error)
                future.exception()  # it was seen, even where its consumer has left already

    def evaluate_now(self, candidates: Iterable[LayerSubset]) -> list[Evaluation]:
        """Evaluate candidates in this thread, all on all data; in the order given.

        Raises:
            StopRequested: that was asked for meanwhile.
        """
        asked = list(dict.fromkeys(candidates))
        done: dict[LayerSubset, Evaluation] = {}
        self._stop.clear()
        self._evaluate([_Task(c) for c in asked], lambda task, e: done.update({task.candidate: e}))
        stopping.check()
        return [done[candidate] for candidate in asked]

    def losses(self, candidates: Iterable[LayerSubset]) -> list[Sequence[float]]:
        """Losses of candidates on each item of the data, in the order given; see `Objective.losses`.

        Raises:
            InputError: the metric is none of single items.
        """
        asked = list(dict.fromkeys(candidates))
        self._stop.clear()
        sheet = _Sheet(self, [_Task(candidate) for candidate in asked])
        chunks = len(self.objective.chunks)
        for _ in sheet.fill(chunks):
            pass
        return [self.objective.losses(sheet.leading(candidate, chunks)) for candidate in asked]

    def latency_model(self) -> LatencyModel:
        """Per-block latencies of the model on this machine, measured once and kept in the store."""
        model = self.loaded.model
        key = latency_key(self.loaded.fingerprint, machine(model), numerics_of(model), timed_tokens(model))
        return LatencyModel.from_json(self._store.once(key, self._measure_latency))

    def _measure_latency(self) -> Any:  # noqa: ANN401 (a JSON value)
        events.tell("timing the blocks")
        return measure_latency_model(self.loaded.model, self.loaded.layers).as_json()

    def _evaluate(self, tasks: Sequence["_Task"], settle: Callable[["_Task", Evaluation], None]) -> None:
        """Evaluate tasks together, rung by rung; without rivals there is one rung, all data."""
        sheet = _Sheet(self, tasks)
        chunks = len(self.objective.chunks)
        try:
            for rung in rungs(chunks) if any(task.rival for task in tasks) else [chunks]:
                for task in sheet.fill(rung):
                    settle(task, sheet.evaluation(task))
                for task in sheet.finish(rung):
                    settle(task, sheet.evaluation(task))
        except Stopped:
            return


@dataclass(frozen=True)
class _Task:
    candidate: LayerSubset
    rival: LayerSubset | None = None


class _Sheet:
    """The results of tasks that are evaluated together, chunk by chunk."""

    def __init__(self, engine: LocalEngine, tasks: Sequence[_Task]) -> None:
        self._engine = engine
        self._objective = engine.objective
        self._left = list(dict.fromkeys(tasks))
        self._start = time.perf_counter()
        self._results: dict[LayerSubset, dict[int, list[Any]]] = {}
        self._computed: set[LayerSubset] = set()
        self._saved: dict[LayerSubset, float] = defaultdict(float)
        self._failure: dict[LayerSubset, str] = {}
        self._steps: dict[_Task, dict[int, float]] = defaultdict(dict)
        self._out: set[_Task] = set()

    def fill(self, rung: int) -> Iterator[_Task]:
        """Have the first `rung` chunks of everyone who is still in, from the store or by scoring.

        Yields:
            The tasks that are then done, as they are: those without a rival that have all chunks.
        """
        chunks = self._objective.chunks
        runners = dict.fromkeys(c for task in self._left for c in (task.rival, task.candidate) if c is not None)
        wanted = []
        for candidate in runners:
            have = self._results.setdefault(candidate, {})
            if candidate not in self._failure:
                wanted += [(chunk, candidate) for chunk in chunks[:rung] if chunk.index not in have]
        yield from self._done_of(runners)
        self._tell(len(runners))
        for (index, candidate, results), saved in self._engine.scores.results(wanted):
            if saved is None:
                self._computed.add(candidate)
            else:
                self._saved[candidate] += saved
            if isinstance(results, ScoringError):
                self._failure.setdefault(candidate, str(results))
            else:
                self._results[candidate][index] = results
            self._tell(len(runners))
            yield from self._done_of([candidate])

    def _tell(self, candidates: int) -> None:
        """Say how many pieces (a candidate on a chunk of the data) are done of all."""
        chunks = len(self._objective.chunks)
        done = sum(chunks if c in self._failure else len(found) for c, found in self._results.items())
        name = f"scoring {candidates} candidates" if candidates > 1 else "scoring"
        events.tell(name, done, chunks * len(self._results), "pieces")

    def _done_of(self, candidates: Iterable[LayerSubset]) -> Iterator[_Task]:
        for task in [_Task(candidate) for candidate in candidates]:
            if task in self._left and len(self._results[task.candidate]) == len(self._objective.chunks):
                self._left.remove(task)
                yield task

    def finish(self, rung: int) -> list[_Task]:
        """Take out the tasks that are done: failed, scored in full, or known to be worse than their rival."""
        last = rung == len(self._objective.chunks)
        done = []
        for task in self._left:
            metrics = self._metrics(task.candidate, rung)
            if metrics is not None and task.rival is not None:
                self._steps[task][rung] = metrics.values[self._objective.metric]
                if not last and self._is_worse(task.candidate, task.rival, rung):
                    self._out.add(task)
            if metrics is None or last or task in self._out:
                done.append(task)
        self._left = [task for task in self._left if task not in done]
        return done

    def evaluation(self, task: _Task) -> Evaluation:
        """What a finished task came to."""
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
        """A candidate's metrics on the first chunks; None if it has failed."""
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

    def leading(self, candidate: LayerSubset, chunks: int) -> list[list[Any]]:
        """A candidate's results on the first chunks."""
        return [self._results[candidate][index] for index in range(chunks)]

    def _is_worse(self, candidate: LayerSubset, rival: LayerSubset, chunks: int) -> bool:
        if rival in self._failure:
            return False
        losses = self._objective.losses
        return is_worse(losses(self.leading(candidate, chunks)), losses(self.leading(rival, chunks)))
