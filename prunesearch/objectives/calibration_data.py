"""Calibration text, and how it is cut into token windows.

The text comes from one of the `calibration_sources`.

If a tokenizer begins texts with a special token (BOS), each window begins with it, too. A model
that was trained with the token gives other outputs without it, and the requests of tasks contain
it.
"""

import re
from collections.abc import Callable

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunesearch.errors import DataError
from prunesearch.events import tell_or_log
from prunesearch.models.guard import guarded
from prunesearch.models.model_configs import settings_of
from prunesearch.models.structure import most_positions
from prunesearch.objectives.calibration_sources.registry import source_of
from prunesearch.objectives.text_files import open_text, read_jsonl
from prunesearch.units import noun_for

__all__ = [
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

LONG_TEXT = 3 * 2**19
"""Characters up to which a text is tokenised whole. A longer text is tokenised in parts."""
_PIECE = 16  # characters of a part per token of a window: more than a token has in any language
Encode = Callable[[str], list[int]]
_PROBES = ("a", "the", ".", "0")


def read_text(source: str, tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
    """Read documents from a calibration source.

    Args:
        source: name of a source, such as ``builtin``, a file or a dataset (see
            `calibration_sources`).
        tokenizer: tokenizer with the chat template for conversations. None: they are refused.

    Raises:
        DataError: the source does not exist, or it has no text.
    """
    documents = []
    for text in source_of(source).read(source, tokenizer):
        if text and not text.isspace():
            documents.append(text)
    if not documents:
        raise DataError(f"calibration source {source!r} holds no text")
    return documents


def token_windows(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
    window: int,
    fewest: int | None = None,
) -> torch.Tensor:
    """Tokenise a source, and choose windows of consecutive tokens from all over it.

    The order of the windows depends on the length of the text only, and a larger sample begins with
    the smaller one. So stored results can be reused. A text of more than `LONG_TEXT` characters is
    tokenised in parts, and only as many parts are tokenised as are needed.

    Args:
        source: see `read_text`.
        tokenizer: the model's tokenizer.
        tokens: number of tokens in all.
        window: tokens of a window.
        fewest: number of tokens that suffice if the text has no more. Default: `tokens`.

    Returns:
        int64 token ids of shape (tokens // window, window), or fewer windows if `fewest` allows it.
        Each window begins with the special
        tokens that the tokenizer begins texts with, if any.

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
        # A chat template writes BOS itself, so it is removed here.
        if opening and ids[: len(opening)] == opening:
            return ids[len(opening) :]
        return ids

    choose = _from_parts if len(text) > LONG_TEXT else _from_whole
    chosen, found = choose(text, read, body, wanted)
    needed = wanted if fewest is None else fewest // window
    if len(chosen) < needed:
        raise DataError(
            f"calibration text {source!r} is too short: it has {found} {noun_for(found, 'token')}, "
            f"{needed * body} are needed; give more text or fewer `tokens`"
        )
    return torch.tensor([opening + ids for ids in chosen], dtype=torch.int64)


def _from_whole(text: str, read: Encode, length: int, wanted: int) -> tuple[list[list[int]], int]:
    """Return windows of a text that is tokenised whole, and its number of tokens."""
    ids = read(text)
    have = len(ids) // length
    # The seed is the number of windows, so the order depends on the length of the text only.
    order = np.random.Generator(np.random.Philox(key=have)).permutation(have)[:wanted]
    return [ids[i * length : (i + 1) * length] for i in order.tolist()], len(ids)


def _from_parts(text: str, read: Encode, length: int, wanted: int) -> tuple[list[list[int]], int]:
    """Return windows of a long text, and the number of tokens that were read.

    The first window of each part comes first, then the second window of each part, and so on.
    """
    size = _PIECE * length
    count = len(text) // size
    order = np.random.Generator(np.random.Philox(key=count)).permutation(count)
    chosen: list[list[int]] = []
    later: list[list[list[int]]] = []
    found = 0
    # Take the first window of each part. Usually these are enough.
    for place in order.tolist():
        if len(chosen) == wanted:
            return chosen, found
        ids = read(_part(text, place * size, size))
        found += len(ids)
        stretches = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
        chosen += stretches[:1]
        later.append(stretches[1:])
    # Take the further windows of all parts in turn.
    for turn in range(max(map(len, later), default=0)):
        for stretches in later:
            if turn < len(stretches):
                chosen.append(stretches[turn])
    return chosen[:wanted], found


def _part(text: str, start: int, size: int) -> str:
    """Return a part of a text. It begins at the start of a word if it contains spaces."""
    part = text[start : start + size]
    space = re.search(r"\s+", part)
    if start == 0 or space is None:
        return part
    return part[space.end() :]


def opening_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that a tokenizer begins every text with: BOS for many models, otherwise
    none.
    """
    for probe in _PROBES:
        bare: list[int] = tokenizer(probe, add_special_tokens=False)["input_ids"]
        whole: list[int] = tokenizer(probe)["input_ids"]
        if not bare:
            continue
        # The ids in front of the text itself are the opening.
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return whole[:start]
    return []


def ids_of(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Return the token ids of each text, without the tokenizer's special tokens at the start and
    end.
    """
    with guarded("the tokenizer cannot read the text", kind=DataError):
        rows: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
    return rows


def check_fits(model: PreTrainedModel, ids_BL: torch.Tensor) -> None:
    """Check that the model has embeddings for the positions and the tokens of windows.

    Raises:
        DataError: the windows are too long, or they have unknown token ids.
    """
    length, most = ids_BL.shape[1], most_positions(model)
    if most is not None and length > most:
        raise DataError(
            f"windows of {length} tokens are longer than the model's table of {most} positions: "
            f"use `window` {most} or "
            "less"
        )
    check_ids(model, int(ids_BL.max()) if ids_BL.numel() else 0)


def mention_long_windows(model: PreTrainedModel, length: int) -> None:
    """Tell the user if windows are longer than those that a model was trained on.

    A model that computes its positions takes them, and says less about them. Scaled rotary
    embeddings are made for longer windows, and the config does not always say for how long ones.

    Args:
        model: the model.
        length: tokens of a window.
    """
    settings = settings_of(model.config)
    trained = getattr(settings, "max_position_embeddings", None)
    if not isinstance(trained, int) or not 0 < trained < length:
        return
    rope = getattr(settings, "rope_parameters", None) or {}
    # The settings may be those of several types of layers.
    tables = [rope, *(table for table in rope.values() if isinstance(table, dict))]
    if all(table.get("rope_type", "default") == "default" for table in tables):
        tell_or_log(
            f"windows of {length} tokens are longer than the {trained} positions that the model "
            f"was trained on, so scores on them may say little: use windows of {trained} or less"
        )


def check_ids(model: PreTrainedModel, largest: int) -> None:
    """Check that the model has embeddings for all token ids.

    Args:
        model: the model.
        largest: largest token id.

    Raises:
        DataError: the id is too large, so the tokenizer belongs to another model.
    """
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    words = len(weight)
    if largest >= words:
        raise DataError(
            f"the tokenizer gives the token id {largest} and the model has embeddings for {words} "
            f"tokens: the "
            "tokenizer's files are not this model's"
        )
