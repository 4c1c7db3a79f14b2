"""How candidates are handed out: neighbours together, ever fewer, and what is left of a stretch."""

import itertools

import pytest

from prunesearch.candidate import LayerSubset
from prunesearch.evaluation.stretches import Item, Stretch, StretchQueue
from prunesearch.objectives.base import Chunk, ChunkResult, ChunkWork, Work

CANDIDATES = [LayerSubset.of(8, pair) for pair in itertools.combinations(range(8), 2)]
WORK = [ChunkWork(Chunk(index, {}, 16), CANDIDATES) for index in range(2)]


def items(work: Work) -> list[Item]:
    return [(piece.chunk.index, candidate) for piece in work for candidate in piece.candidates]


def stretches(queue: StretchQueue) -> list[Stretch]:
    taken = []
    while queue:
        taken.append(queue.take())
    return taken


def test_stretches_are_neighbours_and_become_shorter() -> None:
    taken = stretches(StretchQueue(WORK, 3))
    handed = [item for stretch in taken for item in items(stretch.work)]
    assert handed == [
        (chunk, c) for chunk in (0, 1) for c in sorted(CANDIDATES, key=lambda c: c.path)
    ]
    sizes = [len(items(stretch.work)) for stretch in taken]
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (len(handed) // 6, 1)


def test_few_candidates_on_many_chunks_make_work_for_all() -> None:
    work = [ChunkWork(Chunk(index, {}, 16), CANDIDATES[:1]) for index in range(16)]
    taken = stretches(StretchQueue(work, 2))
    assert [len(stretch.work) for stretch in taken[:3]] == [4, 3, 2]
    assert sum(len(stretch.work) for stretch in taken) == 16


def test_streamed_weights_are_passed_once_by_each_worker() -> None:
    taken = stretches(StretchQueue(WORK, 3, whole=True))
    assert len(taken) == 3
    assert sorted(item for stretch in taken for item in items(stretch.work)) == sorted(items(WORK))


def test_the_rest_of_a_stretch_comes_first_and_counts_deaths_without_a_result() -> None:
    queue = StretchQueue(WORK, 1)
    stretch = queue.take()
    first, *others = items(stretch.work)
    stretch.deaths = 2
    assert stretch.rest().deaths == 2
    stretch.note(ChunkResult(WORK[0].chunk, first[1], [[1.0]]))
    rest = stretch.rest()
    assert (items(rest.work), rest.deaths) == (others, 0)
    queue.put(rest)
    assert queue.take() is rest


def test_nothing_is_handed_out_twice() -> None:
    queue = StretchQueue([], 4)
    assert not queue
    with pytest.raises(IndexError):
        queue.take()
