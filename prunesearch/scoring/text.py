"""Calibration text: where it comes from and how it becomes token windows.

`builtin` is English prose that every machine has: Python's own language reference (`pydoc_data.topics`) and the
descriptions that prunesearch's dependencies install. It needs no download; text of one's own domain is better.
"""

import bz2
import gzip
import hashlib
import importlib.metadata
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from prunesearch.errors import DataError, one_line
from prunesearch.recipe import BUILTIN_TEXT

HELD_OUT = "builtin-held-out"
"""The part of the builtin text that no search is calibrated on."""

_DESCRIBED = """
    accelerate alembic click datasets diskcache hf-xet huggingface-hub joblib lm-eval multiprocess nltk numpy
    optuna pandas peft psutil pydantic rich safetensors scikit-learn scipy sqlalchemy tokenizers torch tqdm
    transformers""".split()
_TEXT_FIELDS = ("text", "content", "document")


def read_text(source: str) -> list[str]:
    """Read documents from a calibration source.

    Args:
        source: ``builtin``, ``builtin-held-out``, a text or JSONL file (``.gz`` and ``.bz2`` too), or a dataset as
            ``id[:config[:split]]`` for `datasets.load_dataset` (a folder works as an id).

    Raises:
        DataError: nothing there, or no text in it.
    """
    if source in (BUILTIN_TEXT, HELD_OUT):
        return _builtin(held_out=source == HELD_OUT)
    path = Path(source)
    if path.is_file():
        documents = _read_file(path)
    elif path.suffix in (".txt", ".jsonl", ".gz", ".bz2", ".json", ".md"):
        raise DataError(f"no calibration file {source!r}: check the path")
    else:
        documents = _read_dataset(source)
    documents = [text for text in documents if text.strip()]
    if not documents:
        raise DataError(f"calibration source {source!r} holds no text")
    return documents


def token_windows(source: str, tokenizer: PreTrainedTokenizerBase, tokens: int, window: int) -> torch.Tensor:
    """Tokenise a source and choose windows of consecutive tokens from all over it.

    The order of windows is fixed by the text's length alone and a larger sample begins with the smaller one, so that
    stored results stay of use.

    Returns:
        int64 token ids of shape (tokens // window, window).

    Raises:
        DataError: the text is too short.
    """
    window = min(window, tokens)
    wanted = tokens // window
    text = "\n\n".join(read_text(source))
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    have = len(ids) // window
    if have < wanted:
        raise DataError(
            f"calibration text {source!r} is too short: it has {len(ids)} tokens, "
            f"{wanted * window} are needed; give more text or fewer --tokens"
        )
    order = np.random.Generator(np.random.Philox(key=have)).permutation(have)[:wanted]
    return torch.tensor(ids[: have * window]).view(have, window)[torch.from_numpy(order)]


def open_text(path: Path) -> Any:  # noqa: ANN401 (three kinds of text file)
    """Open a plain, .gz or .bz2 file as text."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".bz2":
        return bz2.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line.

    Raises:
        DataError: not readable, not JSON lines, or empty.
    """
    rows: list[dict[str, Any]] = []
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise DataError(f"{str(path)!r} line {number} is no JSON object")
                    rows.append(row)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"cannot read {str(path)!r}: {one_line(error)}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{str(path)!r} line {number} is not JSON: {error.msg}") from None
    if not rows:
        raise DataError(f"{str(path)!r} is empty")
    return rows


def _read_file(path: Path) -> list[str]:
    if ".jsonl" in path.suffixes:
        rows = read_jsonl(path)
        field = next((name for name in _TEXT_FIELDS if name in rows[0]), None)
        if field is None:
            raise DataError(
                f"{str(path)!r} has no field {' or '.join(map(repr, _TEXT_FIELDS))}: "
                f"its fields are {', '.join(sorted(rows[0]))}"
            )
        return [str(row.get(field, "")) for row in rows]
    try:
        with open_text(path) as file:
            return [str(file.read())]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"cannot read calibration text {str(path)!r}: {one_line(error)}") from None


def _read_dataset(source: str) -> list[str]:
    import datasets

    name, _, rest = source.partition(":")
    config, _, split = rest.partition(":")
    try:
        data = datasets.load_dataset(name, config or None, split=split or "train")
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"cannot load calibration {source!r} as a file or dataset: {one_line(error)}; "
            "give FILE or id[:config[:split]]"
        ) from None
    field = next((field for field in _TEXT_FIELDS if field in data.column_names), None)
    if field is None:
        raise DataError(f"dataset {source!r} has no text column: its columns are {', '.join(data.column_names)}")
    return [str(text) for text in data[field]]


def _builtin(*, held_out: bool) -> list[str]:
    """Paragraphs of prose, each once; a quarter of the documents, by the digest of their names, is held out.

    The language reference repeats itself, so a paragraph that both parts have belongs to calibration alone.
    """
    from pydoc_data.topics import topics

    documents = dict(topics)
    for name in _DESCRIBED:
        try:
            documents[name] = str(importlib.metadata.metadata(name).json["description"])
        except (importlib.metadata.PackageNotFoundError, KeyError):
            continue
    parts: dict[bool, list[str]] = {False: [], True: []}
    for name in sorted(documents):
        paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", documents[name]))
        parts[hashlib.sha256(name.encode()).digest()[0] < 64].extend(filter(_is_prose, paragraphs))
    calibration = dict.fromkeys(parts[False])
    return [p for p in dict.fromkeys(parts[True]) if p not in calibration] if held_out else list(calibration)


def _is_prose(paragraph: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    return len(paragraph) > 120 and paragraph[-1] in ".:)" and letters > 0.88 * len(paragraph)
