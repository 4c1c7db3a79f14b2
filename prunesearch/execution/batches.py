"""Inputs of a forward pass: sequences side by side, or token trees.

lm-eval turns HellaSwag's four endings into four sequences that repeat their context, and it repeats
a few-shot prompt before every question. A token tree contains each common prefix once. Its tokens
lie in one row of T tokens without padding. The position of a token is its depth, and a token
attends to its ancestors only.

A segment is a run of tokens between two branchings. Attention is computed for each segment, against
the keys of the segment and of its ancestors, so a T x T mask is not needed. All other parts of a
decoder work on single tokens. The result is exact if attention is the only part that reads other
tokens, and if it sees their positions through position embeddings.
`objectives.loglikelihood.supports_trees` checks this.

Shapes: B sequences of L tokens, T tokens of a tree batch, H heads of size D, G key/value heads, N
    segments with at most
Q query and K key tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol, Self

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

CHUNK_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Tokens of a chunk by device: enough to fill its caches or its cores."""
TASK_BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens of a task's forward pass by device."""
MIN_SHARED = 8
"""Shorter common prefixes are repeated: another segment costs more than a few tokens."""
_PADDING = 1.3  # largest ratio of a bucket's attention with padding to that without
_SCORES = 2**21  # largest number of attention scores of one bucket and head


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


@dataclass(frozen=True)
class _Bucket:
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
    buckets: tuple[_Bucket, ...]

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
            moved = _Bucket(
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


@dataclass
class _Node:
    """A node of a radix tree: a run of tokens, and the runs that follow it.

    Attributes:
        tokens: token ids of the run.
        ends: requests whose sequence ends with this run.
        children: nodes that continue the sequence.
    """

    tokens: Sequence[int]
    ends: list[int]
    children: list["_Node"] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Tokens of the node and of all nodes below it."""
        return len(self.tokens) + sum(child.size for child in self.children)


@dataclass(frozen=True)
class _Segment:
    """The rows of a node in a batch.

    Attributes:
        start: first row.
        length: number of rows.
        above: rows of the ancestors' tokens, in order.
    """

    start: int
    length: int
    above: list[int]


def tree_batches(sequences: Sequence[Sequence[int]], budget: int) -> list[Tree]:
    """Pack sequences into trees, and trees into batches.

    Args:
        sequences: token ids of each request, in any order.
        budget: tokens of a batch. A single sequence may be longer.
    """
    # Sequences with a common prefix are neighbours in sorted order.
    order = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i]))
    trees: list[_Node] = []
    for root in _grow(sequences, order, 0):
        trees += _split(root, budget)
    # Fill the batches one after the other, the largest trees first.
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


def _grow(sequences: Sequence[Sequence[int]], order: list[int], depth: int) -> list[_Node]:
    """Build the radix tree of sorted sequences that are equal up to `depth`."""
    nodes = []
    first = 0
    while first < len(order):
        # Find the run of sequences that share enough tokens with its first one.
        head = sequences[order[first]]
        shared, last = len(head), first + 1
        while last < len(order):
            common = _common(head, sequences[order[last]])
            if common < depth + MIN_SHARED and common < len(head):
                break
            shared = min(shared, common)
            last += 1
        # The shared tokens are a node, and longer sequences continue below it.
        ends, longer = [], []
        for i in order[first:last]:
            if len(sequences[i]) == shared:
                ends.append(i)
            else:
                longer.append(i)
        node = _Node(head[depth:shared], ends)
        node.children = _grow(sequences, longer, shared)
        nodes.append(node)
        first = last
    return nodes


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def _split(node: _Node, budget: int) -> list[_Node]:
    """Split a tree that is too large for a batch.

    Each part repeats the tokens of the root, so parts are kept at least four times as large as it.
    """
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
    """Write trees into one row of tokens, depth first."""
    ids: list[int] = []
    positions: list[int] = []
    spans: dict[int, list[int]] = {}
    segments: list[_Segment] = []

    def place(node: _Node, above: list[int]) -> None:
        """Append a node and the nodes below it to the row."""
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
    buckets = tuple(map(_bucket, _similar(segments)))
    return Tree(torch.tensor([ids]), torch.tensor([positions]), spans, 1 + max(positions), buckets)


def _similar(segments: list[_Segment]) -> list[list[_Segment]]:
    """Group segments so that padding adds little work."""
    groups: list[list[_Segment]] = []
    asked = 0  # attention scores of the last group without padding
    for segment in sorted(segments, key=lambda s: (bool(s.above), s.length, len(s.above))):
        needed = segment.length * (len(segment.above) + segment.length)
        if groups:
            # Compute the size of the last group if this segment were added to it.
            members = [*groups[-1], segment]
            padded = len(members) * _most_queries(members) * _most_keys(members)
            mixed = bool(segment.above) != bool(members[0].above)
        # Start a new group if there would be too much padding or too many scores.
        if (
            not groups
            or mixed
            or padded > max(_PADDING * (asked + needed), 4096)
            or padded > _SCORES
        ):
            groups.append([])
            asked = 0
        groups[-1].append(segment)
        asked += needed
    return groups


def _most_queries(segments: list[_Segment]) -> int:
    """Return Q, the largest number of query tokens of a segment."""
    return max(segment.length for segment in segments)


def _most_keys(segments: list[_Segment]) -> int:
    """Return K, the largest number of key tokens of a segment: its own and its ancestors'."""
    return max(len(segment.above) + segment.length for segment in segments)


def _bucket(segments: list[_Segment]) -> _Bucket:
    """Build the indices and the mask of a group of segments."""
    n, most_q, most_k = len(segments), _most_queries(segments), _most_keys(segments)
    q_index, k_index = (
        torch.zeros(n, most_q, dtype=torch.int64),
        torch.zeros(n, most_k, dtype=torch.int64),
    )
    may = torch.zeros(n, most_q, most_k, dtype=torch.bool)
    # Padding queries attend to one key, since their softmax would be undefined otherwise.
    may[:, :, 0] = True
    real: list[int] = []
    for row, segment in enumerate(segments):
        # Keys are the ancestors' tokens and then the segment's own.
        own = torch.arange(segment.start, segment.start + segment.length)
        depth = len(segment.above)
        q_index[row, : segment.length] = own
        k_index[row, :depth] = torch.tensor(segment.above, dtype=torch.int64)
        k_index[row, depth : depth + segment.length] = own
        # A token attends to all ancestors, and in its segment to itself and the tokens before it.
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


def no_masks(config: PretrainedConfig) -> AbstractContextManager[None]:
    """Return a context in which the model makes no attention masks, for passes that run no
    block.
    """
    return attention_as(settings_of(config), _NO_BLOCKS)


def _no_mask(*_: object, **__: object) -> None:
    """Make no mask, as a tree has its own. This is a mask function of transformers."""


def _unread_mask(*_: object, **__: object) -> torch.Tensor:
    """Return a dummy mask that no block reads.

    It is a tensor because some models convert the mask before they call a block.
    """
    return torch.zeros(1, 1, 1, 1, dtype=torch.bool)


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, _no_mask)
AttentionMaskInterface.register(_NO_BLOCKS, _unread_mask)
