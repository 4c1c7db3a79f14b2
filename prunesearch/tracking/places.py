"""Places: where each tracker writes, from the options `track` and `track_to`."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from prunesearch.cache.location import check_writable
from prunesearch.errors import InputError, either
from prunesearch.runtime.masking import masked_text, masked_url
from prunesearch.tracking.registry import REGISTRY, TrackerEntry

DEFAULT_FOLDER = Path("storage/tracking")
"""Folder in which each tracker gets a folder, if no place is given."""
_NAMED = re.compile(r"(?:^|,)(\w+)=")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")


@dataclass(frozen=True)
class TrackerPlace:
    """Where a tracker writes.

    Attributes:
        tracker: name of the tracker.
        where: folder or URI.
        remote: whether it is reached over a network.
        folder: folder of this machine that is written; None for a URI.
    """

    tracker: str
    where: str
    remote: bool = False
    folder: Path | None = None

    @property
    def shown(self) -> str:
        """The place, for a message."""
        return self.where if self.folder is not None else masked_url(self.where)


def parse_places(track: Sequence[str], track_to: str | None) -> list[TrackerPlace]:
    """Return the place of each tracker.

    Args:
        track: names of trackers.
        track_to: a folder, in which each tracker gets a folder; a URI; or places by tracker, as in
            ``mlflow=http://127.0.0.1:5000,tensorboard=runs``. None: `DEFAULT_FOLDER`.

    Raises:
        InputError: a tracker is unknown or named twice, or cannot write to its place.
    """
    entries = [REGISTRY.get(name) for name in track]
    for name in track:
        if track.count(name) > 1:
            raise InputError(f"`track` names {name} twice: name each tracker once")
    if track_to is None:
        return [_in_folder(entry, DEFAULT_FOLDER / entry.name) for entry in entries]
    if not track_to.strip():
        raise InputError("`track_to` is empty: give a folder or a URI, or leave it out")
    if not entries:
        raise InputError("`track_to` goes with `track`: name a tracker, or leave `track_to` out")
    named = _named_places(track_to)
    for name in named:
        if name not in track:
            raise InputError(f"`track_to` {name}=… goes with `track` {name}")
    places = []
    for entry in entries:
        # A folder for all trackers has a folder for each; a place by name is taken as it is.
        if named:
            given = named.get(entry.name, str(DEFAULT_FOLDER / entry.name))
            places.append(_place(entry, given))
        elif _SCHEME.match(track_to):
            places.append(_place(entry, track_to))
        else:
            places.append(_place(entry, str(Path(track_to) / entry.name)))
    return places


def _named_places(track_to: str) -> dict[str, str]:
    """Return the places of ``NAME=PLACE,NAME=PLACE``; nothing if the text has no name of a tracker.

    Raises:
        InputError: a tracker is named twice, or has no place.
    """
    known = REGISTRY.names()
    marks = [match for match in _NAMED.finditer(track_to) if match[1] in known]
    # A folder may have "=" in its name.
    if not marks or marks[0].start() != 0:
        return {}
    ends = [match.start() for match in marks[1:]] + [len(track_to)]
    named: dict[str, str] = {}
    for match, end in zip(marks, ends, strict=True):
        where = track_to[match.end() : end]
        if match[1] in named or not where:
            raise InputError(f"`track_to`: give {match[1]}=PLACE once, and with a place")
        named[match[1]] = where
    return named


def _place(entry: TrackerEntry, where: str) -> TrackerPlace:
    """Return the place of a tracker.

    Raises:
        InputError: the tracker cannot write to it, or it has a secret in it.
    """
    match = _SCHEME.match(where)
    if match is None:
        return _in_folder(entry, Path(where))
    # Other users of the machine can read command lines, and recipes are passed on.
    if masked_text(where) != where or "@" in where.partition("://")[2].partition("/")[0]:
        raise InputError(
            f"`track_to` {masked_url(where)} has a secret in it: leave it out, and set it in the "
            f"environment as {entry.label} reads it"
        )
    scheme = match[1].lower()
    if scheme not in entry.schemes:
        takes = either([f"{known}://…" for known in entry.schemes]) if entry.schemes else ""
        instead = f"a folder or {takes}" if takes else "a folder"
        raise InputError(
            f"`track_to` {where}: {entry.name} cannot write there: give {instead}, or name the "
            f"place of each tracker, as in {entry.name}=PLACE"
        )
    remote = scheme in entry.remote
    if remote and not _has_host(where):
        raise InputError(f"`track_to` {where} names no server: give {scheme}://SERVER")
    return TrackerPlace(entry.name, where, remote)


def _has_host(uri: str) -> bool:
    """Return whether a URI names a server, with a port that can be one."""
    try:
        parts = urlsplit(uri)
        return bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _in_folder(entry: TrackerEntry, folder: Path) -> TrackerPlace:
    return TrackerPlace(entry.name, str(folder), folder=folder)


def check_places(places: Sequence[TrackerPlace]) -> None:
    """Refuse trackers that cannot work, before a model is loaded. Nothing is imported or connected.

    Raises:
        InputError: a library is missing, or something that a server needs.
        StorageError: a folder cannot be written.
    """
    for place in places:
        entry = REGISTRY.get(place.tracker)
        entry.check_installed()
        if place.folder is None:
            entry.check(place.where)
            continue
        if place.folder.exists() and not place.folder.is_dir():
            raise InputError(f"`track_to` {place.where} is a file: give a folder")
        check_writable(place.folder)


def unused_variable(places: Sequence[TrackerPlace]) -> str | None:
    """Return a line about a server in the environment that is not used, because it was not asked
    for; None if there is none.
    """
    for place in places:
        for name in REGISTRY.get(place.tracker).variables:
            if os.environ.get(name) and place.folder is not None:
                return (
                    f"{name} is set, but {place.tracker} writes to {place.where}: a network is "
                    f"used only if track_to names a server"
                )
    return None
