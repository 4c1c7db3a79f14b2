"""Setting a damaged cache file aside, and finding what of it has yet to be copied back.

A kill may cut the copying short. So a file in quarantine counts as unsalvaged until a mark beside it says that all that
is sound in it stands, synced, in the cache: the next process to open the cache goes on, and `cache gc` leaves the file
alone until then. Copying twice does no harm.
"""

import contextlib
import time
from pathlib import Path

from prunesearch.store.files import sync

QUARANTINE = "quarantine"
FILE = "cache.db"
_SIDE_FILES = ("-journal", "-wal", "-shm")
_COPIED = "copied"
"""The mark."""


def quarantined(folder: Path) -> list[Path]:
    """The places of the damaged files of a cache folder, oldest first."""
    return sorted(path for path in (folder / QUARANTINE).glob("*") if path.is_dir())


def unsalvaged(folder: Path) -> list[Path]:
    """Those of `quarantined` that may hold entries which the cache lacks."""
    return [place for place in quarantined(folder) if (place / FILE).exists() and not (place / _COPIED).exists()]


def set_aside(folder: Path) -> Path:
    """Move a damaged file out of the way, and its journal with it; the place it went to."""
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
    """Let the journal follow its file, where a kill came between the two."""
    if (folder / FILE).exists():
        return  # what lies there belongs to the new file
    for suffix in _SIDE_FILES:
        with contextlib.suppress(FileNotFoundError):
            (folder / f"{FILE}{suffix}").replace(place / f"{FILE}{suffix}")


def mark_copied(place: Path) -> None:
    """Say that the cache holds all that is sound in a quarantined file."""
    (place / _COPIED).touch(mode=0o600)
    sync(place)
