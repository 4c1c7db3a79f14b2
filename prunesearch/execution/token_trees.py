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
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PretrainedConfig,
    PreTrainedModel,
)

from prunesearch.compat.transformers import attention_as
from prunesearch.models.model_configs import settings_of
from prunesearch.models.structure import input_device


@dataclass(frozen=True)
class Bucket:
    """Segments of similar lengths, padded to the same length.

    Attributes:
        q_index: row of each query token, shape (N, Q). Padding points at row 0.
        k_index: row of each key token, shape (N, K). Padding points at row 0.
        mask: 0 where a query may attend and -inf elsewhere, shape (N, 1, Q, K).
    """

    q_index: torch.Tensor
    k_index: torch.Tensor
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
        places: for each token, the place of its query among the queries of all buckets, which
            stand one after the other and each have N * Q of them. Shape (T,).
        gathers: for each number of heads and of key/value heads, what attention gathers.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    spans: dict[int, list[int]]
    depth: int
    buckets: tuple[Bucket, ...]
    places: torch.Tensor
    gathers: dict[tuple[int, int], "Gather"] = field(default_factory=dict, compare=False)

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
                bucket.q_index.to(device, non_blocking=True),
                bucket.k_index.to(device, non_blocking=True),
                bucket.mask.to(device, model.dtype, non_blocking=True),
            )
            buckets.append(moved)
        return type(self)(
            self.ids.to(device, non_blocking=True),
            self.positions.to(device, non_blocking=True),
            self.spans,
            self.depth,
            tuple(buckets),
            self.places.to(device, non_blocking=True),
        )

    def gather(self, n_heads: int, n_groups: int) -> "Gather":
        """Return what attention with these numbers of heads gathers. It is made once."""
        key = n_heads, n_groups
        if key not in self.gathers:
            self.gathers[key] = Gather.of(self, n_heads, n_groups)
        return self.gathers[key]


@dataclass(frozen=True)
class Gather:
    """Indices by which attention along a tree reads and writes all heads of a token.

    Attributes:
        queries: for the queries of each bucket, ordered as (N, H, Q), one after the other: the row
            among the T * H rows of queries.
        keys: the same for keys and values, ordered as (N, G, K).
        back: for each of the T * H rows of the result, its place among the queries.
        sizes: number of queries and number of keys of each bucket.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    back: torch.Tensor
    sizes: tuple[list[int], list[int]]

    @classmethod
    def of(cls, tree: Tree, n_heads: int, n_groups: int) -> Self:
        """Make the indices of a tree for a number of heads and of key/value heads."""
        device = tree.places.device
        heads = torch.arange(n_heads, device=device)
        groups = torch.arange(n_groups, device=device)
        queries, keys, starts, strides = [], [], [], []
        start = 0
        for bucket in tree.buckets:
            n, most_q = bucket.q_index.shape
            queries.append((bucket.q_index[:, None] * n_heads + heads[:, None]).flatten())
            keys.append((bucket.k_index[:, None] * n_groups + groups[:, None]).flatten())
            # The query at (n, q) of a bucket lies at (n, h, q) among those of all heads.
            own = torch.arange(n * most_q, device=device)
            starts.append(start * n_heads + own // most_q * (n_heads * most_q) + own % most_q)
            strides.append(torch.full_like(own, most_q))
            start += n * most_q
        first = torch.cat(starts)[tree.places]
        stride = torch.cat(strides)[tree.places]
        back = (first[:, None] + stride[:, None] * heads).flatten()
        sizes = [len(index) for index in queries], [len(index) for index in keys]
        return cls(torch.cat(queries), torch.cat(keys), back, sizes)


_NAME = "prunesearch_tree"
TREE_KERNELS = {"cuda": "memory-efficient"}
"""Kernels of attention along trees, by device, where torch does not choose them. They are a part of
what identifies a result.
"""
_TREE: ContextVar[Tree] = ContextVar("tree")


def _kernels(device: torch.device) -> AbstractContextManager[None]:
    """Return a context that chooses the kernels of attention.

    cuDNN makes a plan for each new shape, which takes a fifth of a second, and trees have many
    shapes. So a GPU uses kernels that need no plan.
    """
    if device.type not in TREE_KERNELS:
        return nullcontext()
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


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
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    # A compiler takes the whole as one operation.
    along = _along_as_operation if torch.compiler.is_compiling() else _along
    return along(query, key, value, scaling), None


def _along(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Compute attention along the current tree: shape (1, T, H, D)."""
    tree = _TREE.get()
    n_heads, n_groups = query.shape[1], key.shape[1]
    if query.device.type == "cuda" and n_groups < n_heads:
        # A GPU's fast kernel that reads masks wants a key for each query head.
        repeats, n_groups = n_heads // n_groups, n_heads
        key, value = (heads.repeat_interleave(repeats, dim=1) for heads in (key, value))
    gather = tree.gather(n_heads, n_groups)
    # One row for each token and head. Models lay out their heads so, and then nothing is copied.
    q_RD, k_RD, v_RD = (
        heads[0].transpose(0, 1).reshape(-1, heads.shape[-1]) for heads in (query, key, value)
    )
    queries = torch.split(q_RD.index_select(0, gather.queries), gather.sizes[0])
    keys = torch.split(k_RD.index_select(0, gather.keys), gather.sizes[1])
    values = torch.split(v_RD.index_select(0, gather.keys), gather.sizes[1])
    outs = []
    with _kernels(query.device):
        for bucket, of_q, of_k, of_v in zip(tree.buckets, queries, keys, values, strict=True):
            (n, most_q), most_k = bucket.q_index.shape, bucket.k_index.shape[1]
            out_NHQD = nn.functional.scaled_dot_product_attention(
                of_q.view(n, n_heads, most_q, -1),
                of_k.view(n, n_groups, most_k, -1),
                of_v.view(n, n_groups, most_k, -1),
                attn_mask=bucket.mask,
                scale=scaling,
                enable_gqa=n_heads != n_groups,
            )
            outs.append(out_NHQD.reshape(-1, out_NHQD.shape[-1]))
    out_RD = torch.cat(outs).index_select(0, gather.back)
    return out_RD.view(1, -1, n_heads, out_RD.shape[-1])


@torch.library.custom_op("prunesearch::attend_along_tree", mutates_args=())
def _along_as_operation(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> torch.Tensor:
    return _along(query, key, value, scaling)


@_along_as_operation.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])


def _no_mask(*_: object, **__: object) -> None:
    """Make no mask, as a tree has its own. This is a mask function of transformers."""


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, _no_mask)
