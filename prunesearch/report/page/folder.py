"""The folder of a report: which folders may be written, and how files are replaced.

A folder may be new, empty, or an earlier report. A marker file names what the tool wrote, so that a
later report deletes its own files only.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from prunesearch.cache.files import PREFIX, cannot_write, replaced_file
from prunesearch.errors import StorageError
from prunesearch.runtime.json_values import as_list, as_object, as_text

MARKER = ".prunesearch-report.json"
"""Name of the marker file."""
_MADE_BY = "prunesearch report"
_OURS = re.compile(r"index\.html|report\.md|figures/[a-z0-9-]+\.png|data/[a-z0-9-]+\.csv")
"""Names that a report has. Only such files are ever deleted."""
_FOLDERS = ("figures", "data")


@dataclass(frozen=True)
class ReportFolder:
    """A folder that a report may be written to.

    Attributes:
        path: path of the folder.
        earlier: names of the files of the report that is in it.
    """

    path: Path
    earlier: frozenset[str]

    @classmethod
    def of(cls, path: Path) -> "ReportFolder":
        """Check a folder before anything is computed.

        Raises:
            StorageError: the path is a file, or a folder that holds anything but a report.
        """
        if not path.name:
            raise StorageError(f"`out` {str(path)!r} has no name: name a new or empty folder")
        if not path.exists() and not path.is_symlink():
            return cls(path, frozenset())
        if not path.is_dir():
            raise StorageError(f"`out` {str(path)!r} is not a folder: name a new or empty folder")
        try:
            held = [entry.name for entry in path.iterdir() if not _is_scratch(entry.name)]
        except OSError as error:
            raise StorageError(f"`out` {str(path)!r} cannot be read: {error.strerror}") from None
        if not held:
            return cls(path, frozenset())
        if MARKER not in held:
            raise StorageError(
                f"`out` {str(path)!r} holds other files than a report: name a new or empty folder"
            )
        for name in _FOLDERS:
            if (path / name).is_symlink():
                raise StorageError(
                    f"`out` {str(path / name)!r} is a link, which a report does not follow: name a "
                    "new or empty folder"
                )
        return cls(path, _named(path / MARKER))

    def check_names(self, names: Iterable[str]) -> None:
        """Refuse to replace files that no report wrote.

        Raises:
            StorageError: a file of that name exists and is not part of the earlier report.
        """
        for name in names:
            if name not in self.earlier and (self.path / name).exists():
                raise StorageError(
                    f"{str(self.path / name)!r} was not written by an earlier report: move it, or "
                    "name another folder"
                )

    def write(self, files: dict[str, Callable[[Path], None]]) -> None:
        """Write files, each of which is either complete or as before.

        Args:
            files: functions that write a file, by its name in the folder.

        Raises:
            StorageError: the folder cannot be written, or the disk is full.
        """
        # 1. Look again: another report may have been written here since the folder was checked.
        now = ReportFolder.of(self.path)
        now.check_names(files)
        try:
            for name in ("", *_FOLDERS):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            # 2. The marker names old and new files first, so that a killed process leaves a folder
            # that is still known as a report.
            self._mark({*now.earlier, *files})
            # 3. The page comes last: it is what a reader opens.
            for name, write in files.items():
                with replaced_file(self.path / name) as scratch:
                    write(scratch)
            # 4. Delete the files of the earlier report that are not part of this one.
            for name in now.earlier - files.keys():
                (self.path / name).unlink(missing_ok=True)
            self._mark(set(files))
        except OSError as error:
            raise StorageError(cannot_write(self.path, error)) from None

    def _mark(self, names: set[str]) -> None:
        document = {"made_by": _MADE_BY, "files": sorted(names)}
        with replaced_file(self.path / MARKER) as scratch:
            scratch.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _is_scratch(name: str) -> bool:
    """Return whether a name is that of a folder which a killed process left."""
    return name.startswith(PREFIX) and name != MARKER


def _named(marker: Path) -> frozenset[str]:
    """Return the names of files in a marker.

    Raises:
        StorageError: the file is not the marker of a report.
    """
    try:
        document = as_object(json.loads(marker.read_text(encoding="utf-8")), "marker")
        if document.get("made_by") != _MADE_BY:
            raise ValueError("another program made it")
        names = [as_text(name, "files") for name in as_list(document.get("files"), "files")]
    except (OSError, ValueError, RecursionError):
        raise StorageError(
            f"{str(marker)!r} is damaged, so it is not known which files are a report's: name a "
            "new or empty folder"
        ) from None
    return frozenset(name for name in names if _OURS.fullmatch(name))
