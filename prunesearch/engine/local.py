"""The engine of one process: candidates of all studies that wait are scored together, through the store."""

import asyncio
import math
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.engine.memory import keep_freed_memory
from prunesearch.errors import PruneSearchError, ScoringError, one_line
from prunesearch.model.loading import LoadedModel
from prunesearch.scoring.cost import TOKENS, LatencyModel, machine, measure_latency_model
from prunesearch.scoring.forward import Forward, Stopped
from prunesearch.scoring.objectives import Chunk, Metrics, Objective, Scored, Work, numerics_of
from prunesearch.scoring.race import is_worse, rungs
from prunesearch.store import faults
from prunesearch.store.evaluations import EvaluationStore
from prunesearch.store.flight import Flight
from prunesearch.store.keys import Key, evaluation_key, latency_key

# What scoring may raise; it fails candidates and nothing else. RuntimeError is torch's (out of memory among others),
# the last three come from metrics: exp of a huge loss, or a task's own code.
_FAILURES = (ScoringError, RuntimeError, MemoryError, ArithmeticError, ValueError, LookupError)


class Scorer(Protocol):
    """Does the work: in this process, or in several of its own."""

    workers: int
    """How many candidates it scores at once."""

    def score(self, work: Work, stopped: Callable[[], bool]) -> Iterator[Scored]:
        """Score candidates on chunks together; raise `Stopped` when nobody waits any more."""
        ...


class InProcess:
    """Scores with the model of this process."""

    workers = 1

    def __init__(self, loaded: LoadedModel, objective: Objective, state_memory: int) -> None:
        self._objective = objective
        self.forward = Forward(loaded.model, loaded.layers, state_memory)

    def score(self, work: Work, stopped: Callable[[], bool]) -> Iterator[Scored]:
        """Score candidates on chunks."""
        self.forward.stopped = stopped
        return self._objective.score(work, self.forward)


class LocalEngine:
    """Scores candidates of one model on one objective, through the store.

    Any number of studies may ask at once. What waits is scored together, as one generation, in a thread, so that the
    event loop stays free; a candidate that several ask for is scored once, be it in other processes or on other
    machines that share the store. When a consumer is cancelled (Ctrl-C), the
    pass that is under way is left at its next block.

    Args:
        scorer: who does the work; default: this process.
        state_memory: bytes that hidden states may take.

    Attributes:
        tokens: tokens that candidates were scored on, by races fewer than there are.
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
        self.tokens = 0
        self._pace = _Pace()
        self._scorer = scorer or InProcess(loaded, objective, state_memory)
        self.workers = self._scorer.workers
        self._store = store
        self._stop = threading.Event()
        self._consumers = 0
        self._futures: dict[_Task, asyncio.Future[Evaluation]] = {}
        self._waiting: list[_Task] = []
        self._pump: asyncio.Task[None] | None = None

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
                self._waiting = []

    def _submit(self, task: "_Task") -> asyncio.Future[Evaluation]:
        if task not in self._futures:
            self._futures[task] = asyncio.get_running_loop().create_future()
            self._waiting.append(task)
            if self._pump is None or self._pump.done():
                self._pump = asyncio.create_task(self._score_waiting())
        return self._futures[task]

    async def _score_waiting(self) -> None:
        loop = asyncio.get_running_loop()

        def settle(task: _Task, evaluation: Evaluation) -> None:
            loop.call_soon_threadsafe(self._settle, task, evaluation)

        while self._waiting:
            await asyncio.sleep(0)  # every study that is about to ask does so first
            tasks, self._waiting = self._waiting, []
            error: BaseException | None = None
            try:
                (error,) = await asyncio.gather(asyncio.to_thread(self._evaluate, tasks, settle), return_exceptions=True)
            finally:
                self._give_up(tasks, error)

    def _settle(self, task: "_Task", evaluation: Evaluation) -> None:
        future = self._futures.pop(task, None)
        if future is not None:
            future.set_result(evaluation)

    def _give_up(self, tasks: Sequence["_Task"], error: BaseException | None = None) -> None:
        """Whoever waits for an evaluation hears why there will be none: the store cannot be written, say."""
        for future in [self._futures.pop(task) for task in tasks if task in self._futures]:
            if error is None:
                future.cancel()
            else:
                future.set_exception(error)
                future.exception()  # it was seen, even where its consumer has left already

    def evaluate_now(self, candidates: Iterable[LayerSubset]) -> list[Evaluation]:
        """Evaluate candidates in this thread, all on all data; in the order given."""
        asked = list(dict.fromkeys(candidates))
        done: dict[LayerSubset, Evaluation] = {}
        self._evaluate([_Task(c) for c in asked], lambda task, e: done.update({task.candidate: e}))
        return [done[candidate] for candidate in asked]

    def latency_model(self) -> LatencyModel:
        """Per-block latencies of the model on this machine, measured once and kept in the store."""
        key = latency_key(self.loaded.fingerprint, machine(self.loaded.model), numerics_of(self.loaded.model), TOKENS)
        stored = self._store.get(key)
        if stored is not None:
            return LatencyModel.from_json(stored.value)
        latency = measure_latency_model(self.loaded.model, self.loaded.layers)
        return LatencyModel.from_json(self._store.put(key, latency.as_json()).value)

    def _evaluate(self, tasks: Sequence["_Task"], settle: Callable[["_Task", Evaluation], None]) -> None:
        """Evaluate tasks together, rung by rung; without rivals there is one rung, all data."""
        self._stop.clear()
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

    def results(self, wanted: Iterable[tuple[Chunk, LayerSubset]]) -> Iterator[tuple[Scored, float | None]]:
        """Results of candidates on chunks: from the store, by scoring, or from whoever else is scoring them now.

        Yields:
            Each as it is known, with the seconds that the store saved, or None where it was scored here.
        """
        left = {self._key(candidate, chunk): (chunk, candidate) for chunk, candidate in wanted}
        with self._store.flight() as flight:
            while left:
                found = flight.claim(left)
                for key in [key for key in left if key.digest in found]:
                    chunk, candidate = left.pop(key)
                    entry = found[key.digest]
                    yield (chunk.index, candidate, entry.value), entry.seconds
                mine: dict[int, tuple[Chunk, list[LayerSubset]]] = {}
                for chunk, candidate in (left[key] for key in left if key.digest in flight.mine):
                    mine.setdefault(chunk.index, (chunk, []))[1].append(candidate)
                work = [mine[index] for index in sorted(mine)]
                self._pace.start(work)
                for scored in self._score(work, flight):
                    left.pop(self._key(scored[1], self.objective.chunks[scored[0]]))
                    yield scored, None
                if not work and left:
                    flight.wait(self._stop.is_set)
                    if self._stop.is_set():
                        raise Stopped

    def _score(self, work: Work, flight: Flight) -> Iterator[Scored]:
        """Score candidates on chunks and keep the results.

        What fails for several together is tried one by one, so that a failure is its own candidate's.
        """
        done: set[tuple[int, LayerSubset]] = set()
        try:
            for index, candidate, results in self._scorer.score(work, self._stop.is_set) if work else ():
                kept = self._keep(index, candidate, results, flight)
                done.add((index, candidate))
                if kept is not None:
                    yield index, candidate, kept
        except _FAILURES as error:
            if isinstance(error, PruneSearchError) and not isinstance(error, ScoringError):
                raise
            left = [(chunk, candidate) for chunk, asked in work for candidate in asked]
            left = [(chunk, candidate) for chunk, candidate in left if (chunk.index, candidate) not in done]
            if len({candidate for _, candidate in left}) < 2:
                for chunk, candidate in left:
                    flight.give_back([self._key(candidate, chunk)])
                    yield chunk.index, candidate, ScoringError(f"{type(error).__name__}: {one_line(error)}")
                return
            for alone in dict.fromkeys(candidate for _, candidate in left):
                yield from self._score([(chunk, [alone]) for chunk, candidate in left if candidate == alone], flight)

    def _keep(
        self, index: int, candidate: LayerSubset, results: list[Any] | ScoringError, flight: Flight
    ) -> list[Any] | ScoringError | None:
        """Store results; the ones that stand, or None where another process has taken over and is not done yet."""
        chunk = self.objective.chunks[index]
        key = self._key(candidate, chunk)
        faults.reach("after_score", key.digest)
        if isinstance(results, ScoringError):
            flight.give_back([key])
            return results
        self.tokens += chunk.tokens
        stands = flight.commit(key, results, self._pace.seconds(chunk))
        return None if stands is None else stands.value

    def _key(self, candidate: LayerSubset, chunk: Chunk) -> Key:
        return evaluation_key(self.loaded.fingerprint, candidate.canonical, chunk.identity)


class _Pace:
    """What a candidate's results on a chunk cost: candidates are scored together, so it is a share of the time.

    A chunk's candidates count as done together, since that is how their results come; over a run the shares add up.
    """

    def __init__(self) -> None:
        self._tokens: dict[int, int] = {}
        self._since = time.perf_counter()
        self._spent, self._done = 0.0, 0

    def start(self, work: Work) -> None:
        """Scoring begins."""
        self._tokens = {chunk.index: chunk.tokens * len(candidates) for chunk, candidates in work}
        self._since = time.perf_counter()

    def seconds(self, chunk: Chunk) -> float:
        """A candidate's share, now that its results are here."""
        now = time.perf_counter()
        self._spent, self._since = self._spent + now - self._since, now
        self._done += self._tokens.pop(chunk.index, 0)
        return self._spent * chunk.tokens / max(1, self._done)


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
        for (index, candidate, results), saved in self._engine.results(wanted):
            if saved is None:
                self._computed.add(candidate)
            else:
                self._saved[candidate] += saved
            if isinstance(results, ScoringError):
                self._failure.setdefault(candidate, str(results))
            else:
                self._results[candidate][index] = results
            yield from self._done_of([candidate])

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
            metrics = self._objective.metrics(self._leading(candidate, chunks))
        except _FAILURES as error:
            self._failure[candidate] = f"{type(error).__name__}: {one_line(error)}"
            return None
        value = metrics.values[self._objective.metric]
        if not math.isfinite(value):
            self._failure[candidate] = f"{self._objective.metric} is {value}"
            return None
        return metrics

    def _leading(self, candidate: LayerSubset, chunks: int) -> list[list[Any]]:
        return [self._results[candidate][index] for index in range(chunks)]

    def _is_worse(self, candidate: LayerSubset, rival: LayerSubset, chunks: int) -> bool:
        if rival in self._failure:
            return False
        losses = self._objective.losses
        return is_worse(losses(self._leading(candidate, chunks)), losses(self._leading(rival, chunks)))
