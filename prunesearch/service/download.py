"""Downloads the export of a job: file by file, resumable, checked, and complete or absent.

The files are collected in a hidden folder next to the destination. A download that was interrupted
continues there. The folder gets its final name when every file has the size and the sha256 that the
server announced.
"""

import fcntl
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from prunesearch import events
from prunesearch.cache.files import cannot_write, place_folder, sync_tree
from prunesearch.errors import DownloadError, ServerError, StorageError
from prunesearch.events import StageProgress
from prunesearch.report.tables import size as size_text
from prunesearch.runtime.json_values import Json, as_int, as_list, as_object, as_text
from prunesearch.service.client import BusyServerError, Client, ServerAwayError
from prunesearch.service.job_documents import check_job_id

_MOST_FILES = 10_000
_ATTEMPTS = 5  # connections that may be lost while a file is downloaded
_WAIT = 0.5  # seconds more before each of them
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ExportFile:
    """A file of an export.

    Attributes:
        path: path in the export, with slashes.
        bytes: size of the file.
        sha256: digest of its content.
    """

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class FetchedExport:
    """An export that was downloaded.

    Attributes:
        job: identifier of the job.
        folder: folder that was made.
        files: its files.
    """

    job: str
    folder: Path
    files: tuple[ExportFile, ...]

    json_properties = ("bytes",)

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files)


def files_of(document: Json) -> tuple[ExportFile, ...]:
    """Read the list of an export's files.

    Raises:
        DownloadError: the list is damaged, or a name would leave the folder.
    """
    files: dict[str, ExportFile] = {}
    try:
        listed = as_list(as_object(document, "export").get("files"), "files")
        for entry in listed[: _MOST_FILES + 1]:
            values = as_object(entry, "file")
            path = as_text(values.get("path"), "path")
            digest = as_text(values.get("sha256"), "sha256")
            size = as_int(values.get("bytes"), "bytes")
            if size < 0 or not _SHA256.fullmatch(digest):
                raise ValueError(f"size or sha256 of {path[:80]!r} is wrong")
            if path in files:
                raise ValueError(f"{path[:80]!r} is listed twice")
            files[path] = ExportFile(path, size, digest)
    except ValueError as error:
        raise DownloadError(
            f"the server's list of files is damaged ({error}): nothing was written"
        ) from None
    if len(files) > _MOST_FILES:
        raise DownloadError(f"the export has more than {_MOST_FILES} files: nothing was written")
    if not files:
        raise DownloadError("the export has no files: nothing was written")
    for path in files:
        if not _stays_inside(path) or any(part in files for part in _parents(path)):
            raise DownloadError(
                f"the server names a file {path[:80]!r}, which cannot be part of the folder: "
                f"nothing was written"
            )
    return tuple(files.values())


def _stays_inside(path: str) -> bool:
    """Return whether a path names a file inside its folder on every system."""
    if not path.isprintable() or "\\" in path or ":" in path or len(path) > 1000:
        return False
    parts = path.split("/")
    return all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)


def _parents(path: str) -> Iterator[str]:
    """Yield the folders that a path lies in."""
    parts = path.split("/")
    for number in range(1, len(parts)):
        yield "/".join(parts[:number])


def fetch(client: Client, job_id: str, out: Path) -> FetchedExport:
    """Download the export of a job into a new folder.

    Args:
        client: connection to the server.
        job_id: identifier of the job.
        out: folder to make. It must not exist, or be empty.

    Raises:
        InputError: `out` is taken or cannot be written, or the job has no export.
        DownloadError: a file is not what the server announced.
        ServerError: the server does not answer. The same command continues later.
    """
    check_job_id(job_id)
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise StorageError(f"{str(out)!r} exists: nothing is replaced; give a new folder as `out`")
    files = files_of(client.document(f"/v1/jobs/{job_id}/export"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _partial(out, job_id) as folder:
            _check_space(folder, files)
            _remove_others(folder, files)
            _download_all(client, job_id, files, folder)
            sync_tree(folder)
            folder.chmod(0o777 & ~_umask())
            place_folder(folder, out)
    except OSError as error:
        raise StorageError(cannot_write(out, error)) from None
    return FetchedExport(job_id, out, files)


@contextmanager
def _partial(out: Path, job_id: str) -> Iterator[Path]:
    """Open the folder in which a download is collected, and lock it.

    Raises:
        StorageError: another process downloads into it, or it is not ours.
    """
    folder = out.parent / f".{out.name}.{job_id}.partial"
    folder.mkdir(mode=0o700, exist_ok=True)
    # O_NOFOLLOW refuses a link that somebody else put there.
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(handle)
        if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o022:
            raise StorageError(f"others may write to {str(folder)!r}: remove it")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StorageError(
                f"another process downloads {job_id} to {str(out)!r}: wait for it"
            ) from None
        yield folder
    finally:
        os.close(handle)


def _check_space(folder: Path, files: tuple[ExportFile, ...]) -> None:
    """Refuse an export for which the disk has no room.

    Raises:
        StorageError: there is less free space than is still to be downloaded.
    """
    left = 0
    for file in files:
        path = folder / file.path
        there = path.stat().st_size if path.is_file() else 0
        left += max(0, file.bytes - there)
    free = shutil.disk_usage(folder).free
    if left > free:
        raise StorageError(
            f"the export needs {size_text(left)}, and the disk of {str(folder.parent)!r} has "
            f"{size_text(free)}: free space, or give another `out`"
        )


def _remove_others(folder: Path, files: tuple[ExportFile, ...]) -> None:
    """Remove what an earlier download left that is not part of the export any more."""
    listed = {folder / file.path for file in files}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_symlink() or path.is_file():
            if path not in listed or path.is_symlink():
                path.unlink()
        elif not any(path.iterdir()):
            path.rmdir()


def _download_all(client: Client, job_id: str, files: tuple[ExportFile, ...], folder: Path) -> None:
    """Download what is missing, and check every file."""
    total = sum(file.bytes for file in files)
    before = 0
    for file in files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)

        def tell(done: int, before: int = before, name: str = file.path) -> None:
            mebibytes = (before + done) >> 20
            events.tell(StageProgress(f"downloading {name}", mebibytes, total >> 20, "MiB"))

        _download(client, job_id, file, path, tell)
        before += file.bytes


def _download(
    client: Client, job_id: str, file: ExportFile, path: Path, tell: Callable[[int], None]
) -> None:
    """Download one file, from the byte at which an earlier download ended.

    Raises:
        DownloadError: the content is not what was announced, also after a second download.
    """
    for attempt in range(2):
        _complete(client, job_id, file, path, tell)
        if _digest(path) == file.sha256:
            return
        # The earlier part may be of another export. Take the whole file once more.
        path.unlink()
        if attempt:
            break
    raise DownloadError(
        f"{file.path!r} is not the file that the server announced (its sha256 differs): try again; "
        f"the other files are kept"
    )


def _complete(
    client: Client, job_id: str, file: ExportFile, path: Path, tell: Callable[[int], None]
) -> None:
    """Download until a file has its size. A lost connection is made again."""
    failures = 0
    while True:
        done = path.stat().st_size if path.exists() else 0
        if done > file.bytes:
            path.unlink()
            done = 0
        if done == file.bytes and path.exists():
            return
        try:
            _append(client, job_id, file, path, done, tell)
        except (ServerAwayError, BusyServerError):
            grown = path.exists() and path.stat().st_size > done
            failures = 0 if grown else failures + 1
            if failures >= _ATTEMPTS:
                raise
            time.sleep(failures * _WAIT)


def _append(
    client: Client,
    job_id: str,
    file: ExportFile,
    path: Path,
    done: int,
    tell: Callable[[int], None],
) -> None:
    """Download the rest of a file in one connection.

    Raises:
        DownloadError: the server sends another part, or more than it announced.
        ServerAwayError: the connection was lost. What came is kept.
    """
    headers = {"Range": f"bytes={done}-"} if done else {}
    address = f"/v1/jobs/{job_id}/export/files/{quote(file.path)}"
    with client.streamed(address, headers=headers) as response:
        if "content-encoding" in response.headers:
            raise ServerError("the server sent a compressed file, which was not asked for")
        if done and response.status_code != 206:
            done = 0  # the server sends the whole file
        elif done and not response.headers.get("content-range", "").startswith(f"bytes {done}-"):
            raise DownloadError(f"the server sent another part of {file.path!r} than was asked for")
        with path.open("ab" if done else "wb") as opened:
            for part in response.iter_raw():
                done += len(part)
                if done > file.bytes:
                    raise DownloadError(f"{file.path!r} is larger than the server announced")
                opened.write(part)
                tell(done)
    if done < file.bytes:
        raise ServerAwayError(f"the server ended {file.path!r} early: run the command again")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    """Return the mask of new files. It can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
