"""Which owners of leases are alive: each holds a file lock, which ends with its process."""

import contextlib
import re
import uuid
from pathlib import Path

from filelock import FileLock, Timeout

_OWNER = re.compile(r"[0-9a-f]{32}")


class ProcessLiveness:
    """Shows other processes of this host that an owner of leases is alive.

    The owner holds a file lock, which ends with its process. So the leases of a killed process are
    taken over at once, before they run out.

    Args:
        folder: folder that the processes share.

    Attributes:
        owner: name of this owner.
    """

    def __init__(self, folder: Path | None) -> None:
        self.owner = uuid.uuid4().hex
        self._folder = folder and folder / "owners"
        self._lock: FileLock | None = None
        if self._folder is not None:
            # If the disk is full, others wait until the leases run out.
            with contextlib.suppress(OSError):
                self._folder.mkdir(exist_ok=True, mode=0o700)
                lock = FileLock(self._file(self.owner), thread_local=False)
                lock.acquire(blocking=False)
                self._lock = lock

    def has_died(self, owner: str) -> bool:
        """Return whether an owner is known to have died: its lock file exists and is not locked."""
        if self._folder is None or owner == self.owner or not _OWNER.fullmatch(owner):
            return False
        if not self._file(owner).is_file():
            return False  # the owner may live on another host
        lock = FileLock(self._file(owner))
        try:
            lock.acquire(blocking=False)
        except (Timeout, OSError):
            return False
        lock.release()
        return True

    def forget(self, owner: str) -> None:
        """Remove the lock file of a dead owner."""
        if self._folder is not None and _OWNER.fullmatch(owner):
            self._file(owner).unlink(missing_ok=True)

    def dead(self) -> list[str]:
        """Return the owners that died on this host and whose lock files are still there."""
        if self._folder is None:
            return []
        files = sorted(self._folder.glob("*.lock"))
        return [file.stem for file in files if self.has_died(file.stem)]

    def close(self) -> None:
        """Release the lock and remove its file."""
        if self._lock is not None:
            self.forget(self.owner)
            self._lock.release()

    def _file(self, owner: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{owner}.lock"
