"""The evaluation store on disk: diskcache, used so that it neither evicts, unpickles nor serves a damaged row.

diskcache as it comes drops rows at 1 GiB without a word and unpickles whatever a row says is a pickle
(CVE-2025-69872). `StrictDisk` keeps short JSON text inline and nothing else; every value carries a checksum that is
bound to its key.
"""

import hashlib
import json
import os
import sqlite3
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import diskcache

from prunesearch.errors import CorruptEntryError, RunError, StorageError, one_line
from prunesearch.store.keys import Key, canonical_json

_RAW = 1  # diskcache's mode for a value kept in its row as it is
_FIXED_WAL = (3, 51, 3)  # earlier SQLite can lose commits when two processes checkpoint a WAL at once

SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "eviction_policy": "none",
        "cull_limit": 0,
        "size_limit": 2**62,
        "statistics": 0,
        "tag_index": 0,
        "disk_min_file_size": 2**30,
        "sqlite_mmap_size": 0,
        "sqlite_synchronous": 2,
        "sqlite_journal_mode": "wal" if sqlite3.sqlite_version_info >= _FIXED_WAL else "delete",
    }
)
"""Passed on every opening, because diskcache otherwise obeys whatever the file itself says."""


class StrictDisk(diskcache.Disk):  # type: ignore[misc]
    """Text keys and text values inside the SQLite row; files and pickles are refused, whoever wrote them."""

    def put(self, key: object) -> tuple[str, bool]:
        """Accept text keys only."""
        if not isinstance(key, str):
            raise TypeError(f"store keys are text, not {type(key).__name__}")
        return key, True

    def get(self, key: object, raw: object) -> str:
        """Refuse keys that diskcache would unpickle."""
        if not isinstance(key, str) or not raw:
            raise CorruptEntryError("the cache holds a key that prunesearch did not write")
        return key

    def store(self, value: object, read: bool, key: object = None) -> tuple[int, int, None, str]:
        """Keep text values in the row."""
        if read or not isinstance(value, str):
            raise TypeError(f"store values are text, not {type(value).__name__}")
        return 0, _RAW, None, value

    def fetch(self, mode: int, filename: object, value: object, read: bool) -> str:
        """Refuse rows that diskcache would unpickle or read from a file."""
        if mode != _RAW or filename is not None or read or not isinstance(value, str):
            raise CorruptEntryError("the cache holds a row that prunesearch did not write")
        return value

    def remove(self, file_path: object) -> None:
        """Refuse to delete files: no row of ours has one."""
        raise CorruptEntryError(f"the cache names a file to delete, {file_path!r}: it was tampered with")


class EvaluationStore:
    """Chunk results by key, in a folder that belongs to the user alone.

    Args:
        folder: created (mode 0700) if it is not there.

    Raises:
        StorageError: the folder cannot be written, or others could write to it.
    """

    def __init__(self, folder: str | Path) -> None:
        if "://" in str(folder):
            raise StorageError(f"--cache {folder}: this version keeps evaluations in a folder; give a path")
        self.folder = Path(folder)
        self._open()

    def _open(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            info = self.folder.stat()
        except OSError as error:
            raise StorageError(f"cannot use cache folder {str(self.folder)!r}: {error.strerror}") from None
        if info.st_uid != os.getuid() or stat.S_IMODE(info.st_mode) & 0o022:
            raise StorageError(
                f"cache folder {str(self.folder)!r} can be written by others: "
                "chown it to yourself and chmod 700, or give another --cache"
            )
        try:
            self._cache = diskcache.Cache(str(self.folder), timeout=60, disk=StrictDisk, **SETTINGS)
        except (sqlite3.Error, OSError) as error:
            raise StorageError(
                f"cannot open the cache in {str(self.folder)!r}: {one_line(error)}; "
                "move the folder away to start a new one"
            ) from None

    def get(self, key: Key) -> Any | None:  # noqa: ANN401 (any JSON value)
        """Return the stored value, or None.

        Raises:
            CorruptEntryError: there is a row and its checksum is wrong.
            RunError: the file itself cannot be read.
        """
        with self._failures("read"):
            entry = self._cache.get(key.digest, default=None, retry=False)
        if entry is None:
            return None
        checksum, _, body = entry.partition("\n")
        if checksum != _checksum(key.digest, body):
            raise CorruptEntryError(f"cache entry {key.digest[:12]} does not match its checksum")
        return json.loads(body)["value"]

    def put(self, key: Key, value: Any) -> None:  # noqa: ANN401
        """Keep a value; on return it has been synced to disk.

        Raises:
            RunError: the disk is full or read-only.
        """
        body = canonical_json({"preimage": key.preimage, "value": value})
        with self._failures("write"):
            self._cache.set(key.digest, f"{_checksum(key.digest, body)}\n{body}", retry=False)

    def discard(self, key: Key) -> None:
        """Forget a damaged entry, so that it is computed again."""
        with self._failures("write"):
            self._cache.delete(key.digest, retry=False)

    @contextmanager
    def _failures(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, diskcache.Timeout) as error:
            remedy = "free space and run again" if verb == "write" else "move the folder away and run again"
            raise RunError(f"cannot {verb} the cache in {str(self.folder)!r}: {one_line(error)}; {remedy}") from None

    def __len__(self) -> int:
        return len(self._cache)

    def close(self) -> None:
        """Close this thread's connection."""
        self._cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_writable(folder: Path) -> None:
    """Refuse a folder that could not be made or written, and leave nothing behind.

    Raises:
        StorageError: nothing can be written to it, or to its nearest existing parent.
    """
    # os.path.exists, because Path.exists raises where a parent may not be entered.
    parent = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))  # noqa: PTH110
    try:
        tempfile.TemporaryDirectory(prefix=".prunesearch-", dir=parent).cleanup()
    except OSError as error:
        raise StorageError(f"cannot write to {str(folder)!r} ({error.strerror}): choose another folder") from None


def _checksum(digest: str, body: str) -> str:
    return hashlib.sha256(f"{digest}\0{body}".encode()).hexdigest()
