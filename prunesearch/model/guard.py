"""One guard around code of others that reads the user's files.

A damaged or unusual file makes transformers, tokenizers, safetensors, gguf, pyarrow or a checkpoint's own code raise
exceptions of any type. `guarded` turns each of them into one line that says what failed, why, and what to do.

Only the foreign call belongs into the ``with`` block: an error of our own code there would be blamed on the file.
"""

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prunesearch.errors import ModelError, PruneSearchError, RunError, one_line
from prunesearch.store.files import foreign_writer

_POINTER = b"version https://git-lfs.github.com/spec/"
_WEIGHTS = frozenset(".safetensors .bin .pt .pth .gguf .onnx .msgpack .h5 .ot .tflite".split())
_POINTER_BYTES = 1024  # a pointer is smaller, by its specification
_SPEAK_FOR_THEMSELVES = (OSError, ValueError, RuntimeError, ImportError)
"""Errors whose text is a sentence; that of others, such as a KeyError, means little without their type."""

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
    """Turn whatever foreign code raises inside the ``with`` block into one line.

    Args:
        failure: what could not be done, with the name of the file: ``cannot read 'x'``.
        place: what is read: see `refuse_pointers`. A git-lfs pointer there is the reason, whatever was raised.
        advice: what the user can do.
        kind: type of the error raised instead.
        passes: types that are let through, because the caller knows what to do about them.

    Raises:
        PruneSearchError: of that kind; one that is raised inside is let through as it is.
    """
    let_through: tuple[type[BaseException], ...] = (PruneSearchError, KeyboardInterrupt, GeneratorExit, *passes)
    try:
        yield
    except let_through:
        raise
    except BaseException as error:  # a catch-all: foreign code raises anything, SystemExit and panics of Rust too
        if not isinstance(error, Exception | SystemExit) and type(error).__name__ != "PanicException":
            raise
        refuse_pointers(place, kind)
        raise kind(f"{failure}: {reason_of(error)}{'; ' if advice else ''}{advice}") from error


@contextmanager
def guarded_writing(what: str) -> Iterator[None]:
    """Turn whatever a foreign writer raises into one line.

    Args:
        what: is written, as in ``the tokenizer``.

    Raises:
        OSError: the disk is full, or the file cannot be written; the caller knows which place that is.
        RunError: anything else: the writer does not take what it is given.
    """
    with guarded(f"{what} cannot be written", kind=RunError, passes=(OSError,)), foreign_writer():
        yield


def reason_of(error: BaseException) -> str:
    """What an exception says, in one line; with its type where the text alone means little."""
    if isinstance(error, SystemExit):
        return f"its code ends the program (exit status {error.code})"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text (byte {error.start})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, ValueError) and "trust_remote_code" in str(error):
        return "it needs code that ships with it; read that code, then add --trust-remote-code to run it"
    if "`ignore_mismatched_sizes`" in str(error):  # transformers logs which, and its log is not shown
        return "a weight has another shape than the config says; get it again"
    if isinstance(error, pickle.UnpicklingError):  # torch's text tells how to load it all the same
        return "it is damaged, or holds more than tensors, which could run code; get it as safetensors"
    text = one_line(error)
    name = type(error).__name__
    return text if isinstance(error, _SPEAK_FOR_THEMSELVES) or text == name else f"{name}: {text}"


def refuse_pointers(place: Place, kind: type[PruneSearchError] = ModelError) -> None:
    """Refuse a file that git-lfs has not fetched yet.

    Args:
        place: a file, a folder or several of them. Of a folder all files but those of weights are looked at: a folder
            may hold weights in several formats, and only some are read.

    Raises:
        PruneSearchError: of that kind; names the file.
    """
    for path in [Path(place)] if isinstance(place, str | Path) else place:
        try:
            files = [f for f in sorted(path.iterdir()) if f.suffix not in _WEIGHTS] if path.is_dir() else [path]
            pointer = next((file for file in files if is_pointer(file)), None)
        except OSError:
            continue  # it cannot be looked at, which is what the reader says too
        if pointer is not None:
            raise kind(
                f"{str(pointer)!r} is a git-lfs pointer and not the file itself: run 'git lfs pull' in its folder, or "
                "download the file"
            )


def is_pointer(path: Path) -> bool:
    """Whether a file is a git-lfs pointer: a few lines of text that stand for a large file."""
    if not path.is_file() or path.stat().st_size > _POINTER_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER
