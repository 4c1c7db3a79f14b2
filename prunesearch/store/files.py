"""Files and folders that are complete or absent, and that take no place of the user's.

Everything is first made in a scratch folder, which lies beside its destination, on the same disk. What is whole is
renamed into place. The name of a scratch folder begins with `PREFIX`, and a marker file in it says what it is for. Only
a folder with such a marker is ever deleted.
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

from prunesearch.errors import PruneSearchError, RunError, StorageError, one_line

PREFIX = ".prunesearch-"
"""How the name of each scratch folder begins."""
_MARKER = "scratch-of-prunesearch"
_SAYS = "Made by prunesearch, which deletes this folder when it is done.\nhost: {host}\nfor: {name}\n"
_OLD = "old"
_OS_ERROR = re.compile(r"(.*?)\(os error (\d+)\)", re.DOTALL)
_TORCH_WRITER = re.compile(r"PytorchStreamWriter|inline_container|iostream error|file write failed")
_NUMPY_WRITER = re.compile(r"\d+ requested and \d+ written")
_CUT_SHORT = "a file could not be written whole, as on a full disk"


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A private folder on the disk of `out` to make it in. It is deleted after the ``with`` block.

    A process that is killed leaves its scratch folder. The next process that makes the same `out` deletes it: a folder
    is locked as long as its process lives.

    Raises:
        OSError: nothing can be written there, or the disk is full, whatever type the library's own error has.
    """
    _sweep(out)
    scratch = Path(tempfile.mkdtemp(prefix=PREFIX, dir=out.parent))
    handle = os.open(scratch, os.O_RDONLY)
    try:
        _locked(handle)
        (scratch / _MARKER).write_text(_said_for(out.name), encoding="utf-8", errors="surrogateescape")
        with foreign_writer():
            yield scratch
    finally:
        _delete(scratch)
        os.close(handle)


def _sweep(out: Path) -> None:
    """Delete the scratch folders for `out` whose process is gone; what one of them was replacing comes back."""
    # No glob: a name may hold characters that mean something in a pattern.
    for left in [Path(entry) for entry in os.scandir(out.parent) if entry.name.startswith(PREFIX)]:
        if not _is_scratch_for(left, out.name):
            continue
        try:
            handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # its process has just finished, or it is no folder
            continue
        try:
            if _locked(handle):
                if (left / _OLD).is_dir() and not os.path.lexists(out):
                    (left / _OLD).rename(out)
                _delete(left)
        finally:
            os.close(handle)


def _is_scratch_for(folder: Path, name: str) -> bool:
    """Whether a folder holds the marker that this module writes."""
    try:
        if folder.is_symlink() or not stat.S_ISREG((folder / _MARKER).lstat().st_mode):
            return False
        said = (folder / _MARKER).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return False
    return said == _said_for(name)


def _said_for(name: str) -> str:
    """The marker's text. It names the host, because locks of another host may not be seen here."""
    return _SAYS.format(host=socket.gethostname(), name=name)


def _delete(scratch: Path) -> None:
    """Delete a scratch folder, the marker last: a process that is killed meanwhile leaves one that can be deleted."""
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
    """Lock an open folder; False where another process has it, or the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of `path` when the ``with`` block ends well; else nothing changes.

    Raises:
        OSError: it cannot be written.
    """
    with scratch_beside(path) as folder:
        scratch = folder / "file"
        yield scratch
        sync(scratch)
        scratch.replace(path)
    sync(path.parent)


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """A temporary file beside `out` that takes its name when the ``with`` block ends well; there must be none yet.

    Raises:
        StorageError: there is a file, or none can be written.
        RunError: something else took the name meanwhile. It is left alone, and the new file has another name.
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
    """Give a finished file its name, where there is none.

    Raises:
        RunError: there is; the file has another name then, which the message says.
        OSError: it cannot be renamed.
    """
    for place in _names_for(out, out.stem, out.suffix):
        try:
            _link(finished, place)
        except FileExistsError:
            continue
        break
    _report(place, out)


def _link(finished: Path, place: Path) -> None:
    """Rename a file unless the name is taken, which `os.rename` alone does not see.

    Raises:
        FileExistsError: it is taken.
    """
    try:
        os.link(finished, place)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: reserve the name, then rename over the reservation
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        finished.rename(place)


def place_folder(finished: Path, out: Path) -> None:
    """Give a finished folder its name, where there is nothing or an empty folder, whose mode it takes.

    Raises:
        RunError: something was put there; the folder has another name then, which the message says.
        OSError: it cannot be renamed.
    """
    if out.is_dir():
        finished.chmod(stat.S_IMODE(out.stat().st_mode))
    for place in _names_for(out, out.name):
        try:
            finished.rename(place)  # fails by itself onto a file, and onto a folder that holds anything
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            continue
        break
    _report(place, out)


def _names_for(out: Path, stem: str, suffix: str = "") -> Iterator[Path]:
    """The name that is wanted, and then others beside it."""
    yield out
    for number in itertools.count(2):
        yield out.with_name(f"{stem}-{number}{suffix}")


def _report(place: Path, out: Path) -> None:
    """Bring the new name to disk, and say so if it is another than the one that was wanted.

    Raises:
        RunError: it is.
    """
    sync(out.parent)
    if place != out:
        raise RunError(
            f"{str(out)!r} was taken by something else meanwhile, which was left alone: the finished result is "
            f"{str(place)!r}"
        )


def replace_folder(finished: Path, out: Path, scratch: Path) -> None:
    """Give a finished folder the name of an older one that the tool made, which is deleted with the scratch folder.

    Between the two renames the older folder lies in the scratch folder. If an interrupt comes there, it is put back at
    once. If the process is killed there, the next one that makes the same `out` puts it back.

    Args:
        scratch: the scratch folder that `finished` was made in.

    Raises:
        RunError: see `place_folder`.
        OSError: it cannot be renamed; the older one is back.
    """
    old = scratch / _OLD
    try:
        out.rename(old)
        place_folder(finished, out)
    except BaseException:
        if finished.exists() and old.exists():
            place_folder(old, out)
        raise


def sync(path: Path) -> None:
    """Bring a file or a folder's list of names to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Bring every file of a folder and the folder itself to disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def open_to_others(folder: Path, like: Path) -> None:
    """Give the files of a folder the mode that new files get here, where a library made them private.

    Args:
        like: the scratch folder, whose marker is a file that was made in the ordinary way.
    """
    mode = stat.S_IMODE((like / _MARKER).stat().st_mode)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def cannot_write(place: Path, error: OSError) -> str:
    """One line about a write that failed, with what to do."""
    reason = error.strerror or one_line(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
    if _NUMPY_WRITER.search(reason):
        reason, full = _CUT_SHORT, True
    return f"cannot write {str(place)!r}: {reason}; {'free space on its disk' if full else 'give another place'}"


@contextmanager
def foreign_writer() -> Iterator[None]:
    """Turn what libraries raise when a write fails into `OSError`.

    safetensors and tokenizers have types of their own, with the system's error number in the text; torch's archive
    writer raises a RuntimeError.
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
