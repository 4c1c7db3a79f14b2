"""Calibration text: where it comes from and how it becomes token windows.

`builtin` is English prose that every machine has: Python's own language reference (`pydoc_data.topics`) and the
descriptions that prunesearch's dependencies install. It needs no download; text of one's own domain is better.

Where a tokenizer begins texts with a token of its own (BOS), each window begins with it: models that were trained so
compute something else without it, and the requests of tasks have it.
"""

import hashlib
import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunesearch.errors import DataError
from prunesearch.model.anatomy import most_positions
from prunesearch.model.guard import guarded
from prunesearch.recipe import BUILTIN_TEXT
from prunesearch.scoring.text_files import (
    CHAT_FIELDS,
    FIELDS,
    LOOKS_LIKE_A_FILE,
    TEXT_FIELDS,
    documents_in,
    documents_of,
    open_text,
    read_jsonl,
)

__all__ = [
    "HELD_OUT",
    "LONG_TEXT",
    "check_fits",
    "check_ids",
    "ids_of",
    "open_text",
    "opening_of",
    "read_jsonl",
    "read_text",
    "token_windows",
]  # fmt: skip

HELD_OUT = "builtin-held-out"
"""The part of the builtin text that no search is calibrated on."""

_DESCRIBED = """
    accelerate alembic click datasets diskcache hf-xet huggingface-hub joblib lm-eval multiprocess nltk numpy
    optuna pandas peft psutil pydantic rich safetensors scikit-learn scipy sqlalchemy tokenizers torch tqdm
    transformers""".split()
LONG_TEXT = 3 * 2**19
"""Characters up to which a text is tokenised whole; of a longer one only parts are."""
_PIECE = 16  # characters of a part, for each token that is taken of it: more than any language has in a token
Read = Callable[[str], list[int]]
_PROBES = ("a", "the", ".", "0")


def read_text(source: str, tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
    """Read documents from a calibration source.

    Args:
        source: ``builtin``, ``builtin-held-out``, a file (see `text_files`), or a dataset as ``id[:config[:split]]``
            for `datasets.load_dataset` (a folder works as an id).
        tokenizer: whose chat template writes conversations; without one they are refused.

    Raises:
        DataError: nothing there, or no text in it.
    """
    if source in (BUILTIN_TEXT, HELD_OUT):
        return _builtin(held_out=source == HELD_OUT)
    path = Path(source)
    if path.is_file():
        documents = documents_in(path, tokenizer)
    elif path.suffix.lower() in LOOKS_LIKE_A_FILE or not source.strip():
        raise DataError(f"no calibration file {source!r}: check the path")
    elif source == "-" or (path.exists() and not path.is_dir()):
        raise DataError(
            f"calibration {source!r} is a pipe or a device, and the text is read more than once: write it to a file"
        )
    else:
        documents = _read_dataset(source, tokenizer)
    documents = [text for text in documents if text and not text.isspace()]
    if not documents:
        raise DataError(f"calibration source {source!r} holds no text")
    return documents


def token_windows(source: str, tokenizer: PreTrainedTokenizerBase, tokens: int, window: int) -> torch.Tensor:
    """Tokenise a source and choose windows of consecutive tokens from all over it.

    The order of windows is fixed by the text's length alone and a larger sample begins with the smaller one, so that
    stored results stay of use. A text of more than `LONG_TEXT` characters is tokenised in parts, and no more of them
    than are needed.

    Returns:
        int64 token ids of shape (tokens // window, window). Each window begins with what the tokenizer begins texts
        with, where it does so.

    Raises:
        DataError: the text is too short.
    """
    window = min(window, tokens)
    wanted = tokens // window
    opening = opening_of(tokenizer)
    body = window - len(opening)
    text = "\n\n".join(read_text(source, tokenizer))

    def read(part: str) -> list[int]:
        ids = ids_of(tokenizer, [part])[0]
        # A chat template writes BOS itself.
        return ids[len(opening) :] if opening and ids[: len(opening)] == opening else ids

    choose = _from_parts if len(text) > LONG_TEXT else _from_whole
    chosen, found = choose(text, read, body, wanted)
    if len(chosen) < wanted:
        raise DataError(
            f"calibration text {source!r} is too short: it has {found} tokens, "
            f"{wanted * body} are needed; give more text or fewer --tokens"
        )
    return torch.tensor([opening + ids for ids in chosen], dtype=torch.int64)


def _from_whole(text: str, read: Read, length: int, wanted: int) -> tuple[list[list[int]], int]:
    """Stretches of a text that is tokenised whole, and how many tokens it has."""
    ids = read(text)
    have = len(ids) // length
    order = np.random.Generator(np.random.Philox(key=have)).permutation(have)[:wanted]
    return [ids[i * length : (i + 1) * length] for i in order.tolist()], len(ids)


def _from_parts(text: str, read: Read, length: int, wanted: int) -> tuple[list[list[int]], int]:
    """Stretches of a long text: the first of each part in turn, then the second of each, and so on."""
    size = _PIECE * length
    count = len(text) // size
    order = np.random.Generator(np.random.Philox(key=count)).permutation(count)
    chosen: list[list[int]] = []
    later: list[list[list[int]]] = []
    found = 0
    for place in order.tolist():
        if len(chosen) == wanted:
            return chosen, found
        ids = read(_part(text, place * size, size))
        found += len(ids)
        stretches = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
        chosen += stretches[:1]
        later.append(stretches[1:])
    for turn in range(max(map(len, later), default=0)):
        chosen += [stretches[turn] for stretches in later if turn < len(stretches)]
    return chosen[:wanted], found


def _part(text: str, start: int, size: int) -> str:
    """A part of a text; it begins with a word where the text has words."""
    part = text[start : start + size]
    space = re.search(r"\s+", part)
    return part if start == 0 or space is None else part[space.end() :]


def opening_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that a tokenizer begins every text with: BOS for most models that have one, often none."""
    for probe in _PROBES:
        bare: list[int] = tokenizer(probe, add_special_tokens=False)["input_ids"]
        whole: list[int] = tokenizer(probe)["input_ids"]
        for start in range(len(whole) - len(bare) + 1 if bare else 0):
            if whole[start : start + len(bare)] == bare:
                return whole[:start]
    return []


def ids_of(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text alone, without what the tokenizer begins or ends texts with."""
    with guarded("the tokenizer cannot read the text", kind=DataError):
        rows: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return rows


def check_fits(model: PreTrainedModel, ids_BL: torch.Tensor) -> None:
    """Refuse windows that the model has no embeddings for: too long, or with tokens that it does not know.

    Raises:
        DataError: says the limit.
    """
    length, most = ids_BL.shape[1], most_positions(model)
    if most is not None and length > most:
        raise DataError(
            f"windows of {length} tokens are longer than the model's table of {most} positions: use --window {most} or "
            "less"
        )
    check_ids(model, int(ids_BL.max()) if ids_BL.numel() else 0)


def check_ids(model: PreTrainedModel, largest: int) -> None:
    """Refuse token ids that the model has no embeddings for.

    Raises:
        DataError: the tokenizer is another model's.
    """
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    words = len(weight)
    if largest >= words:
        raise DataError(
            f"the tokenizer gives the token id {largest} and the model has embeddings for {words} tokens: the "
            "tokenizer's files are not this model's"
        )


def _read_dataset(source: str, tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    import datasets

    name, _, rest = source.partition(":")
    config, _, split = rest.partition(":")
    failure = f"cannot load calibration {source!r} as a file or dataset"
    with guarded(failure, kind=DataError, advice="give FILE or id[:config[:split]]"):
        data = datasets.load_dataset(name, config or None, split=split or "train")
        wanted = [name for name in data.column_names if name in (*TEXT_FIELDS, *CHAT_FIELDS)]
        rows = data.select_columns(wanted).to_list() if wanted else []
    if not wanted:
        raise DataError(
            f"dataset {source!r} has no text column ({FIELDS}): its columns are {', '.join(data.column_names)}"
        )
    return documents_of(rows, f"dataset {source!r}", tokenizer)


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
