"""Content of a local language model: a GGUF file, or a folder of Hugging Face."""

import hashlib
from pathlib import Path

from prunesearch.errors import InputError

_MAGIC = b"GGUF"
_READ = (".json", ".safetensors", ".model", ".txt", ".jinja")
"""Files of a folder that decide what the model replies."""


def check_magic(path: Path) -> None:
    """Refuse a file that is not a GGUF file.

    Raises:
        InputError: it is something else, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            begins = file.read(len(_MAGIC))
    except OSError as error:
        raise InputError(f"`llm_model` {path} cannot be read: {error.strerror}") from None
    if begins != _MAGIC:
        raise InputError(f"`llm_model` {path} is not a GGUF file")


def digest_of_file(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_folder(path: Path) -> str:
    """Return a digest of the model in a folder: its weights, its settings and its tokenizer.

    Raises:
        InputError: the folder holds no model.
    """
    digest = hashlib.sha256()
    try:
        if not (path / "config.json").is_file():
            raise InputError(
                f"`llm_model` {path} holds no config.json: give a folder with a model, or a "
                f".gguf file"
            )
        for file in sorted(path.iterdir()):
            if file.suffix in _READ and file.is_file():
                with file.open("rb") as opened:
                    content = hashlib.file_digest(opened, "sha256").hexdigest()
                digest.update(f"{file.name}\0{content}\n".encode())
    except OSError as error:
        raise InputError(f"`llm_model` {path} cannot be read: {error.strerror}") from None
    return digest.hexdigest()
