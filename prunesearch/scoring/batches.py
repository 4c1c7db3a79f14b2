"""What one forward pass reads: sequences side by side, or a token tree in which common beginnings are read once.

lm-eval asks HellaSwag's four endings as four sequences that repeat their context, and a few-shot prompt before every
question. A token tree holds each common beginning once: its tokens lie in one row of T tokens without padding, a
token's position is its depth, and it attends to its ancestors alone. Attention is computed segment by segment (a
segment is a stretch between two branchings) against the keys of the segment and its ancestors, so that no T x T mask
is needed; everything else in a decoder works on single tokens. It is exact where attention is the only thing that
looks at other tokens and sees their positions through embeddings of positions: see `scoring.forward.reads_trees`.

Shapes: B sequences of L tokens, T tokens of a tree batch, H heads of size D, G key/value heads, N segments with at most
Q query and K key tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel

from prunesearch.model.anatomy import input_device, settings_of

MIN_SHARED = 8
"""Shorter common beginnings are read again: a segment more costs more than a few tokens."""
_PADDING = 1.3  # a bucket of segments may compute this many times the attention that is asked for
_SCORES = 2**21  # attention scores of one bucket and head


class Batch(Protocol):
    """Input of one forward pass."""

    @property
    def ids(self) -> torch.Tensor:
        """Token ids, shape (B, L)."""
        ...

    @property
    def positions(self) -> torch.Tensor | None:
        """Position ids of the same shape; None: 0, 1, 2, ..."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens computed, padding included."""
        ...

    def on(self, model: PreTrainedModel) -> Self:
        """The batch where the model expects it."""
        ...

    def attention(self, config: PretrainedConfig) -> Any:  # noqa: ANN401 (a context manager)
        """Context in which blocks attend as this batch needs."""
        ...


@dataclass(frozen=True)
class Rows:
    """Sequences of equal length side by side, or padded at the right; causal attention needs no mask for either.

    Attributes:
        ids: token ids, shape (B, L).
    """

    ids: torch.Tensor
    positions: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        """Tokens computed, padding included."""
        return self.ids.numel()

    def on(self, model: PreTrainedModel) -> Self:
        """The batch where the model expects it."""
        return type(self)(self.ids.to(input_device(model)))

    def attention(self, config: PretrainedConfig) -> Any:  # noqa: ANN401
        """The model's own attention."""
        return nullcontext()


@dataclass(frozen=True)
class _Bucket:
    """Segments of similar lengths, padded to one.

    Attributes:
        q_index, k_index: row of each query and key token, shapes (N, Q) and (N, K); padding points at row 0.
        real: which of the N * Q queries are tokens, as indices.
        rows: their rows.
        mask: 0 where a query may look and -inf elsewhere, shape (N, 1, Q, K).
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
        ids, positions: shape (1, T).
        spans: where each request's tokens lie: for each, the row of every token of its sequence.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    spans: dict[int, list[int]]
    depth: int
    buckets: tuple[_Bucket, ...]

    @property
    def tokens(self) -> int:
        """Tokens computed; there is no padding."""
        return self.ids.numel()

    @contextmanager
    def attention(self, config: PretrainedConfig) -> Iterator[None]:
        """Let the blocks of a model attend along this tree."""
        token = _TREE.set(self)
        try:
            with _attention_as(config, _NAME):
                yield
        finally:
            _TREE.reset(token)

    def on(self, model: PreTrainedModel) -> Self:
        """The batch where the model expects it, masks in its precision."""
        device = input_device(model)
        buckets = tuple(
            _Bucket(
                b.q_index.to(device),
                b.k_index.to(device),
                b.real.to(device),
                b.rows.to(device),
                b.mask.to(device, model.dtype),
            )
            for b in self.buckets
        )
        return type(self)(self.ids.to(device), self.positions.to(device), self.spans, self.depth, buckets)


@dataclass
class _Node:
    tokens: Sequence[int]
    ends: list[int]  # requests whose sequence ends here
    children: list["_Node"] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.tokens) + sum(child.size for child in self.children)


@dataclass(frozen=True)
class _Segment:
    start: int
    length: int
    above: list[int]  # rows of its ancestors' tokens, in order


def tree_batches(sequences: Sequence[Sequence[int]], budget: int) -> list[Tree]:
    """Pack sequences into trees and trees into batches.

    Args:
        sequences: token ids of each request, in any order.
        budget: tokens of a batch; a single sequence may be longer.
    """
    order = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i]))
    trees = [part for root in _grow(sequences, order, 0) for part in _split(root, budget)]
    trees.sort(key=lambda node: -node.size)
    batches: list[list[_Node]] = []
    filled = budget
    for tree in trees:
        if filled + tree.size > budget:
            batches.append([])
            filled = 0
        batches[-1].append(tree)
        filled += tree.size
    return [_lay_out(batch) for batch in batches]


def row_batches(sequences: Sequence[Sequence[int]], budget: int) -> list[tuple[Rows, list[int]]]:
    """Batch sequences of similar length, padded at the right; with each batch the requests in it."""
    order = sorted(range(len(sequences)), key=lambda i: (-len(sequences[i]), tuple(sequences[i])))
    batches: list[list[int]] = []
    for i in order:
        if not batches or (len(batches[-1]) + 1) * len(sequences[batches[-1][0]]) > budget:
            batches.append([])
        batches[-1].append(i)
    made = []
    for members in batches:
        ids = torch.zeros(len(members), len(sequences[members[0]]), dtype=torch.int64)
        for row, i in enumerate(members):
            ids[row, : len(sequences[i])] = torch.tensor(sequences[i])
        made.append((Rows(ids), members))
    return made


def _grow(sequences: Sequence[Sequence[int]], order: list[int], depth: int) -> list[_Node]:
    """Radix tree of sorted sequences that are equal up to `depth`."""
    nodes = []
    first = 0
    while first < len(order):
        head = sequences[order[first]]
        shared, last = len(head), first + 1
        while last < len(order):
            common = _common(head, sequences[order[last]])
            if common < depth + MIN_SHARED and common < len(head):
                break
            shared = min(shared, common)
            last += 1
        run = order[first:last]
        node = _Node(head[depth:shared], [i for i in run if len(sequences[i]) == shared])
        node.children = _grow(sequences, [i for i in run if len(sequences[i]) > shared], shared)
        nodes.append(node)
        first = last
    return nodes


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _split(node: _Node, budget: int) -> list[_Node]:
    """Cut a tree that is too large; each part repeats the beginning, so none is cut finer than that pays."""
    budget = max(budget, 4 * len(node.tokens))
    if node.size <= budget:
        return [node]
    parts = [_Node(node.tokens, node.ends)]
    room = budget - len(node.tokens)
    for child in node.children:
        for piece in _split(child, room):
            if parts[-1].children and parts[-1].size + piece.size > budget:
                parts.append(_Node(node.tokens, []))
            parts[-1].children.append(piece)
    return parts


def _lay_out(trees: list[_Node]) -> Tree:
    ids: list[int] = []
    positions: list[int] = []
    spans: dict[int, list[int]] = {}
    segments: list[_Segment] = []

    def place(node: _Node, above: list[int]) -> None:
        own = list(range(len(ids), len(ids) + len(node.tokens)))
        ids.extend(node.tokens)
        positions.extend(range(len(above), len(above) + len(own)))
        if own:
            segments.append(_Segment(own[0], len(own), above))
        path = above + own
        spans.update(dict.fromkeys(node.ends, path))
        for child in node.children:
            place(child, path)

    for tree in trees:
        place(tree, [])
    return Tree(
        torch.tensor([ids]),
        torch.tensor([positions]),
        spans,
        1 + max(positions),
        tuple(_bucket(group) for group in _similar(segments)),
    )


def _similar(segments: list[_Segment]) -> list[list[_Segment]]:
    """Group segments so that padding adds little work."""
    groups: list[list[_Segment]] = []
    asked = 0
    for segment in sorted(segments, key=lambda s: (bool(s.above), s.length, len(s.above))):
        keys = len(segment.above) + segment.length
        if groups:
            members = [*groups[-1], segment]
            q, k = max(s.length for s in members), max(len(s.above) + s.length for s in members)
            padded = len(members) * q * k
            mixed = bool(segment.above) != bool(members[0].above)
        if not groups or mixed or padded > max(_PADDING * (asked + segment.length * keys), 4096) or padded > _SCORES:
            groups.append([])
            asked = 0
        groups[-1].append(segment)
        asked += segment.length * keys
    return groups


def _bucket(segments: list[_Segment]) -> _Bucket:
    n, most_q = len(segments), max(s.length for s in segments)
    most_k = max(len(s.above) + s.length for s in segments)
    q_index, k_index = torch.zeros(n, most_q, dtype=torch.int64), torch.zeros(n, most_k, dtype=torch.int64)
    may = torch.zeros(n, most_q, most_k, dtype=torch.bool)
    may[:, :, 0] = True  # padding queries look somewhere, or their softmax would be undefined
    real: list[int] = []
    for row, segment in enumerate(segments):
        own = torch.arange(segment.start, segment.start + segment.length)
        depth = len(segment.above)
        q_index[row, : segment.length] = own
        k_index[row, :depth] = torch.tensor(segment.above, dtype=torch.int64)
        k_index[row, depth : depth + segment.length] = own
        may[row, : segment.length, :depth] = True
        may[row, : segment.length, depth : depth + segment.length] = torch.ones(
            segment.length, segment.length, dtype=torch.bool
        ).tril()
        real += range(row * most_q, row * most_q + segment.length)
    chosen = torch.tensor(real)
    mask = torch.zeros(may.shape).masked_fill_(~may, float("-inf"))[:, None]
    return _Bucket(q_index, k_index, chosen, q_index.flatten()[chosen], mask)


_NAME = "prunesearch_tree"
_NO_BLOCKS = "prunesearch_no_blocks"
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
    """transformers' attention interface: query (1, H, T, D), key and value (1, G, T, D) to (1, T, H, D)."""
    if softcap is not None or s_aux is not None or position_bias is not None:
        raise NotImplementedError("soft caps, attention sinks and position biases are not read along trees")
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


def no_masks(config: PretrainedConfig) -> AbstractContextManager[None]:
    """Keep a model from making attention masks while its blocks are not called."""
    return _attention_as(config, _NO_BLOCKS)


@contextmanager
def _attention_as(config: PretrainedConfig, name: str) -> Iterator[None]:
    settings = settings_of(config)
    before = settings._attn_implementation
    settings._attn_implementation = name
    try:
        yield
    finally:
        settings._attn_implementation = before


def _no_mask(*_: object, **__: object) -> None:
    """transformers' mask interface: the tree has its own masks."""


def _unread_mask(*_: object, **__: object) -> torch.Tensor:
    """The same where no block reads it; some models convert theirs before they call one."""
    return torch.zeros(1, 1, 1, 1, dtype=torch.bool)


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, _no_mask)
AttentionMaskInterface.register(_NO_BLOCKS, _unread_mask)
