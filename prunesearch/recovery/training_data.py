"""Packed sequences of text.

Documents are joined, each with an end-of-text token after it, and cut into windows. If the
tokenizer begins texts with its own token (BOS), each document and each window begins with it.

Shapes: B sequences of L tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from prunesearch.config.recovery import HealRecipe
from prunesearch.errors import DataError
from prunesearch.objectives.calibration_data import (
    LONG_TEXT,
    ids_of,
    opening_of,
    read_text,
)
from prunesearch.objectives.calibration_sources.registry import source_of
from prunesearch.units import noun_for

# Documents, and characters, that are tokenised at a time.
_LOT = 256
_PART = 2**17


@dataclass(frozen=True)
class Sequences:
    """Token ids of the training text and of the held-out text, int64, shape (B, L)."""

    train_BL: torch.Tensor
    held_out_BL: torch.Tensor


def sequences_of(recipe: HealRecipe, tokenizer: PreTrainedTokenizerBase) -> Sequences:
    """Read and pack the data of a recipe. Training text and held-out text share no token.

    No more text is tokenised than the steps can read. The training text is cut to whole steps, so
    that all steps have the same size.

    Raises:
        DataError: a text is missing, is empty or is too short.
    """
    watched = max(1, recipe.held_out_tokens // recipe.window)
    # Without a held-out text of its own, the first windows of the data are kept apart.
    apart = recipe.held_out or source_of(recipe.data).held_out(recipe.data)
    skipped = 0 if apart else watched
    packed_BL, tokens = packed(
        recipe.data, tokenizer, recipe.window, skipped + recipe.steps * recipe.batch
    )
    if len(packed_BL) < skipped + recipe.batch:
        kept_apart = ""
        if skipped:
            kept_apart = f", {skipped * recipe.window} of them for watching the loss"
        _refuse(
            recipe.data,
            tokens,
            (skipped + recipe.batch) * recipe.window,
            kept_apart,
            "`batch_size`",
        )
    # Take the held-out windows.
    if apart is None:
        held_out_BL = packed_BL[:watched]
    else:
        held_out_BL, tokens = packed(apart, tokenizer, recipe.window, watched)
        if len(held_out_BL) < watched:
            _refuse(apart, tokens, watched * recipe.window, "", "`held_out_tokens`")
    # Cut the training text to whole steps.
    train_BL = packed_BL[skipped:]
    return Sequences(train_BL[: len(train_BL) // recipe.batch * recipe.batch], held_out_BL)


def _refuse(source: str, tokens: int, needed: int, detail: str, option: str) -> None:
    raise DataError(
        f"{source!r} is too short: it has {tokens} {noun_for(tokens, 'token')}, {needed} are "
        f"needed{detail}; "
        f"give more text, or a smaller {option} or `window`"
    )


def packed(
    source: str, tokenizer: PreTrainedTokenizerBase, window: int, most: int
) -> tuple[torch.Tensor, int]:
    """Pack the documents of a source, in an order that depends only on their number.

    A smaller `most` gives a prefix of the same sequences.

    Args:
        source: file, data set or name of the text.
        tokenizer: tokenizer of the model.
        window: tokens of a sequence.
        most: largest number of sequences.

    Returns:
        Token ids, shape (B, window) with B <= `most`, and the number of tokens that were read.

    Raises:
        DataError: the source is missing or holds no text.
    """
    opening = opening_of(tokenizer)
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    ids: list[int] = []
    for lot in _lots(read_text(source, tokenizer)):
        if len(ids) >= most * window:
            break
        rows = ids_of(tokenizer, [text for text, _, _ in lot])
        for (_, first, last), row in zip(lot, rows, strict=True):
            # A chat template may have written BOS, and a document before may have ended with the
            # same token.
            begun = not opening or row[: len(opening)] == opening or ids[-len(opening) :] == opening
            ended = row[-1:] == end and bool(opening)
            if first and not begun:
                ids += opening
            ids += row
            if last and not ended:
                ids += end
    windows = list(islice(_windows(ids, opening, window), most))
    return torch.tensor(windows, dtype=torch.int64).view(len(windows), window), len(ids)


def _windows(ids: list[int], opening: list[int], window: int) -> Iterator[list[int]]:
    """Cut token ids into windows.

    A window that does not begin with the opening of a document gets the opening before it.
    """
    at = 0
    while True:
        ahead = [] if ids[at : at + len(opening)] == opening else opening
        length = window - len(ahead)
        if at + length > len(ids):
            return
        yield ahead + ids[at : at + length]
        at += length


_Part = tuple[str, bool, bool]
"""Text of a document or of a part of it, and whether it holds the document's beginning and end."""


def _lots(documents: list[str]) -> Iterator[list[_Part]]:
    """Yield shuffled documents, a few at a time. Long documents are split into parts."""
    order = np.random.Generator(np.random.Philox(key=len(documents))).permutation(len(documents))
    # Collect parts until a batch has enough documents or characters.
    lot: list[_Part] = []
    letters = 0
    for place in order.tolist():
        text = documents[place]
        size = _PART if len(text) > LONG_TEXT else max(1, len(text))
        for start in range(0, len(text), size):
            lot.append((text[start : start + size], start == 0, start + size >= len(text)))
            letters += size
            if len(lot) == _LOT or letters >= _PART:
                yield lot
                lot, letters = [], 0
    if lot:
        yield lot
