"""Text as packed sequences: documents one after another, each ended by the end-of-text token, cut to windows.

Shapes: B sequences of L tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from prunesearch.errors import DataError
from prunesearch.heal.recipe import HealRecipe
from prunesearch.recipe import BUILTIN_TEXT
from prunesearch.scoring.text import HELD_OUT, read_text

_LOT = 256  # documents that are tokenised at a time


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
    ids: list[int] = []
    for document in _documents(source):
        if len(ids) >= most * window:
            break
        ids += _ids(tokenizer, document)
    count = min(most, len(ids) // window)
    return torch.tensor(ids[: count * window], dtype=torch.int64).view(count, window), len(ids)


def _documents(source: str) -> Iterator[list[str]]:
    """The documents of a source, shuffled, in lots."""
    documents = read_text(source)
    order = np.random.Generator(np.random.Philox(key=len(documents))).permutation(len(documents))
    for start in range(0, len(order), _LOT):
        yield [documents[i] for i in order[start : start + _LOT]]


def _ids(tokenizer: PreTrainedTokenizerBase, documents: list[str]) -> list[int]:
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    rows: list[list[int]] = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
    return [token for row in rows for token in (*row, *end)]
