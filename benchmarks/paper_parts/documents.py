"""HellaSwag documents for the searches, and others for the winners."""

from pathlib import Path

from prunesearch.cache.files import replaced_file
from prunesearch.objectives.text_files import open_text


def split(path: Path, search: int, held_out: int, folder: Path) -> tuple[Path, Path]:
    """Write the first documents of a file, and those after them, as files of their own.

    Args:
        path: file with one document per line.
        search: number of documents for searches.
        held_out: number of documents for winners.
        folder: folder of the two files.

    Raises:
        SystemExit: the file has too few documents.
    """
    with open_text(path) as file:
        lines = [line for line in file if line.strip()]
    if len(lines) < search + held_out:
        raise SystemExit(
            f"{path} has {len(lines)} documents, and {search} + {held_out} are asked for: lower "
            "--search-documents or --documents"
        )
    searched = folder / f"search-{search}.jsonl"
    kept = folder / f"held-out-{search}-{search + held_out - 1}.jsonl"
    for target, part in ((searched, lines[:search]), (kept, lines[search : search + held_out])):
        text = "".join(part)
        if not target.exists() or target.read_text() != text:
            with replaced_file(target) as scratch:
                scratch.write_text(text)
    return searched, kept
