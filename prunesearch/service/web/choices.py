"""What a user can choose on the submit page: the models and texts in the allowed folders."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_DEPTH = 3  # folders below an allowed one that are looked into
_MOST = 500  # names in a list; more can be typed into a recipe


def models(folders: Iterable[Path]) -> list[str]:
    """Return the names of the models in folders: checkpoints and GGUF files."""
    found: set[str] = set()
    for folder in folders:
        # A folder with a config is a checkpoint.
        for path in _walk(folder):
            if path.name == "config.json" and path.parent != folder:
                found.add(path.parent.relative_to(folder).as_posix())
            elif path.suffix == ".gguf":
                found.add(path.relative_to(folder).as_posix())
    return _sorted(found)


def data_files(folders: Iterable[Path]) -> list[str]:
    """Return the names of the files in folders."""
    found: set[str] = set()
    for folder in folders:
        for path in _walk(folder):
            found.add(path.relative_to(folder).as_posix())
    return _sorted(found)


def _sorted(names: set[str]) -> list[str]:
    """Return names in order. Names that a request could not give are left out."""
    usable = [name for name in names if name.isprintable() and "\\" not in name]
    return sorted(usable, key=str.casefold)[:_MOST]


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, without hidden ones and without deep ones."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        depth = len(here.relative_to(folder).parts)
        # Changing the list tells `walk` which folders to enter.
        folders[:] = [] if depth >= _DEPTH else sorted(n for n in folders if not n.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield here / name
