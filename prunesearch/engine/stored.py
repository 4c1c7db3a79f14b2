"""Scoring through the store: what is known is looked up, what others are scoring is waited for, the rest is scored."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from prunesearch.candidate import LayerSubset
from prunesearch.engine import FAILURES
from prunesearch.errors import PruneSearchError, ScoringError, one_line
from prunesearch.scoring.forward import Stopped
from prunesearch.scoring.objectives import Chunk, Scored, Work
from prunesearch.store import faults
from prunesearch.store.evaluations import EvaluationStore
from prunesearch.store.flight import Flight
from prunesearch.store.keys import Key, evaluation_key


class Scorer(Protocol):
    """Does the work: in this process, or in several of its own."""

    workers: int
    """How many candidates it scores at once."""

    def score(self, work: Work, stopped: Callable[[], bool]) -> Iterator[Scored]:
        """Score candidates on chunks together; raise `Stopped` when nobody waits any more."""
        ...


class StoredScorer:
    """Gives one model's results on chunks, each scored once by all that share the store.

    Args:
        stopped: whether nobody waits any more.

    Attributes:
        tokens: tokens that candidates were scored on here.
    """

    def __init__(self, scorer: Scorer, store: EvaluationStore, fingerprint: str, stopped: Callable[[], bool]) -> None:
        self.tokens = 0
        self._scorer, self._store, self._fingerprint, self._stopped = scorer, store, fingerprint, stopped
        self._pace = _Pace()

    def results(self, wanted: Iterable[tuple[Chunk, LayerSubset]]) -> Iterator[tuple[Scored, float | None]]:
        """Results of candidates on chunks: from the store, by scoring, or from whoever else is scoring them now.

        Yields:
            Each as it is known, with the seconds that the store saved, or None where it was scored here.

        Raises:
            Stopped: nobody waits any more.
            UnavailableError: no tier of the store works.
        """
        left: defaultdict[Key, list[tuple[Chunk, LayerSubset]]] = defaultdict(list)
        sampled: list[tuple[Chunk, LayerSubset]] = []
        for chunk, candidate in wanted:
            if chunk.stored:
                left[self._key(candidate, chunk)].append((chunk, candidate))  # chunks of equal content have one key
            else:
                sampled.append((chunk, candidate))
        for pair in sampled:
            yield self._once(*pair), None
        with self._store.flight() as flight:
            while left:
                found = flight.claim(left)
                for key in [key for key in left if key.digest in found]:
                    entry = found[key.digest]
                    for chunk, candidate in left.pop(key):
                        yield (chunk.index, candidate, entry.value), entry.seconds
                work = _work(left[key][0] for key in left if key.digest in flight.mine)
                self._pace.start(work)
                for key, results in self._score(work, flight):
                    for chunk, candidate in left.pop(key):
                        yield (chunk.index, candidate, results), None
                if not work and left:
                    flight.wait(self._stopped)
                    if self._stopped():
                        raise Stopped

    def _score(self, work: Work, flight: Flight) -> Iterator[tuple[Key, list[Any] | ScoringError]]:
        """Score candidates on chunks and keep the results.

        What fails for several together is tried one by one, so that a failure is its own candidate's.
        """
        left = {self._key(c, chunk): (chunk, c) for chunk, candidates in work for c in candidates}
        chunks = {chunk.index: chunk for chunk, _ in work}
        failure = ""
        try:
            for index, candidate, results in self._scorer.score(work, self._stopped) if work else ():
                key = self._key(candidate, chunks[index])
                kept = self._keep(key, chunks[index], results, flight)
                del left[key]
                if kept is not None:
                    yield key, kept
        except FAILURES as error:
            if isinstance(error, PruneSearchError) and not isinstance(error, ScoringError):
                raise
            failure = f"{type(error).__name__}: {one_line(error)}"
        # Outside the handler: until it is left, the error keeps the tensors of the pass that failed.
        candidates = dict.fromkeys(candidate for _, candidate in left.values())
        if failure and len(candidates) == 1:
            for key in left:
                flight.give_back([key])
                yield key, ScoringError(failure)
        elif failure:
            for alone in candidates:
                yield from self._score(_work(pair for pair in left.values() if pair[1] == alone), flight)

    def _once(self, chunk: Chunk, candidate: LayerSubset) -> Scored:
        """Score what is not stored, since the next time it would come out otherwise."""
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
        self, key: Key, chunk: Chunk, results: list[Any] | ScoringError, flight: Flight
    ) -> list[Any] | ScoringError | None:
        """Store results; the ones that stand, or None where another process has taken over and is not done yet."""
        faults.reach("after_score", key.digest)
        if isinstance(results, ScoringError):
            flight.give_back([key])
            return results
        self.tokens += chunk.tokens
        stands = flight.commit(key, results, self._pace.seconds(chunk))
        return None if stands is None else stands.value

    def _key(self, candidate: LayerSubset, chunk: Chunk) -> Key:
        return evaluation_key(self._fingerprint, candidate.canonical, chunk.identity)


def _work(pairs: Iterable[tuple[Chunk, LayerSubset]]) -> Work:
    """Pairs by chunk, in the chunks' order."""
    gathered: dict[int, tuple[Chunk, list[LayerSubset]]] = {}
    for chunk, candidate in pairs:
        gathered.setdefault(chunk.index, (chunk, []))[1].append(candidate)
    return [gathered[index] for index in sorted(gathered)]


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
