"""How the candidates of a generation are handed out to workers.

Neighbours in the order of paths share the longest prefixes, so candidates are handed out in
stretches of this order.
"""

from collections import deque
from dataclasses import dataclass, field

from prunesearch.candidate import LayerSubset
from prunesearch.objectives.base import Chunk, ChunkResult, ChunkWork, Work

_SHARE = 2  # a stretch is 1 / (this many times the number of workers) of what is left
Item = tuple[int, LayerSubset]
"""The index of a chunk, and a candidate that is scored on it."""


@dataclass
class Stretch:
    """Neighbouring candidates that one worker scores together.

    Attributes:
        work: chunks and candidates.
        deaths: number of workers in a row that died over the stretch before its first result.
        done: items that have a result.
    """

    work: Work
    deaths: int = 0
    done: set[Item] = field(default_factory=set)

    def note(self, result: ChunkResult) -> None:
        """Note that an item has its result."""
        self.done.add((result.chunk.index, result.candidate))
        self.deaths = 0

    def rest(self) -> "Stretch":
        """Return what is left of a stretch whose worker died."""
        left: list[ChunkWork] = []
        for piece in self.work:
            missing = []
            for candidate in piece.candidates:
                if (piece.chunk.index, candidate) not in self.done:
                    missing.append(candidate)
            if missing:
                left.append(ChunkWork(piece.chunk, missing))
        return Stretch(left, self.deaths)


class StretchQueue:
    """Hands out the candidates of a generation, each stretch smaller than the one before.

    This is guided self-scheduling (Polychronopoulos and Kuck, 1987). Long stretches at the start
    share long prefixes. Short ones at the end have all workers finish at the same time, also if
    one of them is slow. A worker gets a new stretch when it has finished the last one.

    Args:
        work: chunks and candidates.
        workers: number of workers.
        whole: hand out one stretch for each worker, because a pass through the blocks is expensive
            (the weights are streamed from disk).
    """

    def __init__(self, work: Work, workers: int, whole: bool = False) -> None:
        self._workers = workers
        self._first: deque[Stretch] = deque()
        self._items: deque[tuple[Chunk, LayerSubset]] = deque()
        if whole:
            self._first += [Stretch(share) for share in split(work, workers) if share]
            work = []
        for piece in work:
            for candidate in sorted(piece.candidates, key=lambda c: c.path):
                self._items.append((piece.chunk, candidate))
        self._cost = sum(_cost(*item) for item in self._items)

    def __bool__(self) -> bool:
        return bool(self._first or self._items)

    def put(self, stretch: Stretch) -> None:
        """Put a stretch in front of all others. It is handed out as it is."""
        self._first.append(stretch)

    def take(self) -> Stretch:
        """Take out the next stretch.

        Raises:
            IndexError: nothing is left.
        """
        if self._first:
            return self._first.popleft()
        # Take neighbours until they cost a share of all that is left.
        limit = self._cost / (_SHARE * self._workers)
        taken: list[tuple[Chunk, list[LayerSubset]]] = []
        cost = 0
        while not taken or (self._items and cost + _cost(*self._items[0]) <= limit):
            chunk, candidate = self._items.popleft()
            cost += _cost(chunk, candidate)
            if not taken or taken[-1][0] is not chunk:
                taken.append((chunk, []))
            taken[-1][1].append(candidate)
        self._cost -= cost
        return Stretch([ChunkWork(chunk, candidates) for chunk, candidates in taken])


def _cost(chunk: Chunk, candidate: LayerSubset) -> int:
    """Return the cost of an item, in blocks times tokens."""
    return len(candidate.kept) * max(1, chunk.tokens)


def split(work: Work, parts: int) -> list[Work]:
    """Split work into shares of about equal size.

    Each chunk's candidates are cut into stretches of neighbours, which keep about the same number
    of blocks. The first stretch of each chunk goes to another share, so that a few candidates on
    many chunks make work for all.
    """
    shares: list[list[ChunkWork]] = [[] for _ in range(parts)]
    for turn, piece in enumerate(work):
        # Cut the candidates, in the order of their paths, by the number of blocks that they keep.
        ordered = sorted(piece.candidates, key=lambda c: c.path)
        total, done, part = sum(len(c.kept) for c in ordered), 0, 0
        stretches: list[list[LayerSubset]] = [[] for _ in range(parts)]
        for candidate in ordered:
            stretches[part].append(candidate)
            done += len(candidate.kept)
            part = min(parts - 1, done * parts // total)
        # Hand the stretches to the shares, beginning with another share for each chunk.
        for part, stretch in enumerate(stretches):
            if stretch:
                shares[(part + turn) % parts].append(ChunkWork(piece.chunk, stretch))
    return list(shares)
