"""Scoring through the evaluation cache.

Known results are read from the cache. If another process computes a result, this process waits for
it. All other results are computed here and stored.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.keys import Key, evaluation_key
from prunesearch.cache.single_flight import SingleFlight
from prunesearch.candidate import LayerSubset, named_layers
from prunesearch.errors import PruneSearchError, ScoringError, one_line
from prunesearch.evaluation import FAILURES
from prunesearch.evaluation.lease_pieces import LeasePieces
from prunesearch.execution.cancellation import EvaluationCancelled
from prunesearch.objectives.base import Chunk, ChunkResult, ChunkWork, Work
from prunesearch.runtime import failpoints


class Scorer(Protocol):
    """Scores candidates, in this process or in worker processes."""

    workers: int
    """Number of candidates that are scored at once."""

    def score(self, work: Work, cancelled: Callable[[], bool]) -> Iterator[ChunkResult]:
        """Score candidates on chunks together, and yield each result as soon as it is known.

        Args:
            work: chunks and their candidates.
            cancelled: function that returns True once the results are no longer needed.

        Raises:
            EvaluationCancelled: `cancelled` returned True.
        """
        ...


@dataclass(frozen=True)
class _Request:
    """A request for the result of one candidate on one chunk."""

    chunk: Chunk
    candidate: LayerSubset


class CachedResults:
    """Returns one model's results on chunks. All processes that share the cache score each result
    once.

    Args:
        scorer: scorer of the results that are not known.
        cache: evaluation cache.
        fingerprint: fingerprint of the dense model.
        cancelled: function that returns True once the results are no longer needed.
        one_pass: True if a pass over the blocks is expensive (their weights are streamed).

    Attributes:
        tokens: number of tokens that candidates were scored on in this process.
        scored: number of results that were scored in this process.
        waits: wait for results that other processes are computing. If False, `get` ends when
            nothing is left to score here.
    """

    def __init__(
        self,
        scorer: Scorer,
        cache: EvaluationCache,
        fingerprint: str,
        cancelled: Callable[[], bool],
        one_pass: bool = False,
    ) -> None:
        self.tokens = self.scored = 0
        self.waits = True
        self._scorer = scorer
        self._cache = cache
        self._fingerprint = fingerprint
        self._cancelled = cancelled
        self._cost_meter = _CostMeter()
        self._pieces = LeasePieces(scorer.workers, one_pass)

    def get(self, wanted: Iterable[tuple[Chunk, LayerSubset]]) -> Iterator[ChunkResult]:
        """Get results of candidates on chunks: from the cache, by scoring, or from another process.

        Yields:
            Each result as soon as it is known.

        Raises:
            EvaluationCancelled: the results are no longer needed, or other processes are computing
                all that is left and `waits` is False.
            UnavailableError: neither the local nor the shared part of the cache works.
        """
        # Group the requests by key. Chunks with equal content have the same key.
        pending: defaultdict[Key, list[_Request]] = defaultdict(list)
        uncacheable: list[_Request] = []
        for chunk, candidate in wanted:
            if chunk.cacheable:
                pending[self._key(candidate, chunk)].append(_Request(chunk, candidate))
            else:
                uncacheable.append(_Request(chunk, candidate))
        # Generated text that is sampled differs every time: it is neither looked up nor stored.
        for request in uncacheable:
            yield self._score_without_cache(request)
        self._pieces.begin(_path_order(pending))
        with self._cache.single_flight() as single_flight:
            # A key stays pending until its result was yielded. A key that another process has taken
            # over while it was scored here stays pending too, and the next round asks for it again.
            while pending:
                # Look the keys up, and lease those that are scored next.
                found = single_flight.acquire(pending, self._pieces.choose)
                self._pieces.note_found(len(found))
                for key in list(pending):
                    if key.digest not in found:
                        continue
                    entry = found[key.digest]
                    for request in pending.pop(key):
                        yield ChunkResult(
                            request.chunk,
                            request.candidate,
                            entry.value,
                            saved_seconds=entry.seconds,
                        )
                # Score the leased keys. Requests with the same key share one result.
                owned = [pending[key][0] for key in pending if key.digest in single_flight.owned]
                work = _work(owned)
                self._cost_meter.start(work)
                for key, result in self._score(work, single_flight):
                    for request in pending.pop(key):
                        yield replace(result, chunk=request.chunk)
                # Wait for other processes if they have leased all keys that are pending.
                if not work and pending:
                    if self.waits:
                        single_flight.wait(self._cancelled)
                    if self._cancelled() or not self.waits:
                        raise EvaluationCancelled

    def _score(self, work: Work, single_flight: SingleFlight) -> Iterator[tuple[Key, ChunkResult]]:
        """Score candidates on chunks, store the results, and yield each with its key.

        If a pass with several candidates fails, each is scored alone, so that only the candidate
        that causes the failure fails. A candidate that the scorer returns no result for fails too.

        No result is yielded for a key that another process has taken over and not computed yet.
        """
        if not work:
            return
        unscored: dict[Key, _Request] = {}
        for piece in work:
            for candidate in piece.candidates:
                unscored[self._key(candidate, piece.chunk)] = _Request(piece.chunk, candidate)
        failure: ScoringError | None = None
        try:
            for result in self._scorer.score(work, self._cancelled):
                key = self._key(result.candidate, result.chunk)
                stored = self._commit(key, result, single_flight)
                del unscored[key]
                if stored is not None:
                    yield key, stored
        except FAILURES as error:
            failure = _failure_of(error)
        # Handle the failure here and not in the `except` block. There, the error would still hold
        # the tensors of the pass that failed.
        candidates = dict.fromkeys(request.candidate for request in unscored.values())
        if failure is None or len(candidates) == 1:
            for key, request in unscored.items():
                single_flight.release([key])
                reason = failure or _no_result(request)
                yield key, ChunkResult(request.chunk, request.candidate, error=reason)
            return
        for alone in candidates:
            own = [request for request in unscored.values() if request.candidate == alone]
            yield from self._score(_work(own), single_flight)

    def _score_without_cache(self, request: _Request) -> ChunkResult:
        """Score a candidate on a chunk whose results are not stored."""
        failure = _no_result(request)
        work = [ChunkWork(request.chunk, [request.candidate])]
        try:
            for result in self._scorer.score(work, self._cancelled):
                self.tokens += request.chunk.tokens
                return result
        except FAILURES as error:
            failure = _failure_of(error)
        return ChunkResult(request.chunk, request.candidate, error=failure)

    def _commit(
        self, key: Key, result: ChunkResult, single_flight: SingleFlight
    ) -> ChunkResult | None:
        """Store a result, and return the one that the cache has now.

        Returns:
            The result. None: another process has taken over the key and is not done yet.
        """
        failpoints.hit("after_score", key.digest)
        if result.error is not None:
            single_flight.release([key])
            return result
        self.tokens += result.chunk.tokens
        self.scored += 1
        entry = single_flight.commit(key, result.rows, self._cost_meter.charge(result.chunk))
        return None if entry is None else replace(result, rows=entry.value)

    def _key(self, candidate: LayerSubset, chunk: Chunk) -> Key:
        return evaluation_key(self._fingerprint, candidate.canonical, chunk.identity)


def _no_result(request: _Request) -> ScoringError:
    """Return the error of a candidate that an objective has forgotten."""
    dropped = named_layers(request.candidate.text)
    return ScoringError(
        f"the objective returned no result for {dropped} on chunk {request.chunk.index}"
    )


def _failure_of(error: Exception) -> ScoringError:
    """Return an exception of scoring as the error of a candidate.

    Raises:
        PruneSearchError: the error concerns more than the candidate.
    """
    if isinstance(error, PruneSearchError) and not isinstance(error, ScoringError):
        raise error
    return ScoringError(f"{type(error).__name__}: {one_line(error)}")


def _path_order(pending: Mapping[Key, Sequence[_Request]]) -> list[tuple[Key, int]]:
    """Return keys and their chunks by chunk, and within a chunk by the candidates' paths.

    Neighbours in this order share the longest prefixes.
    """
    ordered = sorted(pending, key=lambda key: _place(pending[key][0]))
    return [(key, pending[key][0].chunk.index) for key in ordered]


def _place(request: _Request) -> tuple[int, tuple[int, ...]]:
    return request.chunk.index, request.candidate.path


def _work(requests: Iterable[_Request]) -> Work:
    """Group requests by chunk, in the order of the chunks."""
    chunks: dict[int, Chunk] = {}
    candidates: defaultdict[int, list[LayerSubset]] = defaultdict(list)
    for request in requests:
        chunks[request.chunk.index] = request.chunk
        candidates[request.chunk.index].append(request.candidate)
    return [ChunkWork(chunks[index], candidates[index]) for index in sorted(chunks)]


class _CostMeter:
    """Measures the seconds that a candidate's results on a chunk cost.

    Candidates are scored together, so the cost is a share of the time. All candidates of a chunk
    count as done together, because their results come together. The shares of a run add up to its
    time.
    """

    def __init__(self) -> None:
        self._tokens: dict[int, int] = {}
        self._since = time.perf_counter()
        self._spent, self._done = 0.0, 0

    def start(self, work: Work) -> None:
        """Start the clock for a piece of work."""
        self._tokens = {}
        for piece in work:
            self._tokens[piece.chunk.index] = piece.chunk.tokens * len(piece.candidates)
        self._since = time.perf_counter()

    def charge(self, chunk: Chunk) -> float:
        """Add the time since the last call, and return the cost of one result.

        Args:
            chunk: chunk of a result that has just come.
        """
        now = time.perf_counter()
        self._spent, self._since = self._spent + now - self._since, now
        self._done += self._tokens.pop(chunk.index, 0)
        return self._spent * chunk.tokens / max(1, self._done)
