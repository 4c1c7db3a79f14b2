"""Names that are safe to show elsewhere: without folders of this machine, or as part of a path."""

import re
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

from prunesearch.errors import InputError

_CONTROLS = ("Cc", "Cs", "Zl", "Zp")
"""Categories of characters that break lines, control a terminal or are not text."""
_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that turn the direction of the text."""
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


def check_study_name(name: str) -> None:
    """Check that tables and command lines can show the name of a study.

    Raises:
        InputError: the name is blank, or it has characters that break lines, control a terminal or
            turn the direction of the text.
    """
    if not name.strip():
        raise InputError(f"study = {name!r}: give a name, or leave it out")
    for letter in name:
        if unicodedata.category(letter) in _CONTROLS or letter in _TURNS:
            raise InputError(
                f"study = {name!r:.200}: a name has no control characters, and this one has "
                f"U+{ord(letter):04X}"
            )


def slug(text: str, limit: int = 60) -> str:
    """Return a short name that is safe in file names, URLs and shells."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:limit] or "model"
