"""The tier on this machine's disk: one SQLite file in a folder that belongs to its user alone.

What is damaged is taken out, kept aside, reported and computed again; it is never served. A row is checked whenever it
is read; a file that SQLite cannot read is set aside whole, and what is sound in it is copied into a new one. A process
that dies while it copies leaves the rest to the next one that opens the cache.
"""

import itertools
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import diskcache
from filelock import FileLock

from prunesearch.errors import CorruptEntryError, UnavailableError
from prunesearch.store import faults, repair
from prunesearch.store.alarms import Alarm
from prunesearch.store.disk_file import DiskFile, reason, sound
from prunesearch.store.entry import Entry, unseal
from prunesearch.store.places import private_folder
from prunesearch.store.repair import FILE
from prunesearch.store.strict import StrictCache, inspect, is_damage
from prunesearch.store.tier import Found, Rule, settle

_BATCH = 1000  # rows copied in one transaction
_ATTEMPTS = 10  # at a file that other processes keep replacing
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
                    self._salvage_rest()
                    return self._opened()
                except (sqlite3.Error, diskcache.Timeout) as error:
                    if not is_damage(error):
                        if self._present() != inode:
                            continue  # another process has just replaced the file
                        raise
                self._replace(inode)
            return self._opened()
        except (sqlite3.Error, OSError, diskcache.Timeout) as error:
            raise UnavailableError(
                f"cannot open the cache in {self.name!r}: {reason(error)}; free space or mend the folder's rights, "
                "or give another --cache"
            ) from None

    def _opened(self) -> StrictCache:
        while True:
            inode = self._present()
            if inode is not None:
                inspect(self.file)
            cache = StrictCache(self.folder)
            if inode is None:
                inspect(self.file)  # which writes our schema's version
            if inode == self._present():
                self._inode = inode
                return cache
            cache.close()  # new, or replaced meanwhile: the connection must be to the file that is there now

    def get(self, digests: Iterable[str]) -> Found:
        """The entries of those keys that there are. A damaged one is taken out and is not there.

        Raises:
            UnavailableError: the file cannot be read.
        """
        found: Found = {}
        damaged = []
        for digest in digests:
            text = self._guarded("read", lambda digest=digest: self._row(digest, self._cache))  # type: ignore[misc]
            if text is not None:
                try:
                    found[digest] = unseal(digest, text)
                except CorruptEntryError:
                    damaged.append(digest)
        return found | self.take_out(damaged) if damaged else found

    def _row(self, digest: str, cache: StrictCache) -> object:
        try:
            return cache.get(digest, default=None, retry=False)
        except CorruptEntryError as error:
            return error
        except sqlite3.DataError as error:  # larger than a row may be
            return error

    def take_out(self, digests: Iterable[str]) -> Found:
        """Remove those of these entries that are damaged.

        Each is read again in the transaction that removes it: another process may have taken the damaged one out by
        now, and stored a sound one.

        Returns:
            The entries that were found sound.
        """
        given = list(digests)

        def remove() -> tuple[Found, list[Alarm]]:
            sound_ones, alarms = {}, []
            with self._cache.transact():
                for digest in given:
                    row = self._row(digest, self._cache)
                    if row is None:
                        continue
                    try:
                        sound_ones[digest] = unseal(digest, row)
                    except CorruptEntryError:
                        alarms.append(Alarm.damage(digest, row))
                        self._cache.delete(digest, retry=False)
            return sound_ones, alarms

        sound_ones, alarms = self._guarded("write", remove)
        self.damaged += len(alarms)
        for alarm in alarms:
            self._alarms.add(alarm)
        return sound_ones

    def put(self, entries: Iterable[Entry], rule: Rule = "first") -> Found:
        """Keep entries, in one transaction; on return they have been synced to disk.

        Returns:
            The entries that stand now, by digest.

        Raises:
            UnavailableError: the disk is full or read-only.
        """
        given = list(entries)
        standing, alarms = self._guarded("write", lambda: self._write(self._cache, given, rule))
        while self._moved():  # by a process that found the file damaged: what was written may be lost with it
            standing, alarms = self._guarded("write", lambda: self._write(self._cache, given, rule))
        for alarm in alarms:
            self._alarms.add(alarm)
        return standing

    def _write(self, cache: StrictCache, entries: Iterable[Entry], rule: Rule) -> tuple[Found, list[Alarm]]:
        """Put entries in one transaction; those that stand, and what must be reported."""
        standing: Found = {}
        alarms: list[Alarm] = []
        with cache.transact():
            for entry in entries:
                digest = entry.key.digest
                there, row = None, self._row(digest, cache)
                if row is not None:
                    try:
                        there = unseal(digest, row)
                    except CorruptEntryError:
                        alarms.append(Alarm.damage(digest, row))
                stays, alarm = settle(there, entry, rule)
                if stays is not there:
                    cache.set(digest, stays.sealed, tag="\n".join(stays.labels), retry=False)
                standing[digest] = stays
                alarms += [alarm] if alarm else []
        return standing, alarms

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
        self._cache = self._open()

    def alarm(self, alarm: Alarm) -> None:
        """Keep an alarm."""
        self._alarms.add(alarm)

    def _guarded(self, verb: str, action: Callable[[], _Result]) -> _Result:
        """Do something with the file, and once more if the file is damaged or another process has replaced it."""
        for attempt in range(_ATTEMPTS):
            if self._moved():
                self._cache = self._open()
            cache = self._cache
            with self.failures(verb):
                try:
                    return action()
                except (sqlite3.Error, diskcache.Timeout) as error:
                    cache.close()  # a failed COMMIT leaves its transaction open
                    replaced = self._moved() or self._cache is not cache  # the latter by another thread
                    if attempt + 1 == _ATTEMPTS or not (replaced or is_damage(error)):
                        raise
            if not replaced:
                self.rebuild()
        raise AssertionError("the last attempt returns or raises")

    def _present(self) -> int | None:
        try:
            return self.file.stat().st_ino
        except OSError:
            return None

    def _moved(self) -> bool:
        return self._present() != self._inode

    def _replace(self, inode: int | None) -> None:
        """Begin a new file in the place of a damaged one, unless another process has just done so."""
        with self._repairing():
            if self._present() == inode:
                self._set_aside()
            self._copy_back()

    def _salvage_rest(self) -> None:
        """Finish what a process was doing that died while it replaced a damaged file."""
        if repair.unsalvaged(self.folder):
            with self._repairing():
                self._copy_back()

    def _repairing(self) -> FileLock:
        return FileLock(self.folder / "repair.lock")

    def _set_aside(self) -> None:
        """Move the damaged file, with its journal, out of the way."""
        place = repair.set_aside(self.folder)
        self._alarms.add(Alarm.damage(FILE, f"moved to {place}"))

    def _copy_back(self) -> None:
        """Copy what is sound in the files that were set aside."""
        for place in repair.unsalvaged(self.folder):
            repair.complete(self.folder, place)
            fresh = self._opened()
            entries = sound(place / FILE)
            while batch := list(itertools.islice(entries, _BATCH)):
                self._write(fresh, batch, "earliest")
                faults.reach("mid_salvage", place.name)
            fresh.close()
            repair.mark_copied(place)

    def close(self) -> None:
        """Close this thread's connection."""
        self._cache.close()
