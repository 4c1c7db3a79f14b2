"""The tier on this machine's disk: one SQLite file in a folder that belongs to its user alone.

What is damaged is taken out, kept aside, reported and computed again; it is never served. A row is checked whenever it
is read; a file that SQLite cannot read is set aside whole, and what is sound in it is copied into a new one.
"""

import contextlib
import functools
import itertools
import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import diskcache
from filelock import FileLock

from prunesearch.errors import CorruptEntryError, UnavailableError
from prunesearch.store.alarms import Alarm
from prunesearch.store.disk_file import FILE, DiskFile, reason, sound
from prunesearch.store.entry import Entry, unseal
from prunesearch.store.places import private_folder
from prunesearch.store.strict import StrictCache, inspect, is_damage
from prunesearch.store.tier import Found, Rule, settle

_BATCH = 1000  # rows copied in one transaction
_ATTEMPTS = 3
_Result = TypeVar("_Result")


class DiskTier(DiskFile):
    """Entries by key in a folder.

    Args:
        folder: made (mode 0700) if it is not there.

    Attributes:
        damaged: entries that were found damaged and taken out.

    Raises:
        StorageError: the folder cannot be made, others could write to it, it lies on a network file system, or its file
            is of a newer schema.
        UnavailableError: the disk is full or read-only.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.damaged = 0
        private_folder(folder)
        self._cache = self._open()

    def _open(self) -> StrictCache:
        try:
            for _ in range(_ATTEMPTS):
                inode = self._present()
                try:
                    return self._opened()
                except sqlite3.Error as error:
                    if not is_damage(error):
                        raise
                self._replace(inode)
            return self._opened()
        except (sqlite3.Error, OSError, diskcache.Timeout) as error:
            raise UnavailableError(
                f"cannot open the cache in {self.name!r}: {reason(error)}; free space or mend the folder's rights, "
                "or give another --cache"
            ) from None

    def _opened(self) -> StrictCache:
        known = self.file.exists()
        if known:
            inspect(self.file)
        cache = StrictCache(self.folder)
        if not known:
            inspect(self.file)  # which writes our schema's version
        self._inode = self.file.stat().st_ino
        return cache

    def get(self, digests: Iterable[str]) -> Found:
        """The entries of those keys that there are. A damaged one is taken out and is not there.

        Raises:
            UnavailableError: the file cannot be read.
        """
        found: Found = {}
        for digest in digests:
            text = self._guarded("read", functools.partial(self._row, digest))
            if text is not None:
                try:
                    found[digest] = unseal(digest, text)
                except CorruptEntryError:
                    self._take_out(digest, text)
        return found

    def _row(self, digest: str) -> object:
        try:
            return self._cache.get(digest, default=None, retry=False)
        except CorruptEntryError as error:
            return error
        except sqlite3.DataError as error:  # larger than a row may be
            return error

    def _take_out(self, digest: str, found: object) -> None:
        self.damaged += 1
        self._alarms.add(Alarm.damage(digest, found))
        self.discard([digest])

    def put(self, entries: Iterable[Entry], rule: Rule = "first") -> Found:
        """Keep entries, in one transaction; on return they have been synced to disk.

        Returns:
            The entries that stand now, by digest.

        Raises:
            UnavailableError: the disk is full or read-only.
        """
        given = list(entries)

        def write() -> tuple[Found, list[Alarm]]:
            standing, alarms = {}, []
            with self._cache.transact():
                for entry in given:
                    there, row = None, self._row(entry.key.digest)
                    if row is not None:
                        try:
                            there = unseal(entry.key.digest, row)
                        except CorruptEntryError:
                            alarms.append(Alarm.damage(entry.key.digest, row))
                    stays, alarm = settle(there, entry, rule)
                    if stays is not there:
                        self._cache.set(entry.key.digest, stays.sealed, tag="\n".join(stays.labels), retry=False)
                    standing[entry.key.digest] = stays
                    alarms += [alarm] if alarm else []
            return standing, alarms

        standing, alarms = self._guarded("write", write)
        while self._moved():  # by a process that found the file damaged: what was written may be lost with it
            self._cache = self._open()
            standing, alarms = self._guarded("write", write)
        for alarm in alarms:
            self._alarms.add(alarm)
        return standing

    def discard(self, digests: Iterable[str]) -> None:
        """Forget entries."""
        given = list(digests)

        def delete() -> None:
            with self._cache.transact():
                for digest in given:
                    self._cache.delete(digest, retry=False)

        self._guarded("write", delete)

    def rebuild(self) -> None:
        """Set the file aside and begin a new one with what is sound in it."""
        with self.failures("write"):
            self._cache.close()
            self._replace(self._inode)
            self._cache = self._opened()

    def alarm(self, alarm: Alarm) -> None:
        """Keep an alarm."""
        self._alarms.add(alarm)

    def _guarded(self, verb: str, action: Callable[[], _Result]) -> _Result:
        """Do something with the file; if it is damaged, set it aside and do it with a new one."""
        if self._moved():
            self._cache = self._open()
        with self.failures(verb):
            try:
                return action()
            except sqlite3.Error as error:
                if not is_damage(error):
                    self._cache.close()  # a failed COMMIT leaves its transaction open
                    raise
            self.rebuild()
            return action()

    def _present(self) -> int | None:
        try:
            return self.file.stat().st_ino
        except OSError:
            return None

    def _moved(self) -> bool:
        return self._present() != self._inode

    def _replace(self, inode: int | None) -> None:
        """Begin a new file in the place of a damaged one, unless another process has just done so."""
        with FileLock(self.folder / "repair.lock"):
            if self._present() == inode:
                aside = self._set_aside()
                fresh = self._opened()
                self._salvage(fresh, aside)
                fresh.close()

    def _set_aside(self) -> Path:
        """Move the damaged file, with its journal, out of the way."""
        place = self.folder / "quarantine" / time.strftime("%Y%m%dT%H%M%S")
        number = 0
        while place.exists():
            number += 1
            place = place.with_name(f"{place.name.partition('-')[0]}-{number}")
        place.mkdir(parents=True, mode=0o700)
        for suffix in ("-journal", "-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.file}{suffix}").replace(place / (FILE + suffix))
        self._alarms.add(Alarm.damage(FILE, f"moved to {place}"))
        return place / FILE

    def _salvage(self, cache: StrictCache, aside: Path) -> None:
        """Copy what is sound in a damaged file."""
        entries = sound(aside)
        while batch := list(itertools.islice(entries, _BATCH)):
            with cache.transact():
                for entry in batch:
                    cache.add(entry.key.digest, entry.sealed, tag="\n".join(entry.labels), retry=False)

    def close(self) -> None:
        """Close this thread's connection."""
        self._cache.close()
