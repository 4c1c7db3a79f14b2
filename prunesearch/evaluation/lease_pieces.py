"""Chooses which of the missing results this process leases and scores next.

Processes that want the same results share them. A process leases a piece, scores it, and comes back
for the next one, so each gets as much work as it has time for. The keys are in one order (by chunk,
then by path), and a piece is a stretch of it, because neighbours share the longest prefixes.

* Alone, a piece is an eighth of the missing keys, rounded up to whole chunks. A pass runs the
  candidates of one chunk, so this costs no shared prefix. With worker processes, or if the weights
  are streamed, a piece is everything, because these run all chunks together.
* With others, a piece is an equal share of the keys that are free. Each process begins at a place
  of its own, so that two do not ask for the same keys. If the weights are streamed, a piece is an
  equal share of all missing keys, so that each process makes one pass.

A process knows another one by the leases it holds, and by its announcement that it waits (see
`Leases.announce`). It forgets it after some calls in which it has not seen it.
"""

from collections.abc import Sequence

from prunesearch.cache.keys import Key
from prunesearch.cache.leases import Interest

_ALONE_PARTS = 8  # share of the missing keys that a process without others leases at once
_CALLS = 3  # number of calls after which a process that was not seen is forgotten


class LeasePieces:
    """Chooses the keys that are leased next.

    Args:
        workers: number of candidates that are scored at once.
        one_pass: True if a pass over the blocks is expensive, so that few should be made.
    """

    def __init__(self, workers: int, one_pass: bool) -> None:
        self._workers, self._one_pass = workers, one_pass
        self._order: list[str] = []
        self._chunks: list[int] = []
        # The number of calls since another process was last seen.
        self._unseen: dict[str, int] = {}
        self._rounds = 0

    @property
    def others(self) -> set[str]:
        """Owners of leases that want the same results as this process."""
        return set(self._unseen)

    def begin(self, order: Sequence[tuple[Key, int]]) -> None:
        """Begin a call.

        Args:
            order: the wanted keys in order, and the index of each key's chunk.
        """
        self._order = [key.digest for key, _ in order]
        self._chunks = [chunk for _, chunk in order]
        self._rounds = 0

    def note_found(self, found: int) -> None:
        """Note how many results were found in the cache.

        What is found after the first look was scored by others meanwhile, so these still exist.
        """
        self._rounds += 1
        if found and self._rounds > 1:
            self._unseen = dict.fromkeys(self._unseen, 0)

    def choose(self, free: set[str], interest: Interest) -> set[str]:
        """Choose the keys of the next piece.

        Args:
            free: digests of the missing keys that no process holds.
            interest: who holds the other missing keys, or waits for keys of this process.
        """
        # 1. Update what is known of other processes. A call in which a key is missing counts.
        if self._rounds == 0:
            self._age()
        self._unseen |= dict.fromkeys(interest.others, 0)
        if not free:
            return set()
        # 2. Choose a stretch of the free keys.
        if not self._unseen:
            return self._piece_alone(free)
        return self._piece_with_others(free, interest)

    def _age(self) -> None:
        """Forget the processes that were not seen for some calls."""
        aged = {owner: calls + 1 for owner, calls in self._unseen.items()}
        self._unseen = {owner: calls for owner, calls in aged.items() if calls <= _CALLS}

    def _piece_alone(self, free: set[str]) -> set[str]:
        if self._workers > 1 or self._one_pass:
            return free
        least = -(-len(free) // _ALONE_PARTS)
        piece: set[str] = set()
        last_chunk = -1
        for digest, chunk in zip(self._order, self._chunks, strict=True):
            if digest not in free:
                continue
            if len(piece) >= least and chunk != last_chunk:
                break
            piece.add(digest)
            last_chunk = chunk
        return piece

    def _piece_with_others(self, free: set[str], interest: Interest) -> set[str]:
        # Begin at the place of this process among all of them.
        everybody = sorted({interest.owner, *self._unseen})
        start = everybody.index(interest.owner) * len(self._order) // len(everybody)
        circle = self._order[start:] + self._order[:start]
        # An equal share of the free keys, or of all that are missing; one for each worker at least.
        shared = len(free)
        if self._one_pass:
            shared += len(interest.holders)
        most = max(self._workers, -(-shared // len(everybody)))
        return set([digest for digest in circle if digest in free][:most])
