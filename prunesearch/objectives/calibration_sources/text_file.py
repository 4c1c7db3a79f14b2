"""Files with text: plain text, JSONL, JSON, CSV or Parquet (see `objectives.text_files`)."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from prunesearch.errors import DataError
from prunesearch.objectives.calibration_sources.registry import CalibrationSource, register
from prunesearch.objectives.text_files import LOOKS_LIKE_A_FILE, check_beginning, documents_in


def matches(name: str) -> bool:
    """Return whether a name is a file, or looks like one. A folder is a dataset."""
    path = Path(name)
    looks_like_a_file = path.suffix.lower() in LOOKS_LIKE_A_FILE or not name.strip()
    return looks_like_a_file or name == "-" or (path.exists() and not path.is_dir())


def read(name: str, tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
    """Read the documents of a file.

    Raises:
        DataError: the file does not exist, or it is not an ordinary file.
    """
    return documents_in(_ordinary(name), tokenizer)


def check(name: str) -> None:
    """Read the beginning of a file.

    Raises:
        DataError: it cannot be read.
    """
    check_beginning(_ordinary(name))


def _ordinary(name: str) -> Path:
    """Return the path of an ordinary file.

    Raises:
        DataError: it does not exist, or it is not one.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix.lower() in LOOKS_LIKE_A_FILE or not name.strip():
        raise DataError(f"no calibration file {name!r}: check the path")
    raise DataError(
        f"calibration {name!r} is a pipe or a device, and the text is read more than once: "
        "write it to a file"
    )


register(CalibrationSource("file", "FILE", order=20, matches=matches, read=read, check=check))
