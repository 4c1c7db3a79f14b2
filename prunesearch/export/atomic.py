"""A file that is complete or absent."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunesearch.errors import StorageError, one_line


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """A temporary file beside `out` that takes its name when the ``with`` block ends well; there must be none yet.

    Raises:
        StorageError: there is a file, or none can be written.
    """
    if out.exists():
        raise StorageError(f"{str(out)!r} exists: choose another name, or delete it first")
    scratch: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{out.name}-", dir=out.parent)
        os.close(handle)
        scratch = Path(name)
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.chmod(0o644)
        scratch.rename(out)
    except OSError as error:
        raise StorageError(f"cannot write {str(out)!r}: {one_line(error)}") from None
    finally:
        if scratch is not None:
            scratch.unlink(missing_ok=True)
