"""Names that are safe to show elsewhere: without folders of this machine, or as part of a path."""

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

_FILE = re.compile(
    r"\.(txt|jsonl?|csv|tsv|parquet|arrow|md|ya?ml|gguf|gz|bz2|xz|zst)$", re.IGNORECASE
)


def portable_name(text: str, *, always: bool = False) -> str:
    """Return the last part of a path, of this or another machine. Ids of hub models and datasets
    are unchanged.

    Args:
        text: path or id.
        always: treat `text` as a path, whatever it looks like.

    >>> portable_name("/home/me/customer-x/mails.txt")
    'mails.txt'
    >>> portable_name("Qwen/Qwen2.5-0.5B")
    'Qwen/Qwen2.5-0.5B'
    >>> portable_name("wiki:en")
    'wiki:en'
    """
    path: PurePosixPath | PureWindowsPath = PurePosixPath(text)
    if "\\" in text or re.match(r"[A-Za-z]:/", text):
        path = PureWindowsPath(text)
    # Signs of a path: an absolute or relative beginning, several folders, a file suffix, or an
    # existing file.
    begins = text.startswith(("/", "\\", ".", "~")) or bool(path.drive)
    several = text.partition(":")[0].count("/") > 1 or "\\" in text or "://" in text
    if not (always or begins or several or _FILE.search(text) or Path(text).exists()):
        return text
    if path.name in ("", ".."):
        return Path(text).resolve().name
    return path.name


def slug(text: str, limit: int = 60) -> str:
    """Return a short name that is safe in file names, URLs and shells."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:limit] or "model"
