"""Inputs of a forward pass: sequences side by side. Token trees are in `execution.token_trees`.

Shapes: B sequences of L tokens.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from transformers import PretrainedConfig, PreTrainedModel

from prunesearch.models.structure import input_device

CHUNK_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Tokens of a chunk by device: enough to fill its caches or its cores."""
TASK_BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens of a task's forward pass by device."""


class Batch(Protocol):
    """Input of one forward pass."""

    @property
    def ids(self) -> torch.Tensor:
        """Token ids, shape (B, L)."""
        ...

    @property
    def positions(self) -> torch.Tensor | None:
        """Position ids of the same shape. None: 0, 1, 2, ..."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens computed, padding included."""
        ...

    def on(self, model: PreTrainedModel) -> Self:
        """Return a copy on the model's input device."""
        ...

    def attention(self, config: PretrainedConfig) -> AbstractContextManager[None]:
        """Return a context in which the blocks' attention fits this batch."""
        ...


@dataclass(frozen=True)
class Rows:
    """Sequences of equal length side by side, or sequences that are padded at the right.

    Causal attention needs no mask for either.

    Attributes:
        ids: token ids, shape (B, L).
        positions: None, as positions are counted from 0.
    """

    ids: torch.Tensor
    positions: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        """Tokens computed, padding included."""
        return self.ids.numel()

    def on(self, model: PreTrainedModel) -> Self:
        """Return a copy on the model's input device."""
        return type(self)(self.ids.to(input_device(model)))

    def attention(self, config: PretrainedConfig) -> AbstractContextManager[None]:
        """Return a context that changes nothing: the model's own attention is used."""
        return nullcontext()


def row_batches(sequences: Sequence[Sequence[int]], budget: int) -> list[tuple[Rows, list[int]]]:
    """Return batches of sequences of similar length, padded at the right, each with its requests.

    Args:
        sequences: token ids of each request, in any order.
        budget: tokens of a batch, padding included. A single sequence may be longer.
    """
    # From the longest to the shortest, so that the first sequence of a batch gives its width.
    order = sorted(range(len(sequences)), key=lambda i: (-len(sequences[i]), tuple(sequences[i])))
    batches: list[list[int]] = []
    for i in order:
        if not batches or (len(batches[-1]) + 1) * len(sequences[batches[-1][0]]) > budget:
            batches.append([])
        batches[-1].append(i)
    # Copy the sequences into tensors.
    made = []
    for members in batches:
        ids = torch.zeros(len(members), len(sequences[members[0]]), dtype=torch.int64)
        for row, i in enumerate(members):
            ids[row, : len(sequences[i])] = torch.tensor(sequences[i])
        made.append((Rows(ids), members))
    return made
