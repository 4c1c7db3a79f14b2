"""A file that remembers the last step of a run, for trackers that cannot be asked for it."""

import contextlib
from pathlib import Path

from prunesearch.cache.files import replaced_file


class StepFile:
    """The last step of a run, in a file.

    A step is written before it is sent. A process that is killed in between loses a step, and
    sends none twice.

    Args:
        path: the file. Its folder is made.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def read(self) -> int:
        """Return the last step; -1 if there is none, or the file is damaged."""
        with contextlib.suppress(OSError, ValueError):
            return int(self._path.read_text(encoding="ascii"))
        return -1

    def write(self, step: int) -> None:
        """Remember a step."""
        with replaced_file(self._path) as scratch:
            scratch.write_text(str(step), encoding="ascii")
