"""Writes files and folders that are either complete or absent. Files of the user are not replaced.

A file or folder is first made in a scratch folder next to its destination, on the same disk. When
it is complete, it is renamed to its final name. The name of a scratch folder begins with `PREFIX`,
and a marker file in it names its destination. Only folders with such a marker are deleted.
"""

import errno
import fcntl
import itertools
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunesearch.errors import (
    PruneSearchError,
    RunError,
    StorageError,
    one_line,
)

PREFIX = ".prunesearch-"
"""Prefix of the name of a scratch folder."""
_MARKER = "scratch-of-prunesearch"
_SAYS = (
    "Made by prunesearch, which deletes this folder when it is done.\nhost: {host}\nfor: {name}\n"
)
_OLD = "old"
_OS_ERROR = re.compile(r"(.*?)\(os error (\d+)\)", re.DOTALL)
_TORCH_WRITER = re.compile(r"PytorchStreamWriter|inline_container|iostream error|file write failed")
_NUMPY_WRITER = re.compile(r"\d+ requested and \d+ written")
_CUT_SHORT = "a file could not be written whole, as on a full disk"


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """Make a private folder next to `out`, in which `out` can be made.

    It is deleted after the ``with`` block.

    A process that is killed leaves its scratch folder. The next process that makes the same `out`
    deletes it. A folder is locked while its process lives, so only folders of dead processes are
    deleted.

    Raises:
        OSError: the folder cannot be written, or the disk is full. Errors of libraries are
            converted.
    """
    _sweep(out)
    scratch = Path(tempfile.mkdtemp(prefix=PREFIX, dir=out.parent))
    handle = os.open(scratch, os.O_RDONLY)
    try:
        _locked(handle)
        (scratch / _MARKER).write_text(
            _said_for(out.name), encoding="utf-8", errors="surrogateescape"
        )
        with foreign_writer():
            yield scratch
    finally:
        _delete(scratch)
        os.close(handle)


def _sweep(out: Path) -> None:
    """Delete the scratch folders for `out` whose processes are gone.

    If such a process was replacing an older folder, the older folder is put back.
    """
    # A name may hold characters that have a meaning in a pattern, so glob is not used.
    for left in [Path(entry) for entry in os.scandir(out.parent) if entry.name.startswith(PREFIX)]:
        if not _is_scratch_for(left, out.name):
            continue
        try:
            handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # the process has just finished, or this is not a folder
            continue
        try:
            if _locked(handle):
                if (left / _OLD).is_dir() and not os.path.lexists(out):
                    (left / _OLD).rename(out)
                _delete(left)
        finally:
            os.close(handle)


def _is_scratch_for(folder: Path, name: str) -> bool:
    """Return whether a folder holds the marker of a scratch folder for a name."""
    try:
        if folder.is_symlink() or not stat.S_ISREG((folder / _MARKER).lstat().st_mode):
            return False
        said = (folder / _MARKER).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return False
    return said == _said_for(name)


def _said_for(name: str) -> str:
    """Return the text of the marker.

    It names the host, because locks of another host may not be visible here.
    """
    return _SAYS.format(host=socket.gethostname(), name=name)


def _delete(scratch: Path) -> None:
    """Delete a scratch folder, and its marker last.

    If the process is killed meanwhile, the rest still has the marker and can be deleted later.
    """
    try:
        entries = [Path(entry) for entry in os.scandir(scratch)]
    except OSError:
        return
    for entry in entries:
        if entry.name == _MARKER:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    shutil.rmtree(scratch, ignore_errors=True)


def _locked(handle: int) -> bool:
    """Lock an open folder.

    Return False if another process holds the lock, or the file system has no locks.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` if the ``with`` block succeeds.

    Otherwise nothing changes.

    Raises:
        OSError: the file cannot be written.
    """
    with scratch_beside(path) as folder:
        scratch = folder / "file"
        yield scratch
        sync(scratch)
        scratch.replace(path)
    sync(path.parent)


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """Yield a temporary file that is renamed to `out` if the ``with`` block succeeds.

    `out` must not exist.

    Raises:
        StorageError: `out` exists, or the file cannot be written.
        RunError: another process made `out` meanwhile. That file is not changed, and the new file
            gets another name.
    """
    if os.path.lexists(out):
        raise StorageError(f"{str(out)!r} exists: choose another name, or delete it first")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with scratch_beside(out) as folder:
            scratch = folder / out.name
            yield scratch
            sync(scratch)
            place_file(scratch, out)
    except OSError as error:
        raise StorageError(cannot_write(out, error)) from None


def place_file(finished: Path, out: Path) -> None:
    """Rename a finished file to `out`, without replacing an existing file.

    Raises:
        RunError: `out` exists. The file gets another name, which the message names.
        OSError: the file cannot be renamed.
    """
    for place in _names_for(out, out.stem, out.suffix):
        try:
            _link(finished, place)
        except FileExistsError:
            continue
        break
    _report(place, out)


def _link(finished: Path, place: Path) -> None:
    """Rename a file unless the new name is taken. `os.rename` would replace an existing file.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        os.link(finished, place)
    except FileExistsError:
        raise
    except OSError:
        # The file system has no hard links. Reserve the name with an empty file, then rename over
        # it.
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        finished.rename(place)


def place_folder(finished: Path, out: Path) -> None:
    """Rename a finished folder to `out`. `out` must not exist, or be an empty folder.

    The new folder takes the mode of the empty one.

    Raises:
        RunError: `out` is taken by something else. The folder gets another name, which the message
            names.
        OSError: the folder cannot be renamed.
    """
    if out.is_dir():
        finished.chmod(stat.S_IMODE(out.stat().st_mode))
    for place in _names_for(out, out.name):
        # The call fails if the new name is that of a file, or of a folder that is not empty.
        try:
            finished.rename(place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            continue
        break
    _report(place, out)


def _names_for(out: Path, stem: str, suffix: str = "") -> Iterator[Path]:
    """Yield the wanted name, and then other names in the same folder."""
    yield out
    for number in itertools.count(2):
        yield out.with_name(f"{stem}-{number}{suffix}")


def _report(place: Path, out: Path) -> None:
    """Sync the new name to disk, and report it if it is not the wanted one.

    Raises:
        RunError: the name is not the wanted one.
    """
    sync(out.parent)
    if place != out:
        raise RunError(
            f"{str(out)!r} was taken by something else meanwhile, which was left alone: the "
            f"finished result is "
            f"{str(place)!r}"
        )


def replace_folder(finished: Path, out: Path, scratch: Path) -> None:
    """Replace a folder that prunesearch made by a finished one.

    The older folder is moved to the scratch folder and deleted with it. If an interrupt comes
    between the two renames, the older folder is put back at once. If the process is killed there,
    the next process that makes the same `out` puts it back.

    Args:
        finished: the finished folder.
        out: path of the older folder.
        scratch: the scratch folder that `finished` was made in.

    Raises:
        RunError: see `place_folder`.
        OSError: the folder cannot be renamed. The older one has been put back.
    """
    old = scratch / _OLD
    try:
        out.rename(old)
        place_folder(finished, out)
    except BaseException:
        # The new folder is not in place yet.
        if finished.exists() and old.exists():
            place_folder(old, out)
        raise


def sync(path: Path) -> None:
    """Sync a file, or a folder's list of names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Sync every file of a folder, and the folder itself, to disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def open_to_others(folder: Path, like: Path) -> None:
    """Give the files of a folder the mode of new files. Some libraries make their files private.

    Args:
        folder: the folder.
        like: the scratch folder. Its marker has the mode of a new file.
    """
    mode = stat.S_IMODE((like / _MARKER).stat().st_mode)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def cannot_write(place: Path, error: OSError) -> str:
    """Return a message of one line about a failed write, with advice to the user."""
    reason = error.strerror or one_line(error)
    remedy = "give another place"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        remedy = "free space on its disk"
    # numpy reports a full disk without an error number.
    if _NUMPY_WRITER.search(reason):
        reason, remedy = _CUT_SHORT, "free space on its disk"
    return f"cannot write {str(place)!r}: {reason}; {remedy}"


@contextmanager
def foreign_writer() -> Iterator[None]:
    """Convert errors that libraries raise when a write fails to `OSError`.

    safetensors and tokenizers have error types of their own, with the system's error number in the
    text. torch's archive writer raises a RuntimeError.
    """
    try:
        yield
    except (OSError, PruneSearchError):
        raise
    except Exception as error:
        found = _system_error(error)
        if found is None:
            raise
        raise found from error


def _system_error(error: Exception) -> OSError | None:
    text = str(error)
    if (match := _OS_ERROR.search(text)) is not None:
        number = int(match[2])
        return OSError(number, os.strerror(number))
    if isinstance(error, RuntimeError) and _TORCH_WRITER.search(text):
        return OSError(errno.EIO, _CUT_SHORT)
    return None
