"""The interface that both backends of the cache implement."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from prunesearch.cache.entry import Entry
from prunesearch.cache.incidents import Incident
from prunesearch.cache.keys import canonical_json

FoundEntries = dict[str, Entry]
"""Entries by their key's digest."""


SettleRule = Literal["first", "earliest", "given"]
"""Which of two entries of a key stays.

* "first": the entry that is stored already.
* "earliest": the entry that was computed first. So merging caches does not depend on their order.
* "given": the new entry, because it comes from the backend that decides.
"""


@dataclass(frozen=True)
class EntryGroup:
    """Number and size of the entries of one model and one kind of data."""

    model: str
    kind: str
    entries: int
    bytes: int


class Readable(Protocol):
    """A backend that can be read."""

    name: str
    """Location of the backend for messages, without passwords."""

    def scan(self) -> Iterator[tuple[str, Entry | None]]:
        """Yield every key and its entry, in the order of keys. A damaged entry is None."""
        ...

    def of_candidates(self, model: str, candidates: Sequence[str]) -> Iterator[Entry]:
        """Yield the sound entries of some candidates of a model.

        All entries are looked through, so this takes seconds in a large cache.

        Args:
            model: fingerprint of the model.
            candidates: canonical texts of the candidates.
        """
        ...

    def groups(self) -> list[EntryGroup]:
        """Count entries and bytes by model and kind of data."""
        ...

    def check(self) -> list[str]:
        """Return the faults that the database finds in its own file."""
        ...

    def older_than(self, before: float) -> list[str]:
        """Return the digests of entries that were stored before a time in seconds since 1970."""
        ...

    def read_incidents(self) -> list[Incident]:
        """Return all reports of damage and disagreement, oldest first."""
        ...

    def __len__(self) -> int: ...

    def close(self) -> None:
        """Close all connections."""
        ...


class CacheBackend(Readable, Protocol):
    """A backend that can be read and written."""

    def get(self, digests: Iterable[str]) -> FoundEntries:
        """Return the entries of those keys that are stored. Damaged entries are removed."""
        ...

    def put(self, entries: Iterable[Entry], rule: SettleRule = "first") -> FoundEntries:
        """Store entries durably, in one transaction. Return the entries that are stored now."""
        ...

    def take_out(self, digests: Iterable[str]) -> FoundEntries:
        """Remove those of these entries that are damaged. Return those that are sound."""
        ...

    def discard(self, digests: Iterable[str]) -> None:
        """Delete entries."""
        ...

    def report_incident(self, incident: Incident) -> None:
        """Store and log an incident."""
        ...


def words_of(candidate: str) -> str:
    """Return how the text of an entry names a candidate, to search for it.

    The pre-image is a JSON text in a JSON document.
    """
    named = canonical_json({"candidate": candidate})[1:-1]
    return canonical_json(named)[1:-1]


def settle(there: Entry | None, new: Entry, rule: SettleRule) -> tuple[Entry, Incident | None]:
    """Decide which of two entries of a key stays.

    Args:
        there: the entry in the cache, or None.
        new: the entry that is to be stored.
        rule: see `SettleRule`.

    Returns:
        The entry that stays, and an incident if the two disagree.
    """
    if there is None or rule == "given":
        return new, None
    kept, other = there, new
    if rule == "earliest" and new.rank < there.rank:
        kept, other = new, there
    if there.agrees(new):
        return kept, None
    return kept, Incident.disagreement(kept, other)
