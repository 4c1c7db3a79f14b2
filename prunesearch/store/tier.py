"""What the two tiers of the store have in common."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from prunesearch.store.alarms import Alarm
from prunesearch.store.entry import Entry

Found = dict[str, Entry]
"""Entries by their key's digest."""


@dataclass(frozen=True)
class Group:
    """Entries of one model and one kind of data, and their bytes."""

    model: str
    kind: str
    entries: int
    bytes: int


class Tier(Protocol):
    """A place where entries are kept."""

    name: str
    """Where it is, for people: without passwords."""

    def get(self, digests: Iterable[str]) -> Found:
        """The entries of those keys that there are; damaged ones are taken out and are not."""
        ...

    def put(self, entries: Iterable[Entry], *, merge: bool = False) -> Found:
        """Keep entries durably, in one transaction; return those that stand now."""
        ...

    def discard(self, digests: Iterable[str]) -> None:
        """Forget entries."""
        ...

    def scan(self) -> Iterator[tuple[str, Entry | None]]:
        """Every key and its entry; None where it is damaged."""
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

    def alarm(self, alarm: Alarm) -> None:
        """Keep an alarm."""
        ...

    def read_alarms(self) -> list[Alarm]:
        """What was found damaged or in disagreement, oldest first."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


def settle(there: Entry | None, new: Entry, *, merge: bool) -> tuple[Entry, Alarm | None]:
    """Which of two entries for a key stays.

    Args:
        there: the one in the store.
        merge: keep the one that was computed first, whatever came into the store first, so that the order in which
            stores are merged does not matter. Else the one that is there.

    Returns:
        The one that stays, and an alarm if they disagree.
    """
    if there is None:
        return new, None
    stays = min(there, new, key=lambda entry: entry.rank) if merge else there
    if stays is not there and stays.rank == there.rank:
        stays = there
    if there.agrees(new):
        return stays, None
    return stays, Alarm.disagreement(stays, there if stays is new else new)
