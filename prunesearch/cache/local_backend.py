"""The backend on this machine's disk: one SQLite file in a folder that belongs to its user alone.

A damaged entry is never returned. It is removed, reported and computed again. Every row is checked
when it is read. A file that SQLite cannot read is moved to quarantine as a whole, and its sound
entries are copied into a new file. If a process dies while it copies, the next process that opens
the cache continues.
"""

import itertools
import sqlite3
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

import diskcache
from filelock import FileLock

from prunesearch.cache import repair
from prunesearch.cache.backend import FoundEntries, SettleRule, settle
from prunesearch.cache.cache_file import DiskFile, reason, sound
from prunesearch.cache.entry import Entry, parse_entry
from prunesearch.cache.hardening import HardenedCache, inspect, is_damage
from prunesearch.cache.incidents import Incident
from prunesearch.cache.location import private_folder
from prunesearch.cache.repair import FILE
from prunesearch.errors import CorruptEntryError, UnavailableError
from prunesearch.runtime import failpoints

_BATCH = 1000  # number of rows that are copied in one transaction
_ATTEMPTS = 10  # attempts at a file that other processes keep replacing
_Result = TypeVar("_Result")


class LocalBackend(DiskFile):
    """Stores entries by key in a folder.

    Args:
        folder: folder of the cache. It is made with mode 0700 if it does not exist.

    Attributes:
        damaged: number of entries that were found damaged and removed.

    Raises:
        StorageError: the folder cannot be made, others can write to it, it lies on a network file
            system, or its file has a newer schema.
        UnavailableError: the disk is full or read-only.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.damaged = 0
        private_folder(folder)
        self._cache = self._open()

    def _open(self) -> HardenedCache:
        try:
            for _ in range(_ATTEMPTS):
                inode = self._present()
                try:
                    self._salvage_rest()
                    return self._opened()
                except (sqlite3.Error, diskcache.Timeout) as error:
                    if not is_damage(error):
                        # Try again if another process has just replaced the file.
                        if self._present() != inode:
                            continue
                        raise
                self._replace(inode)
            return self._opened()
        except (sqlite3.Error, OSError, diskcache.Timeout) as error:
            raise UnavailableError(
                f"cannot open the cache in {self.name!r}: {reason(error)}; free space or fix the "
                f"folder's rights, "
                "or give another `cache`"
            ) from None

    def _opened(self) -> HardenedCache:
        while True:
            inode = self._present()
            if inode is not None:
                inspect(self.file)
            cache = HardenedCache(self.folder)
            # A new file gets the version of the schema.
            if inode is None:
                inspect(self.file)
            # The connection must be to the file that exists now. If the file is new, or another
            # process has replaced it meanwhile, open it again.
            if inode == self._present():
                self._inode = inode
                return cache
            cache.close()

    def get(self, digests: Iterable[str]) -> FoundEntries:
        """Return the entries of those keys that are stored. Damaged entries are removed.

        Raises:
            UnavailableError: the file cannot be read.
        """
        found: FoundEntries = {}
        damaged = []
        for digest in digests:
            text = self._guarded("read", partial(self._read, digest))
            if text is not None:
                try:
                    found[digest] = parse_entry(digest, text)
                except CorruptEntryError:
                    damaged.append(digest)
        if damaged:
            # Another process may have replaced a damaged entry by a sound one meanwhile.
            found |= self.take_out(damaged)
        return found

    def _read(self, digest: str) -> object:
        # `_guarded` may open the file again before it repeats this, so the cache is looked up here.
        return self._row(digest, self._cache)

    def _row(self, digest: str, cache: HardenedCache) -> object:
        # An error in the place of the text makes `parse_entry` refuse the row.
        try:
            return cache.get(digest, default=None, retry=False)
        except CorruptEntryError as error:
            return error
        except sqlite3.DataError as error:  # the row is larger than a row may be
            return error

    def take_out(self, digests: Iterable[str]) -> FoundEntries:
        """Remove those of these entries that are damaged.

        Each entry is read again in the transaction that removes it. Another process may have
        removed the damaged entry meanwhile, and stored a sound one.

        Returns:
            The entries that were found sound.
        """
        given = list(digests)

        def remove() -> tuple[FoundEntries, list[Incident]]:
            sound_ones, incidents = {}, []
            with self._cache.transact():
                for digest in given:
                    row = self._row(digest, self._cache)
                    if row is None:
                        continue
                    try:
                        sound_ones[digest] = parse_entry(digest, row)
                    except CorruptEntryError:
                        incidents.append(Incident.damage(digest, row))
                        self._cache.delete(digest, retry=False)
            return sound_ones, incidents

        sound_ones, incidents = self._guarded("write", remove)
        self.damaged += len(incidents)
        for incident in incidents:
            self._incidents.add(incident)
        return sound_ones

    def put(self, entries: Iterable[Entry], rule: SettleRule = "first") -> FoundEntries:
        """Store entries in one transaction. On return they have been synced to disk.

        Returns:
            The entries that are stored now, by digest.

        Raises:
            UnavailableError: the disk is full or read-only.
        """
        given = list(entries)
        stored, incidents = self._guarded("write", lambda: self._write(self._cache, given, rule))
        # A process that found the file damaged may have replaced it meanwhile. The entries may be
        # lost with the old file, so write them again.
        while self._moved():
            stored, incidents = self._guarded(
                "write", lambda: self._write(self._cache, given, rule)
            )
        for incident in incidents:
            self._incidents.add(incident)
        return stored

    def _write(
        self, cache: HardenedCache, entries: Iterable[Entry], rule: SettleRule
    ) -> tuple[FoundEntries, list[Incident]]:
        """Write entries in one transaction.

        Returns:
            The entries that are stored now, and the incidents to report.
        """
        stored: FoundEntries = {}
        incidents: list[Incident] = []
        with cache.transact():
            for entry in entries:
                digest = entry.key.digest
                # 1. Read the entry that is stored. A damaged one is replaced.
                there, row = None, self._row(digest, cache)
                if row is not None:
                    try:
                        there = parse_entry(digest, row)
                    except CorruptEntryError:
                        incidents.append(Incident.damage(digest, row))
                # 2. Decide which of the two stays.
                kept, incident = settle(there, entry, rule)
                # 3. Write it if it is the new one.
                if kept is not there:
                    cache.set(digest, kept.serialized, tag="\n".join(kept.labels), retry=False)
                stored[digest] = kept
                if incident:
                    incidents.append(incident)
        return stored, incidents

    def discard(self, digests: Iterable[str]) -> None:
        """Delete entries."""
        given = list(digests)

        def delete() -> None:
            with self._cache.transact():
                for digest in given:
                    self._cache.delete(digest, retry=False)

        self._guarded("write", delete)

    def rebuild(self) -> None:
        """Move the file to quarantine, and begin a new file with its sound entries."""
        with self.failures("write"):
            self._cache.close()
            self._replace(self._inode)
        self._cache = self._open()

    def report_incident(self, incident: Incident) -> None:
        """Store and log an incident."""
        self._incidents.add(incident)

    def _guarded(self, verb: str, action: Callable[[], _Result]) -> _Result:
        """Run an action on the file.

        Run it again if the file is damaged or another process has replaced it.
        """
        for attempt in range(_ATTEMPTS):
            # Connect to the file that exists now.
            if self._moved():
                self._cache = self._open()
            cache = self._cache
            with self.failures(verb):
                try:
                    return action()
                except (sqlite3.Error, diskcache.Timeout) as error:
                    # A failed COMMIT leaves its transaction open.
                    cache.close()
                    # Another process may have replaced the file, and another thread the connection.
                    replaced = self._moved() or self._cache is not cache
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
        """Replace a damaged file by a new one, unless another process has just done so."""
        with self._repairing():
            if self._present() == inode:
                self._set_aside()
            self._copy_back()

    def _salvage_rest(self) -> None:
        """Copy the entries that a process could not copy, because it died in `_replace`."""
        if repair.unsalvaged(self.folder):
            with self._repairing():
                self._copy_back()

    def _repairing(self) -> FileLock:
        return FileLock(self.folder / "repair.lock")

    def _set_aside(self) -> None:
        """Move the damaged file and its journal to quarantine."""
        place = repair.set_aside(self.folder)
        self._incidents.add(Incident.damage(FILE, f"moved to {place}"))

    def _copy_back(self) -> None:
        """Copy the sound entries of the files in quarantine into the new file."""
        for place in repair.unsalvaged(self.folder):
            # A process may have died before it moved the journal.
            repair.complete(self.folder, place)
            fresh = self._opened()
            entries = sound(place / FILE)
            while batch := list(itertools.islice(entries, _BATCH)):
                self._write(fresh, batch, "earliest")
                failpoints.hit("mid_salvage", place.name)
            fresh.close()
            repair.mark_copied(place)

    def close(self) -> None:
        """Close this thread's connection."""
        self._cache.close()
