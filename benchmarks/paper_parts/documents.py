"""HellaSwag documents for the searches, and others for the winners."""

from collections.abc import Sequence
from pathlib import Path

from prunesearch.cache.files import replaced_file
from prunesearch.objectives.text_files import open_text

PART = 384
"""Documents of a part of the held-out documents."""


def split(path: Path, search: int, held_out: int, folder: Path) -> tuple[Path, tuple[Path, ...]]:
    """Write the first documents of a file, and those after them, as files of their own.

    Those after them are in parts of `PART` documents.

    Args:
        path: file with one document per line.
        search: number of documents for searches.
        held_out: number of documents for winners.
        folder: folder of the two files.

    Raises:
        SystemExit: the file has too few documents, or the studies of the folder were searched on
            others.
    """
    with open_text(path) as file:
        lines = [line for line in file if line.strip()]
    if len(lines) < search + held_out:
        raise SystemExit(
            f"{path} has {len(lines)} documents, and {search} + {held_out} are asked for: lower "
            "--search-documents or --documents"
        )
    searched = folder / f"search-{search}.jsonl"
    _refuse_other(searched, lines[:search])
    _write(searched, lines[:search])
    end = search + held_out
    parts = []
    for start in range(search, end, PART):
        stop = min(start + PART, end)
        parts.append(folder / f"held-out-{start}-{stop - 1}.jsonl")
        _write(parts[-1], lines[start:stop])
    return searched, tuple(parts)


def _refuse_other(searched: Path, lines: Sequence[str]) -> None:
    """Refuse a folder whose studies were searched on other documents.

    The winners of these studies would be scored on documents that their search has seen.

    Raises:
        SystemExit: the folder has other documents of a search.
    """
    for earlier in searched.parent.glob("search-*.jsonl"):
        if earlier.name != searched.name or earlier.read_text() != "".join(lines):
            raise SystemExit(
                f"the studies of {searched.parent} were searched on {earlier.name}, and other "
                "documents are asked for: take another --folder"
            )


def _write(path: Path, lines: Sequence[str]) -> None:
    """Write lines, unless the file has them."""
    text = "".join(lines)
    if not path.exists() or path.read_text() != text:
        with replaced_file(path) as scratch:
            scratch.write_text(text)
