"""Exception types.

    PruneSearchError
    ├── InputError (ValueError)   the user can correct it: exit status 2, nothing was written
    │   ├── UnknownNameError      a name that does not exist; carries the nearest one
    │   ├── ModelError            a model that is missing, damaged or of an unsupported architecture
    │   ├── DataError             calibration text or task data that cannot be used
    │   ├── StudyError            a study that is missing or was made with another recipe
    │   │   └── StudyBusyError    a study that another process is searching
    │   ├── StorageError          a database, cache or output folder that cannot be used
    │   ├── NotFoundError         a job, study or file of the service that does not exist
    │   └── ConflictError         a request that the state of its object does not allow
    └── RunError                  a valid request failed: exit status 1, finished work is kept
        ├── ScoringError          one candidate could not be scored
        ├── CorruptEntryError     a stored evaluation is damaged
        ├── UnavailableError      the cache's disk or database does not work at the moment
        ├── DownloadError         a file could not be obtained or is not the one expected
        ├── ServerError           a server does not answer, fails, or is not understood
        └── VerificationError     an exported checkpoint does not equal its candidate

Every message says what happened, for which value, and what to do next. Catch `PruneSearchError` to
catch all of them.
"""

import difflib
from collections.abc import Iterable, Sequence

from prunesearch.runtime.masking import masked_text


class PruneSearchError(Exception):
    """Base class of all errors that the package raises deliberately."""


class InputError(PruneSearchError, ValueError):
    """The request cannot be carried out as it was given."""


class UnknownNameError(InputError):
    """A name that is not among the known ones.

    Args:
        kind: kind of the name, such as ``"sampler"``.
        name: name as given.
        known: existing names. The nearest one is suggested.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
        if near:
            hint = f"did you mean {near[0]!r}?"
        elif len(names) <= 24:
            hint = f"known: {', '.join(names)}"
        else:
            hint = f"{len(names)} are known and none is near"
        super().__init__(f"unknown {kind} {name!r}: {hint}")


class ModelError(InputError):
    """A model that cannot be loaded or pruned."""


class DataError(InputError):
    """Text or task data that cannot be used."""


class StudyError(InputError):
    """A study that is missing, or that was made with another recipe or model."""


class StudyBusyError(StudyError):
    """A study that another process is searching."""


class StorageError(InputError):
    """A database, cache or folder that cannot or must not be opened."""


class NotFoundError(InputError):
    """A job, study or file of the service that does not exist."""


class ConflictError(InputError):
    """A request that the present state of its object does not allow."""


class RunError(PruneSearchError):
    """A failure while running. Finished work is kept."""


class ScoringError(RunError):
    """A candidate could not be scored."""


class CorruptEntryError(RunError):
    """A stored evaluation does not match its checksum."""


class UnavailableError(RunError):
    """A disk or a database of the cache cannot be used at the moment."""


class DownloadError(RunError):
    """A file could not be obtained, or is not the expected one."""


class ServerError(RunError):
    """A prunesearch server that does not answer, that failed, or that is not understood."""


class VerificationError(RunError):
    """An exported checkpoint does not reproduce the candidate."""


def one_line(error: BaseException) -> str:
    """Return an exception's text as one line of at most 300 characters, without secrets."""
    text = masked_text(" ".join(str(error).split())) or type(error).__name__
    if len(text) > 300:
        return text[:297] + "..."
    return text


def either(words: Sequence[str]) -> str:
    """Return words as ``a, b or c``."""
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + " or " + words[-1]
