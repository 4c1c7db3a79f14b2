"""Scoring through the cache: what is asked for again, and what fails."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.candidate import LayerSubset
from prunesearch.evaluation.cached_scorer import CachedResults
from prunesearch.objectives.base import Chunk, ChunkResult, Work

CHUNKS = [Chunk(index, {"kind": "toy", "part": index}, 16) for index in range(2)]
FIRST, SECOND = LayerSubset.of(4, [1]), LayerSubset.of(4, [2])


class ForgetfulScorer:
    """A scorer that returns no result for one candidate, and notes all candidates it is given."""

    workers = 1

    def __init__(self, forgotten: LayerSubset | None) -> None:
        self.forgotten = forgotten
        self.scored: list[LayerSubset] = []

    def score(self, work: Work, cancelled: Callable[[], bool]) -> Iterator[ChunkResult]:
        """Score all candidates but one."""
        for piece in work:
            for candidate in piece.candidates:
                self.scored.append(candidate)
                if candidate != self.forgotten:
                    yield ChunkResult(piece.chunk, candidate, [[float(candidate.dropped[0])]])


@pytest.mark.parametrize("cacheable", [True, False])
def test_a_candidate_without_a_result_fails_and_is_not_scored_for_ever(
    tmp_path: Path, cacheable: bool
) -> None:
    scorer = ForgetfulScorer(SECOND)
    chunks = [replace(chunk, cacheable=cacheable) for chunk in CHUNKS]
    wanted = [(chunk, candidate) for chunk in chunks for candidate in (FIRST, SECOND)]
    with EvaluationCache(tmp_path / "cache") as cache:
        results = CachedResults(scorer, cache, "f" * 64, lambda: False)
        found = list(results.get(wanted))
        for result in found:
            if result.candidate == FIRST:
                assert (result.error, list(result.rows)) == (None, [[1.0]])
                continue
            assert str(result.error) == (
                f"the objective returned no result for layer 2 on chunk {result.chunk.index}"
            )
        assert len(found) == 4
        assert len(scorer.scored) == 4
        # The keys are free again: a scorer that returns the results is asked for them.
        scorer.forgotten = None
        again = list(results.get(wanted))
    assert [result.error for result in again] == [None] * 4
    assert scorer.scored[4:] == ([SECOND] * 2 if cacheable else [FIRST, SECOND] * 2)
