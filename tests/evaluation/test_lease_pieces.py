"""Pieces: what a process leases next, alone and with others that want the same results."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.keys import Key
from prunesearch.cache.leases import Interest
from prunesearch.candidate import LayerSubset
from prunesearch.evaluation.cached_scorer import CachedResults
from prunesearch.evaluation.lease_pieces import LeasePieces
from prunesearch.execution.cancellation import EvaluationCancelled
from prunesearch.objectives.base import Chunk, ChunkResult, Work

Requests = list[tuple[Chunk, LayerSubset]]
CHUNKS = [Chunk(index, {"kind": "toy", "part": index}, 16) for index in range(2)]
KEYS = [Key(f"{number:064}", "") for number in range(8)]


def chosen(
    pieces: LeasePieces,
    holders: dict[int, str],
    waiting: frozenset[str] = frozenset(),
    chunks: int = 1,
    owner: str = "b",
) -> list[int]:
    """The numbers of the keys that the first piece of a call holds."""
    order = [(key, number * chunks // len(KEYS)) for number, key in enumerate(KEYS)]
    pieces.begin(order)
    held = {KEYS[number].digest: other for number, other in holders.items()}
    free = {key.digest for key in KEYS} - set(held)
    found = pieces.choose(free, Interest(owner, held, waiting))
    return sorted(int(digest) for digest in found)


def test_alone_a_piece_is_a_whole_chunk_and_with_workers_or_streamed_weights_everything() -> None:
    assert chosen(LeasePieces(1, one_pass=False), {}, chunks=4) == [0, 1]
    assert chosen(LeasePieces(1, one_pass=False), {}, chunks=1) == list(range(8))
    assert chosen(LeasePieces(2, one_pass=False), {}, chunks=4) == list(range(8))
    assert chosen(LeasePieces(1, one_pass=True), {}, chunks=4) == list(range(8))


def test_with_others_a_piece_is_a_share_from_a_place_of_its_own() -> None:
    waited = frozenset("b")
    assert chosen(LeasePieces(1, one_pass=False), {}, waited, owner="a") == [0, 1, 2, 3]
    assert chosen(LeasePieces(1, one_pass=False), {}, frozenset("a")) == [4, 5, 6, 7]
    # The share is one of the free keys, but each worker gets one.
    held = {0: "a", 1: "a", 4: "a", 5: "a", 6: "a"}
    assert chosen(LeasePieces(1, one_pass=False), held) == [2, 7]
    assert chosen(LeasePieces(3, one_pass=False), held) == [2, 3, 7]
    # With streamed weights it is one of all missing keys, so that nobody makes a second pass.
    assert chosen(LeasePieces(1, one_pass=True), held) == [2, 3, 7]
    everything = dict.fromkeys(range(8), "a")
    assert chosen(LeasePieces(1, one_pass=False), everything) == []


def test_another_process_is_forgotten_once_it_was_not_seen_for_some_calls() -> None:
    pieces = LeasePieces(1, one_pass=False)
    assert len(chosen(pieces, {}, frozenset("a"))) == 4
    sizes = []
    for _ in range(4):
        sizes.append(len(chosen(pieces, {})))
    assert sizes == [4, 4, 4, 8]
    # It counts as seen if results come that this process has not scored.
    assert len(chosen(pieces, {}, frozenset("a"))) == 4
    for _ in range(6):
        pieces.note_found(0)
        pieces.note_found(3)
        assert len(chosen(pieces, {})) == 4


class Counting:
    """A scorer that notes the candidates of every pass."""

    workers = 1

    def __init__(self) -> None:
        self.passes: list[list[LayerSubset]] = []

    def score(self, work: Work, cancelled: Callable[[], bool]) -> Iterator[ChunkResult]:
        """Score the candidates of a pass."""
        self.passes.append([candidate for piece in work for candidate in piece.candidates])
        for piece in work:
            for candidate in piece.candidates:
                yield ChunkResult(piece.chunk, candidate, [[float(candidate.dropped[0])]])


def generation(number: int) -> Requests:
    """Four candidates on the first chunk."""
    subsets = [LayerSubset.of(40, [4 * number + i]) for i in range(4)]
    return [(CHUNKS[0], candidate) for candidate in subsets]


@pytest.mark.parametrize("backend", ["folder", "sqlite", "postgresql"])
def test_equal_searches_share_a_generation_once_they_know_each_other(
    tmp_path: Path, backend: str, request: pytest.FixtureRequest
) -> None:
    places = [str(tmp_path / "cache")] * 2
    if backend != "folder":
        url = f"sqlite:///{tmp_path}/cache.db"
        if backend == "postgresql":
            url = request.getfixturevalue("database")
        places = [f"{tmp_path / name},{url}" for name in ("a", "b")]
    with EvaluationCache(places[0]) as ours, EvaluationCache(places[1]) as theirs:
        first, second = Counting(), Counting()
        one = CachedResults(first, ours, "f" * 64, lambda: False)
        two = CachedResults(second, theirs, "f" * 64, lambda: False)
        two.waits = False
        # 1. The first process has leased the whole generation; the second finds nothing to do.
        running = one.get(generation(0))
        next(running)
        with pytest.raises(EvaluationCancelled):
            list(two.get(generation(0)))
        assert len(list(running)) == 3
        # 2. The next generation is shared.
        running = one.get(generation(1))
        found = [next(running)]
        with pytest.raises(EvaluationCancelled):
            list(two.get(generation(1)))
        found += running
        assert [len(candidates) for candidates in first.passes] == [4, 2]
        assert [len(candidates) for candidates in second.passes] == [1, 1]
        assert {result.candidate for result in found} == {c for _, c in generation(1)}
        assert (one.scored, two.scored) == (6, 2), "nothing was scored twice"
