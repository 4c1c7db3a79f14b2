"""Files and folders that are complete or absent."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunesearch.errors import StorageError, one_line

_FRESH = ".prunesearch-"


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A private folder on the disk of `out` to make it in; it is deleted behind the ``with`` block.

    What a process that was killed left behind is deleted by the next one that makes the same `out`: a folder is locked
    as long as its process lives.

    Raises:
        OSError: nothing can be written there.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    _sweep(out)
    fresh = Path(tempfile.mkdtemp(prefix=_FRESH, dir=out.parent))
    handle = os.open(fresh, os.O_RDONLY)
    try:
        _locked(handle)
        scratch = fresh.rename(fresh.with_name(f".{out.name}-{fresh.name.removeprefix(_FRESH)}"))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    finally:
        os.close(handle)


def _sweep(out: Path) -> None:
    """Delete scratch folders whose process is gone."""
    for left in out.parent.glob(f".{out.name}-*"):
        if not left.is_dir():
            continue
        handle = os.open(left, os.O_RDONLY)
        try:
            if _locked(handle):
                shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(handle)


def _locked(handle: int) -> bool:
    """Lock an open folder; False where another process has it, or the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """A temporary file beside `out` that takes its name when the ``with`` block ends well; there must be none yet.

    Raises:
        StorageError: there is a file, or none can be written.
    """
    if out.exists():
        raise StorageError(f"{str(out)!r} exists: choose another name, or delete it first")
    try:
        with scratch_beside(out) as folder:
            scratch = folder / out.name
            yield scratch
            sync(scratch)
            scratch.chmod(0o644)
            scratch.rename(out)
    except OSError as error:
        raise StorageError(f"cannot write {str(out)!r}: {one_line(error)}") from None


def sync(path: Path) -> None:
    """Bring a file or a folder's list of names to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
