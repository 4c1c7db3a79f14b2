"""Token trees: batches in which each common prefix of several sequences occurs once.

lm-eval turns HellaSwag's four endings into four sequences that repeat their context, and it repeats
a few-shot prompt before every question. A token tree contains each common prefix once. Its tokens
lie in one row of T tokens without padding. The position of a token is its depth, and a token
attends to its ancestors only.

A segment is a run of tokens between two branchings. Attention is computed for each segment, against
the keys of the segment and of its ancestors, so a T x T mask is not needed. All other parts of a
decoder work on single tokens. The result is exact if attention is the only part that reads other
tokens, and if it sees their positions through position embeddings.
`objectives.loglikelihood.supports_trees` checks this.

Shapes: T tokens of a tree batch, H heads of size D, G key/value heads, N segments with at most Q
query and K key tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PretrainedConfig,
    PreTrainedModel,
)

from prunesearch.compat.transformers import attention_as
from prunesearch.models.structure import input_device, settings_of


@dataclass(frozen=True)
class Bucket:
    """Segments of similar lengths, padded to the same length.

    Attributes:
        q_index: row of each query token, shape (N, Q). Padding points at row 0.
        k_index: row of each key token, shape (N, K). Padding points at row 0.
        real: indices of the queries, among all N * Q, that are tokens and not padding.
        rows: rows of these tokens.
        mask: 0 where a query may attend and -inf elsewhere, shape (N, 1, Q, K).
    """

    q_index: torch.Tensor
    k_index: torch.Tensor
    real: torch.Tensor
    rows: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Tree:
    """A batch of token trees.

    Attributes:
        ids: token ids, shape (1, T).
        positions: position ids, shape (1, T).
        spans: for each request, the row of every token of its sequence.
        depth: length of the longest sequence.
        buckets: segments of the trees, grouped by length.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    spans: dict[int, list[int]]
    depth: int
    buckets: tuple[Bucket, ...]

    @property
    def tokens(self) -> int:
        """Tokens computed. A tree has none for padding."""
        return self.ids.numel()

    @contextmanager
    def attention(self, config: PretrainedConfig) -> Iterator[None]:
        """Make the blocks of a model attend along this tree."""
        token = _TREE.set(self)
        try:
            with attention_as(settings_of(config), _NAME):
                yield
        finally:
            _TREE.reset(token)

    def on(self, model: PreTrainedModel) -> Self:
        """Return a copy on the model's input device, with masks in the model's precision."""
        device = input_device(model)
        buckets = []
        for bucket in self.buckets:
            moved = Bucket(
                bucket.q_index.to(device),
                bucket.k_index.to(device),
                bucket.real.to(device),
                bucket.rows.to(device),
                bucket.mask.to(device, model.dtype),
            )
            buckets.append(moved)
        return type(self)(
            self.ids.to(device), self.positions.to(device), self.spans, self.depth, tuple(buckets)
        )


_NAME = "prunesearch_tree"
_TREE: ContextVar[Tree] = ContextVar("tree")


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Compute attention along the current tree. This is an attention function of transformers.

    Shapes: query (1, H, T, D), key and value (1, G, T, D), result (1, T, H, D).
    """
    if softcap is not None or s_aux is not None or position_bias is not None:
        raise NotImplementedError(
            "soft caps, attention sinks and position biases are not read along trees"
        )
    (q_HTD,), (k_GTD,), (v_GTD,) = query, key, value
    n_heads, n_tokens, _ = q_HTD.shape
    out_THD = query.new_empty(n_tokens, n_heads, v_GTD.shape[-1])
    for bucket in _TREE.get().buckets:
        out_NHQD = nn.functional.scaled_dot_product_attention(
            q_HTD[:, bucket.q_index].transpose(0, 1),
            k_GTD[:, bucket.k_index].transpose(0, 1),
            v_GTD[:, bucket.k_index].transpose(0, 1),
            attn_mask=bucket.mask,
            scale=scaling,
            enable_gqa=n_heads != len(k_GTD),
        )
        out_THD[bucket.rows] = out_NHQD.transpose(1, 2).flatten(0, 1)[bucket.real]
    return out_THD[None], None


def _no_mask(*_: object, **__: object) -> None:
    """Make no mask, as a tree has its own. This is a mask function of transformers."""


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, _no_mask)
