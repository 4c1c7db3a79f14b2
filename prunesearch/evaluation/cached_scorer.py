"""Scoring through the store.

Known results are read from the store. Results that another process is computing are waited for. All
others are computed here and stored.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.keys import Key, evaluation_key
from prunesearch.cache.single_flight import SingleFlight
from prunesearch.candidate import LayerSubset
from prunesearch.errors import PruneSearchError, ScoringError, one_line
from prunesearch.evaluation import FAILURES
from prunesearch.execution.shared_forward import EvaluationCancelled
from prunesearch.objectives.base import Chunk, Scored, Work
from prunesearch.runtime import failpoints


class Scorer(Protocol):
    """Scores candidates, in this process or in worker processes."""

    workers: int
    """Number of candidates that are scored at once."""

    def score(self, work: Work, stopped: Callable[[], bool]) -> Iterator[Scored]:
        """Score candidates on chunks together, and yield each result as soon as it is known.

        Args:
            work: chunks and their candidates.
            stopped: function that returns True once nobody waits for the results.

        Raises:
            Stopped: `stopped` returned True.
        """
        ...


class CachedScorer:
    """Returns one model's results on chunks. All processes that share the store score each result
    once.

    Args:
        scorer: scorer of the results that are not known.
        store: evaluation cache.
        fingerprint: fingerprint of the dense model.
        stopped: function that returns True once nobody waits for the results.

    Attributes:
        tokens: number of tokens that candidates were scored on in this process.
    """

    def __init__(
        self, scorer: Scorer, store: EvaluationCache, fingerprint: str, stopped: Callable[[], bool]
    ) -> None:
        self.tokens = 0
        self._scorer, self._store, self._fingerprint, self._stopped = (
            scorer,
            store,
            fingerprint,
            stopped,
        )
        self._cost_meter = _CostMeter()

    def results(
        self, wanted: Iterable[tuple[Chunk, LayerSubset]]
    ) -> Iterator[tuple[Scored, float | None]]:
        """Get results of candidates on chunks: from the store, by scoring, or from another process.

        Yields:
            Each result as soon as it is known, with the seconds that the store saved. None instead
            of the seconds: it was scored here.

        Raises:
            Stopped: nobody waits for the results any more.
            UnavailableError: neither the local nor the shared part of the store works.
        """
        # Group what is requested by key. Chunks with equal content have the same key.
        left: defaultdict[Key, list[tuple[Chunk, LayerSubset]]] = defaultdict(list)
        sampled: list[tuple[Chunk, LayerSubset]] = []
        for chunk, candidate in wanted:
            if chunk.stored:
                left[self._key(candidate, chunk)].append((chunk, candidate))
            else:
                sampled.append((chunk, candidate))
        # Sampled texts are neither looked up nor stored.
        for pair in sampled:
            yield self._once(*pair), None
        with self._store.single_flight() as single_flight:
            while left:
                # Look the keys up, and lease those that nobody has computed or leased.
                found = single_flight.acquire(left)
                for key in list(left):
                    if key.digest not in found:
                        continue
                    entry = found[key.digest]
                    for chunk, candidate in left.pop(key):
                        yield (chunk.index, candidate, entry.value), entry.seconds
                # Score the leased keys.
                work = _work(left[key][0] for key in left if key.digest in single_flight.owned)
                self._cost_meter.start(work)
                for key, results in self._score(work, single_flight):
                    for chunk, candidate in left.pop(key):
                        yield (chunk.index, candidate, results), None
                # Wait for other processes if they have leased all keys that are left.
                if not work and left:
                    single_flight.wait(self._stopped)
                    if self._stopped():
                        raise EvaluationCancelled

    def _score(
        self, work: Work, single_flight: SingleFlight
    ) -> Iterator[tuple[Key, list[Any] | ScoringError]]:
        """Score candidates on chunks and store the results.

        If a pass with several candidates fails, each is scored alone, so that only the candidate
        that causes the failure fails.
        """
        left: dict[Key, tuple[Chunk, LayerSubset]] = {}
        chunks: dict[int, Chunk] = {}
        for chunk, asked in work:
            chunks[chunk.index] = chunk
            for candidate in asked:
                left[self._key(candidate, chunk)] = (chunk, candidate)
        failure = ""
        try:
            for index, candidate, results in (
                self._scorer.score(work, self._stopped) if work else ()
            ):
                key = self._key(candidate, chunks[index])
                kept = self._keep(key, chunks[index], results, single_flight)
                del left[key]
                if kept is not None:
                    yield key, kept
        except FAILURES as error:
            if isinstance(error, PruneSearchError) and not isinstance(error, ScoringError):
                raise
            failure = f"{type(error).__name__}: {one_line(error)}"
        # Handle the failure here and not in the `except` block. There, the error would still hold
        # the tensors of the pass that failed.
        candidates = dict.fromkeys(candidate for _, candidate in left.values())
        if failure and len(candidates) == 1:
            for key in left:
                single_flight.release([key])
                yield key, ScoringError(failure)
        elif failure:
            for alone in candidates:
                own = [pair for pair in left.values() if pair[1] == alone]
                yield from self._score(_work(own), single_flight)

    def _once(self, chunk: Chunk, candidate: LayerSubset) -> Scored:
        """Score a candidate on a chunk whose results are not stored, because they differ every
        time.
        """
        failure = "nothing was scored"
        try:
            for scored in self._scorer.score([(chunk, [candidate])], self._stopped):
                self.tokens += chunk.tokens
                return scored
        except FAILURES as error:
            if isinstance(error, PruneSearchError) and not isinstance(error, ScoringError):
                raise
            failure = f"{type(error).__name__}: {one_line(error)}"
        return chunk.index, candidate, ScoringError(failure)

    def _keep(
        self, key: Key, chunk: Chunk, results: list[Any] | ScoringError, single_flight: SingleFlight
    ) -> list[Any] | ScoringError | None:
        """Store results and return those that the store has now.

        Returns:
            The results. None: another process has taken over the key and is not done yet.
        """
        failpoints.hit("after_score", key.digest)
        if isinstance(results, ScoringError):
            single_flight.release([key])
            return results
        self.tokens += chunk.tokens
        stands = single_flight.commit(key, results, self._cost_meter.seconds(chunk))
        return None if stands is None else stands.value

    def _key(self, candidate: LayerSubset, chunk: Chunk) -> Key:
        return evaluation_key(self._fingerprint, candidate.canonical, chunk.identity)


def _work(pairs: Iterable[tuple[Chunk, LayerSubset]]) -> Work:
    """Group pairs by chunk, in the order of the chunks."""
    gathered: dict[int, tuple[Chunk, list[LayerSubset]]] = {}
    for chunk, candidate in pairs:
        gathered.setdefault(chunk.index, (chunk, []))[1].append(candidate)
    return [gathered[index] for index in sorted(gathered)]


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
        for chunk, candidates in work:
            self._tokens[chunk.index] = chunk.tokens * len(candidates)
        self._since = time.perf_counter()

    def seconds(self, chunk: Chunk) -> float:
        """Return the share of a candidate whose results have just come."""
        now = time.perf_counter()
        self._spent, self._since = self._spent + now - self._since, now
        self._done += self._tokens.pop(chunk.index, 0)
        return self._spent * chunk.tokens / max(1, self._done)
