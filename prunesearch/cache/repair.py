"""Moves a damaged cache file to quarantine, and finds files that were not copied back completely.

A process may be killed while it copies the entries. So a file in quarantine counts as unsalvaged
until a marker file next to it shows that all its sound entries are in the cache and synced to disk.
Until then the next process that opens the cache continues, and `cache gc` does not delete the file.
Entries that are copied twice do no harm.
"""

import contextlib
import time
from pathlib import Path

from prunesearch.cache.files import sync

QUARANTINE = "quarantine"
FILE = "cache.db"
_SIDE_FILES = ("-journal", "-wal", "-shm")
_COPIED = "copied"
"""Name of the marker file."""


def quarantined(folder: Path) -> list[Path]:
    """Return the folders of the damaged files of a cache, oldest first."""
    return sorted(path for path in (folder / QUARANTINE).glob("*") if path.is_dir())


def unsalvaged(folder: Path) -> list[Path]:
    """Return those of `quarantined` that may hold entries which the cache lacks."""
    location = []
    for place in quarantined(folder):
        if (place / FILE).exists() and not (place / _COPIED).exists():
            location.append(place)
    return location


def set_aside(folder: Path) -> Path:
    """Move a damaged file and its journal to quarantine, and return their folder there."""
    # Files of the same second get a number.
    stem = time.strftime("%Y%m%dT%H%M%S")
    place = folder / QUARANTINE / stem
    number = 0
    while place.exists():
        number += 1
        place = place.with_name(f"{stem}-{number:03}")
    place.mkdir(parents=True, mode=0o700)
    (folder / FILE).replace(place / FILE)
    complete(folder, place)
    return place


def complete(folder: Path, place: Path) -> None:
    """Move the journal to its file, if a process was killed after it had moved the file alone."""
    # A journal next to a new file belongs to the new file.
    if (folder / FILE).exists():
        return
    for suffix in _SIDE_FILES:
        with contextlib.suppress(FileNotFoundError):
            (folder / f"{FILE}{suffix}").replace(place / f"{FILE}{suffix}")


def mark_copied(place: Path) -> None:
    """Mark a file in quarantine: the cache holds all its sound entries."""
    (place / _COPIED).touch(mode=0o600)
    sync(place)
