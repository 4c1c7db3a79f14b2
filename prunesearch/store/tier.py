"""What the two tiers of the store have in common."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from prunesearch.store.alarms import Alarm
from prunesearch.store.entry import Entry

Found = dict[str, Entry]
"""Entries by their key's digest."""


Rule = Literal["first", "earliest", "given"]
"""Which entry stays where a key has one already: the one that is there; the one that was computed earliest, whatever
came into the store first, so that the order in which stores are merged does not matter; or the one that is given,
because the tier that it comes from has the say."""


@dataclass(frozen=True)
class Group:
    """Entries of one model and one kind of data, and their bytes."""

    model: str
    kind: str
    entries: int
    bytes: int


class Readable(Protocol):
    """A place where entries are kept, to be looked at."""

    name: str
    """Where it is, for people: without passwords."""

    def scan(self) -> Iterator[tuple[str, Entry | None]]:
        """Every key and its entry, in the order of keys; None where it is damaged."""
        ...

    def groups(self) -> list[Group]:
        """Entries and bytes by model and kind of data."""
        ...

    def check(self) -> list[str]:
        """What the database finds wrong with itself."""
        ...

    def older_than(self, before: float) -> list[str]:
        """Digests of entries that were stored here before a time (seconds since 1970)."""
        ...

    def read_alarms(self) -> list[Alarm]:
        """What was found damaged or in disagreement, oldest first."""
        ...

    def __len__(self) -> int: ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class Tier(Readable, Protocol):
    """A place where entries are kept."""

    def get(self, digests: Iterable[str]) -> Found:
        """The entries of those keys that there are; damaged ones are taken out and are not."""
        ...

    def put(self, entries: Iterable[Entry], rule: Rule = "first") -> Found:
        """Keep entries durably, in one transaction; return those that stand now."""
        ...

    def take_out(self, digests: Iterable[str]) -> Found:
        """Remove those of these entries that are damaged by now; return those that are sound."""
        ...

    def discard(self, digests: Iterable[str]) -> None:
        """Forget entries."""
        ...

    def alarm(self, alarm: Alarm) -> None:
        """Keep an alarm."""
        ...


def settle(there: Entry | None, new: Entry, rule: Rule) -> tuple[Entry, Alarm | None]:
    """Which of two entries for a key stays, and an alarm if they disagree.

    Args:
        there: the one in the store.
    """
    if there is None or rule == "given":
        return new, None
    stays = new if rule == "earliest" and new.rank < there.rank else there
    if there.agrees(new):
        return stays, None
    return stays, Alarm.disagreement(stays, there if stays is new else new)
