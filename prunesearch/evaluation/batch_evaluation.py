"""Evaluates candidates together: from the results on chunks to metrics, races included."""

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from prunesearch import events
from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.errors import one_line
from prunesearch.evaluation import FAILURES
from prunesearch.evaluation.cached_scorer import CachedResults
from prunesearch.objectives.base import Chunk, Metrics, Objective, Row
from prunesearch.objectives.race import ItemLosses, Race, is_worse, items_of


@dataclass(frozen=True)
class CandidateRequest:
    """A request for one evaluation.

    Attributes:
        candidate: candidate to evaluate.
        race: what the candidate races against. None: it is scored in full.
    """

    candidate: LayerSubset
    race: Race | None = None


class BatchEvaluation:
    """State of requests that are evaluated together, chunk by chunk."""

    def __init__(
        self, results: CachedResults, objective: Objective, requests: Sequence[CandidateRequest]
    ) -> None:
        self._cached = results
        self._objective = objective
        self._left = list(dict.fromkeys(requests))
        self._start = time.perf_counter()
        self._results: dict[LayerSubset, dict[int, Sequence[Row]]] = {}
        self._computed: set[LayerSubset] = set()
        self._saved: dict[LayerSubset, float] = defaultdict(float)
        self._failure: dict[LayerSubset, str] = {}
        self._steps: dict[CandidateRequest, dict[int, float]] = defaultdict(dict)
        self._out: set[CandidateRequest] = set()
        self._known_losses: dict[tuple[LayerSubset, int], ItemLosses] = {}

    @property
    def computed(self) -> set[LayerSubset]:
        """Candidates that were scored in this process, in part or in full."""
        return set(self._computed)

    @property
    def failed(self) -> set[LayerSubset]:
        """Candidates that cannot be scored."""
        return set(self._failure)

    def failure(self, candidate: LayerSubset) -> str:
        """Return why a candidate that failed cannot be scored."""
        return self._failure[candidate]

    def fill(self, rung: int) -> Iterator[CandidateRequest]:
        """Get results on the first `rung` chunks for all requests left.

        They come from the cache, or from scoring.

        Yields:
            Each request without a race as soon as it has the results of all chunks.
        """
        chunks = self._objective.chunks
        # List the candidates of the requests that are left, and those that they race against, each
        # once, and the number of chunks that each needs. Control variates need all chunks.
        runners: dict[LayerSubset, int] = {}
        for request in self._left:
            if request.race is not None:
                needed = len(chunks) if request.race.controls else rung
                for known in (request.race.baseline, *request.race.controls):
                    runners[known] = max(needed, runners.get(known, 0))
            runners.setdefault(request.candidate, rung)
        # List the results that are missing.
        wanted: list[tuple[Chunk, LayerSubset]] = []
        for candidate, needed in runners.items():
            have = self._results.setdefault(candidate, {})
            if candidate not in self._failure:
                for chunk in chunks[:needed]:
                    if chunk.index not in have:
                        wanted.append((chunk, candidate))
        yield from self._done_of(runners)
        self._tell(len(runners))
        # Record each result.
        for result in self._cached.get(wanted):
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

    def _done_of(self, candidates: Iterable[LayerSubset]) -> Iterator[CandidateRequest]:
        """Take out and yield the requests without a race that have results of all chunks."""
        for candidate in list(candidates):
            request = CandidateRequest(candidate)
            if request in self._left and len(self._results[request.candidate]) == len(
                self._objective.chunks
            ):
                self._left.remove(request)
                yield request

    def finish(self, rung: int) -> list[CandidateRequest]:
        """Take out and return the requests that are done after a rung.

        These are requests that failed, that were scored in full, or that are worse than their
        baseline.
        """
        last = rung == len(self._objective.chunks)
        done = []
        for request in self._left:
            # Record the metric at this rung, and compare the candidate with its baseline.
            metrics = self._metrics(request.candidate, rung)
            if metrics is not None and request.race is not None:
                self._steps[request][rung] = metrics.values[self._objective.metric]
                if not last and self._is_worse(request.candidate, request.race, rung):
                    self._out.add(request)
            if metrics is None or last or request in self._out:
                done.append(request)
        self._left = [request for request in self._left if request not in done]
        return done

    def evaluation(self, request: CandidateRequest) -> Evaluation:
        """Return the evaluation of a request that is done.

        Candidates are scored together, so the time is shared equally among them.
        """
        candidate = request.candidate
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
            steps=dict(self._steps[request]),
            raced_out=request in self._out,
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

    def _is_worse(self, candidate: LayerSubset, race: Race, chunks: int) -> bool:
        """Return True if a candidate loses the race on the first chunks.

        A baseline that failed decides nothing, and a control candidate that failed is left out.
        """
        if race.baseline in self._failure:
            return False
        controls = []
        for control in race.controls:
            if control not in self._failure:
                controls.append(self._losses(control))
        return is_worse(
            items_of(self._objective, self.leading(candidate, chunks)),
            self._losses(race.baseline),
            controls,
            self._share(chunks),
        )

    def _losses(self, known: LayerSubset) -> ItemLosses:
        """Return the losses of a candidate that others race against, on all chunks that it has.

        They are computed once for each number of chunks.
        """
        key = known, len(self._results[known])
        if key not in self._known_losses:
            self._known_losses[key] = items_of(self._objective, self.leading(*key))
        return self._known_losses[key]

    def _share(self, chunks: int) -> float:
        """Return the share of the data's tokens that is in the first chunks."""
        tokens = [chunk.tokens for chunk in self._objective.chunks]
        return sum(tokens[:chunks]) / max(1, sum(tokens))
