"""Text as packed sequences: documents one after another, each ended by the end-of-text token, cut to windows.

Where the tokenizer begins texts with a token of its own (BOS), each document and each window begins with it.

Shapes: B sequences of L tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from prunesearch.errors import DataError
from prunesearch.heal.recipe import HealRecipe
from prunesearch.recipe import BUILTIN_TEXT
from prunesearch.scoring.text import HELD_OUT, LONG_TEXT, ids_of, opening_of, read_text

_LOT = 256  # documents that are tokenised at a time
_PART = 2**17  # characters that are tokenised at a time


@dataclass(frozen=True)
class Sequences:
    """Token ids, int64, shape (B, L): what is trained on, and what the loss is watched on."""

    train_BL: torch.Tensor
    held_out_BL: torch.Tensor


def sequences_of(recipe: HealRecipe, tokenizer: PreTrainedTokenizerBase) -> Sequences:
    """Read and pack the recipe's data; the two parts share no token.

    No more is tokenised than the steps can see. What is trained on is cut to whole steps, so that all are alike.

    Raises:
        DataError: nothing there, no text in it, or too little of it.
    """
    watched = max(1, recipe.held_out_tokens // recipe.window)
    apart = recipe.held_out or (HELD_OUT if recipe.data == BUILTIN_TEXT else None)
    skipped = 0 if apart else watched
    packed_BL, tokens = packed(recipe.data, tokenizer, recipe.window, skipped + recipe.steps * recipe.batch)
    if len(packed_BL) < skipped + recipe.batch:
        kept_apart = f", {skipped * recipe.window} of them for watching the loss" if skipped else ""
        _refuse(recipe.data, tokens, (skipped + recipe.batch) * recipe.window, kept_apart, "--batch-size")
    if apart is None:
        held_out_BL = packed_BL[:watched]
    else:
        held_out_BL, tokens = packed(apart, tokenizer, recipe.window, watched)
        if len(held_out_BL) < watched:
            _refuse(apart, tokens, watched * recipe.window, "", "--held-out-tokens")
    train_BL = packed_BL[skipped:]
    return Sequences(train_BL[: len(train_BL) // recipe.batch * recipe.batch], held_out_BL)


def _refuse(source: str, tokens: int, needed: int, detail: str, option: str) -> None:
    raise DataError(
        f"{source!r} is too short: it has {tokens} tokens, {needed} are needed{detail}; "
        f"give more text, or a smaller {option} or --window"
    )


def packed(source: str, tokenizer: PreTrainedTokenizerBase, window: int, most: int) -> tuple[torch.Tensor, int]:
    """Pack a source's documents, in an order that their number fixes; fewer sequences are the beginning of more.

    Returns:
        Token ids, shape (B, window) with B <= `most`, and how many tokens were read for them.

    Raises:
        DataError: nothing there, or no text in it.
    """
    opening = opening_of(tokenizer)
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    ids: list[int] = []
    for lot in _lots(read_text(source, tokenizer)):
        if len(ids) >= most * window:
            break
        for (_, first, last), row in zip(lot, ids_of(tokenizer, [text for text, _, _ in lot]), strict=True):
            # A chat template may have written BOS, and a document before may have ended with the same token.
            begun = not opening or row[: len(opening)] == opening or ids[-len(opening) :] == opening
            ended = row[-1:] == end and bool(opening)
            ids += [] if begun or not first else opening
            ids += row
            ids += [] if ended or not last else end
    windows = list(islice(_windows(ids, opening, window), most))
    return torch.tensor(windows, dtype=torch.int64).view(len(windows), window), len(ids)


def _windows(ids: list[int], opening: list[int], window: int) -> Iterator[list[int]]:
    """Cut ids to windows; one that does not begin where a document does gets the opening before it."""
    at = 0
    while True:
        ahead = [] if ids[at : at + len(opening)] == opening else opening
        length = window - len(ahead)
        if at + length > len(ids):
            return
        yield ahead + ids[at : at + length]
        at += length


_Part = tuple[str, bool, bool]
"""A document, or a part of a long one: its text, and whether the document begins and ends with it."""


def _lots(documents: list[str]) -> Iterator[list[_Part]]:
    """The documents of a source, shuffled, a few at a time; a long one comes in parts."""
    order = np.random.Generator(np.random.Philox(key=len(documents))).permutation(len(documents))
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
