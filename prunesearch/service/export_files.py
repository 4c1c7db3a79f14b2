"""The files of an export: their list, and reading them without leaving their folder."""

import hashlib
import os
import stat
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from prunesearch.errors import NotFoundError

_PIECE = 1 << 20
_BLOCK = 512  # bytes; a tar file consists of such blocks
_MOST_FILES = 10_000
_KEPT = 10_000  # digests that are kept


@dataclass(frozen=True)
class HashedFile:
    """A file of an export.

    Attributes:
        path: path in the export, with slashes.
        bytes: size of the file.
        sha256: digest of its content.
    """

    path: str
    bytes: int
    sha256: str


class ExportFiles:
    """Lists the files of exports. The digest of a file is computed once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._digests: OrderedDict[tuple[int, int, int, int], str] = OrderedDict()

    def files(self, folder: Path) -> list[HashedFile]:
        """Return the files of an export, in the order of their paths. Links are left out.

        Raises:
            NotFoundError: the folder is gone.
        """
        found = []
        for path in names(folder):
            with opened(folder, path) as file:
                info = os.fstat(file.fileno())
                found.append(HashedFile(path, info.st_size, self._digest(file, info)))
        return found

    def _digest(self, file: BufferedReader, info: os.stat_result) -> str:
        place = (info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size)
        with self._lock:
            known = self._digests.get(place)
        if known is not None:
            return known
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        with self._lock:
            self._digests[place] = digest
            while len(self._digests) > _KEPT:
                self._digests.popitem(last=False)
        return digest


def names(folder: Path) -> list[str]:
    """Return the paths of an export's files, sorted. Links are left out.

    Raises:
        NotFoundError: the folder is gone.
    """
    found: list[str] = []
    if folder.is_symlink() or not folder.is_dir():
        raise NotFoundError("the export is gone: run the job again")
    for place, folders, files in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted(files):
            path = Path(place) / name
            if path.is_file() and not path.is_symlink():
                found.append(path.relative_to(folder).as_posix())
        if len(found) > _MOST_FILES:
            break
    return sorted(found)


@contextmanager
def opened(folder: Path, path: str) -> Iterator[BufferedReader]:
    """Open a file of an export. Each folder on the way is opened without following links.

    Args:
        folder: folder of the export.
        path: path in it, with slashes.

    Raises:
        NotFoundError: the file does not exist.
    """
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise NotFoundError(f"the export has no file {path[:200]!r}")
    with ExitStack() as folders:
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            for index, part in enumerate(parts):
                folders.callback(os.close, handle)
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
                if index < len(parts) - 1:
                    flags |= os.O_DIRECTORY
                handle = os.open(part, flags, dir_fd=handle)
        except (OSError, ValueError):
            raise NotFoundError(f"the export has no file {path[:200]!r}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise NotFoundError(f"the export has no file {path[:200]!r}")
    with os.fdopen(handle, "rb") as file:
        yield file


def pieces(folder: Path, path: str, first: int, count: int) -> Iterator[bytes]:
    """Yield a range of a file's bytes, a piece at a time."""
    with opened(folder, path) as file:
        file.seek(first)
        while count > 0:
            piece = file.read(min(_PIECE, count))
            if not piece:
                return
            count -= len(piece)
            yield piece


def tar(folder: Path, top: str) -> Iterator[bytes]:
    """Yield a tar file of an export, a piece at a time, without a copy on the disk.

    Args:
        folder: folder of the export.
        top: name of the folder in the tar file.
    """
    for path in names(folder):
        with opened(folder, path) as file:
            info = tarfile.TarInfo(f"{top}/{path}")
            status = os.fstat(file.fileno())
            info.size, info.mtime, info.mode = status.st_size, int(status.st_mtime), 0o644
            yield info.tobuf(tarfile.PAX_FORMAT)
            left = info.size
            while left > 0:
                piece = file.read(min(_PIECE, left))
                # A file that was cut short in the meantime must not shift those that follow.
                piece = piece or b"\0" * min(_PIECE, left)
                left -= len(piece)
                yield piece
            yield b"\0" * (-info.size % _BLOCK)
    yield b"\0" * (2 * _BLOCK)
