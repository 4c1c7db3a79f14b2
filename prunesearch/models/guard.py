"""A guard around foreign code that reads the user's files.

A damaged or unusual file makes transformers, tokenizers, safetensors, gguf, pyarrow or a
checkpoint's own code raise exceptions of any type. `guarded` turns each of them into one line that
says what failed, why, and what to do.

Only the foreign call belongs into the ``with`` block. An error of our own code there would be
blamed on the file.
"""

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from prunesearch.cache.files import foreign_writer
from prunesearch.errors import (
    ModelError,
    PruneSearchError,
    RunError,
    one_line,
)

_POINTER = b"version https://git-lfs.github.com/spec/"
_WEIGHTS = frozenset(".safetensors .bin .pt .pth .gguf .onnx .msgpack .h5 .ot .tflite".split())
# The specification demands that a pointer is smaller.
_POINTER_BYTES = 1024
_SPEAK_FOR_THEMSELVES = (OSError, ValueError, RuntimeError, ImportError)
"""Errors whose text is a sentence.

The text of others, such as a KeyError, means little without their type.
"""

_HUB: tuple[
    tuple[type[Exception], str], ...
] = (  # the first that fits: a gated repository is a kind of a missing one
    (
        GatedRepoError,
        "its owner asks for consent: accept the terms on its page, then log in with hf auth login",
    ),
    (
        RepositoryNotFoundError,
        "the hub has no such model, or it is private; log in with hf auth login",
    ),
    (RevisionNotFoundError, "the hub has no such branch, tag or commit"),
    (LocalEntryNotFoundError, "the hub cannot be reached, and no copy is on this machine"),
)
"""What the hub's errors mean; their own texts are several sentences long."""

Place = Path | str | Sequence[Path]


@contextmanager
def guarded(
    failure: str,
    place: Place = (),
    *,
    advice: str = "",
    kind: type[PruneSearchError] = ModelError,
    passes: tuple[type[BaseException], ...] = (),
) -> Iterator[None]:
    """Turn any exception of foreign code inside the ``with`` block into one line.

    Args:
        failure: description of the failure with the name of the file: ``cannot read 'x'``.
        place: files or folders that are read, as in `refuse_pointers`. If one is a git-lfs pointer,
            that is reported as the reason.
        advice: advice for the user.
        kind: type of the error that is raised instead.
        passes: types that are not converted, because the caller handles them.

    Raises:
        PruneSearchError: an error of type `kind`. A `PruneSearchError` from the ``with`` block is
            not changed.
    """
    let_through: tuple[type[BaseException], ...] = (
        PruneSearchError,
        KeyboardInterrupt,
        GeneratorExit,
        *passes,
    )
    try:
        yield
    except let_through:
        raise
    except BaseException as error:
        # Foreign code raises anything, including SystemExit and Rust's panics. Other BaseExceptions
        # are signals.
        if (
            not isinstance(error, Exception | SystemExit)
            and type(error).__name__ != "PanicException"
        ):
            raise
        refuse_pointers(place, kind)
        reason = reason_of(error)
        if advice:
            reason = f"{reason}; {advice}"
        raise kind(f"{failure}: {reason}") from error


@contextmanager
def guarded_writing(what: str) -> Iterator[None]:
    """Turn any exception of a foreign writer into one line.

    Args:
        what: name of the thing that is written, such as ``the tokenizer``.

    Raises:
        OSError: the disk is full, or the file cannot be written. The caller adds the path to the
            message.
        RunError: the writer fails for any other reason.
    """
    with guarded(f"{what} cannot be written", kind=RunError, passes=(OSError,)), foreign_writer():
        yield


def reason_of(error: BaseException) -> str:
    """Return the reason of an exception in one line, with its type if the text alone means
    little.
    """
    if isinstance(error, SystemExit):
        return f"its code ends the program (exit status {error.code})"
    for kind, meaning in _HUB:
        if isinstance(error, kind):
            return meaning
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text (byte {error.start})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, ValueError) and "trust_remote_code" in str(error):
        return (
            "it needs code that ships with it; "
            "read that code, then add `trust_remote_code` to run it"
        )
    # transformers names the weight only in its log, which is not shown.
    if "`ignore_mismatched_sizes`" in str(error):
        return "a weight has another shape than the config says; get it again"
    # torch's own text tells how to load the file without any check.
    if isinstance(error, pickle.UnpicklingError):
        return (
            "it is damaged, or holds more than tensors, which could run code; get it as safetensors"
        )
    text = one_line(error)
    name = type(error).__name__
    if isinstance(error, _SPEAK_FOR_THEMSELVES) or text == name:
        return text
    return f"{name}: {text}"


def refuse_pointers(place: Place, kind: type[PruneSearchError] = ModelError) -> None:
    """Refuse a file that git-lfs has not fetched yet.

    Args:
        place: a file, a folder or several of them. In a folder weight files are not checked: it may
            contain weights in several formats, of which only some are read.
        kind: type of the error.

    Raises:
        PruneSearchError: an error of type `kind` that names the file.
    """
    paths = [Path(place)] if isinstance(place, str | Path) else place
    for path in paths:
        try:
            pointer = _pointer_in(path)
        except OSError:
            # The reader of the file reports this error too.
            continue
        if pointer is not None:
            raise kind(
                f"{str(pointer)!r} is a git-lfs pointer and not the file itself: run 'git lfs "
                f"pull' in its folder, or "
                "download the file"
            )


def _pointer_in(path: Path) -> Path | None:
    """Return the file if it is a git-lfs pointer, or the first pointer in a folder.

    Weight files are skipped there.
    """
    files = [path]
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix not in _WEIGHTS]
    for file in files:
        if is_pointer(file):
            return file
    return None


def is_pointer(path: Path) -> bool:
    """Return whether a file is a git-lfs pointer: a few lines of text in place of a large file."""
    if not path.is_file() or path.stat().st_size > _POINTER_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER
