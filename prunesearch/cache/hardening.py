"""A hardened diskcache.

It does not evict or unpickle rows, open other files, or trust the file's settings.

By default, diskcache drops rows at 1 GiB without a warning, and unpickles any row that is marked as
a pickle (CVE-2025-69872). It reads and deletes the file that a row names. It sets any attribute of
itself that the Settings table of the file lists.
"""

import contextlib
import random
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import diskcache

from prunesearch.cache.entry import MAX_BYTES
from prunesearch.errors import CorruptEntryError, StorageError

_RAW = 1  # diskcache's mode for a value that is stored unchanged in its row
FIXED_WAL = (3, 51, 3)
"""First version of SQLite that loses no commits when two processes checkpoint a WAL at once."""
_PATIENCE = 60.0  # seconds to wait for a cache file that other processes are opening
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# The tables, indices and triggers that diskcache makes.
_OBJECTS = frozenset(
    "Settings Cache Cache_key_raw Cache_expire_time sqlite_autoindex_Settings_1 "
    "Settings_count_insert "
    "Settings_count_delete Settings_size_insert Settings_size_update Settings_size_delete".split()
)
SCHEMA_VERSION = 2
"""Version of the cache file, in its ``user_version``.

Files of early development versions have version 0 and the same layout.
"""

SETTINGS: Mapping[str, str | int] = MappingProxyType(
    {
        "eviction_policy": "none",
        "cull_limit": 0,
        "size_limit": 2**62,
        "statistics": 0,
        "tag_index": 0,
        "disk_min_file_size": 2**30,
        "disk_pickle_protocol": 5,
        "sqlite_auto_vacuum": 1,
        "sqlite_cache_size": 2**13,
        "sqlite_mmap_size": 0,
        "sqlite_synchronous": 2,
        "sqlite_journal_mode": "wal" if sqlite3.sqlite_version_info >= FIXED_WAL else "delete",
    }
)
"""All settings of diskcache.

They are passed and checked whenever a file is opened, because diskcache would otherwise use those
of the file.
"""


class HardenedDisk(diskcache.Disk):  # type: ignore[misc]
    """Stores text keys and text values in the SQLite row. Files and pickles are refused."""

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
        """Accept text values only, and store them in the row."""
        if read or not isinstance(value, str):
            raise TypeError(f"store values are text, not {type(value).__name__}")
        return 0, _RAW, None, value

    def fetch(self, mode: int, filename: object, value: object, read: bool) -> str:
        """Refuse rows that diskcache would unpickle or read from a file."""
        if mode != _RAW or filename is not None or read or not isinstance(value, str):
            raise CorruptEntryError("the cache holds a row that prunesearch did not write")
        return value

    def remove(self, file_path: object) -> None:
        """Do nothing: a file that a foreign row names is not deleted.

        Rows of prunesearch name no file.
        """


class HardenedCache(diskcache.Cache):  # type: ignore[misc]
    """A diskcache with fixed settings, whose connections do not trust the file."""

    def __init__(self, folder: Path) -> None:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                super().__init__(str(folder), timeout=60, disk=HardenedDisk, **SETTINGS)
                break
            except sqlite3.OperationalError as error:
                # When diskcache opens a file, it writes without waiting for locks of other
                # processes. Try again.
                self.close()
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
                time.sleep(random.uniform(0.002, 0.02))
        found = {name: getattr(self, name) for name in SETTINGS}
        assert found == dict(SETTINGS), f"diskcache did not take its settings: {found}"

    @property
    def _con(self) -> sqlite3.Connection:
        connection: sqlite3.Connection = super()._con
        if getattr(self._local, "hardened", None) is not connection:
            harden_connection(connection)
            self._local.hardened = connection
        return connection


def harden_connection(connection: sqlite3.Connection) -> None:
    """Protect a connection against a damaged or hostile file."""
    # A larger row is refused, not read.
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2 * MAX_BYTES)
    connection.text_factory = _text
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")


def _text(raw: bytes) -> str:
    # A replaced character makes the checksum of the entry fail.
    return raw.decode("utf-8", "replace")


def is_damage(error: BaseException) -> bool:
    """Return whether an error of SQLite means that the file itself is damaged."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _DAMAGED


def inspect(file: Path) -> None:
    """Check a cache file before diskcache opens it, and remove settings that are not known.

    Raises:
        StorageError: a newer prunesearch made the file.
        sqlite3.DatabaseError: the file is damaged, or was made by other software.
    """
    with contextlib.closing(sqlite3.connect(file, timeout=60, isolation_level=None)) as connection:
        harden_connection(connection)
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        # 1. Refuse foreign files: a trigger, for example, could change other rows.
        if names - _OBJECTS:
            raise _foreign(f"it holds {min(names - _OBJECTS)!r}")
        # 2. Refuse files of newer versions.
        if version > SCHEMA_VERSION:
            raise StorageError(
                f"the cache in {str(file.parent)!r} was made by a newer prunesearch (schema "
                f"{version}, known: "
                f"{SCHEMA_VERSION}): upgrade prunesearch, or give another `cache`"
            )
        # 3. diskcache would set an attribute of itself for each setting in the file.
        if "Settings" in names:
            known = (*SETTINGS, "count", "size", "hits", "misses")
            marks = ",".join("?" * len(known))
            connection.execute(f"DELETE FROM Settings WHERE key NOT IN ({marks})", known)
        if version != SCHEMA_VERSION:
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _foreign(why: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(f"this is not a file of prunesearch's: {why}")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error
