"""What can go wrong, as types.

    PruneSearchError
    ├── InputError (ValueError)      the user can mend it: one line, exit status 2, nothing was written
    │   ├── UnknownNameError         a name that does not exist; carries the nearest one that does
    │   ├── ModelError               a model that is missing, damaged or of an unsupported architecture
    │   ├── DataError                calibration text or task data that cannot be used
    │   ├── StudyError               a study that is missing or was made with another recipe
    │   │   └── StudyBusyError       a study that another process is searching
    │   └── StorageError             a database, cache or output folder that cannot be used
    └── RunError                     it was asked for rightly and failed; exit status 1, nothing finished is lost
        ├── ScoringError             one candidate could not be scored
        ├── CorruptEntryError        a stored evaluation is damaged
        ├── UnavailableError         the store's disk or database does not work just now
        ├── DownloadError            a file could not be obtained or is not the one expected
        └── VerificationError        an exported checkpoint does not equal the candidate it was made from

Every message says what happened, with which value, and what to do next. Catch `PruneSearchError` to catch them all.
"""

import difflib
from collections.abc import Iterable

from prunesearch.masking import masked_text


class PruneSearchError(Exception):
    """Root of all errors raised on purpose."""


class InputError(PruneSearchError, ValueError):
    """The request cannot be carried out as it was put."""


class UnknownNameError(InputError):
    """A name that is not among the known ones.

    Args:
        kind: what is named, e.g. ``"sampler"``.
        name: the name as given.
        known: the names that exist; the nearest is suggested.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
        if near:
            hint = f"did you mean {near[0]!r}?"
        elif len(names) <= 12:
            hint = f"known: {', '.join(names)}"
        else:
            hint = f"{len(names)} are known and none is near"
        super().__init__(f"unknown {kind} {name!r}: {hint}")


class ModelError(InputError):
    """A model that cannot be loaded or pruned."""


class DataError(InputError):
    """Text or task data that cannot be used."""


class StudyError(InputError):
    """A study that is missing, or that another recipe or model has made."""


class StudyBusyError(StudyError):
    """A study that another process is searching."""


class StorageError(InputError):
    """A database, cache or folder that cannot be opened, or must not be."""


class RunError(PruneSearchError):
    """A failure while running; what was finished before is kept."""


class ScoringError(RunError):
    """A candidate could not be scored."""


class CorruptEntryError(RunError):
    """A stored evaluation does not match its checksum."""


class UnavailableError(RunError):
    """A disk or a database of the store cannot be used just now."""


class DownloadError(RunError):
    """A file could not be obtained, or is not the one expected."""


class VerificationError(RunError):
    """An exported checkpoint does not reproduce the candidate."""


def one_line(error: BaseException) -> str:
    """Fold an exception's text into one line of at most 300 characters, for messages and attributes; no secrets."""
    text = masked_text(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
