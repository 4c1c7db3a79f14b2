"""Packs sequences into token trees, and trees into batches.

A radix tree of the sequences is built, large trees are split, and the rest is laid out in one row
of tokens. Segments of similar lengths are put into one bucket, so that little of the attention is
spent on padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from prunesearch.execution.token_trees import Bucket, Tree

MIN_SHARED = 8
"""Shorter common prefixes are repeated: another segment costs more than a few tokens."""
_PADDING = 1.3  # largest ratio of a bucket's attention with padding to that without
_SCORES = 2**21  # largest number of attention scores of one bucket and head


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
    groups = _similar(segments)
    return Tree(
        torch.tensor([ids]),
        torch.tensor([positions]),
        spans,
        1 + max(positions),
        tuple(map(_bucket, groups)),
        _places(groups, len(ids)),
    )


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


def _bucket(segments: list[_Segment]) -> Bucket:
    """Build the indices and the mask of a group of segments."""
    n, most_q, most_k = len(segments), _most_queries(segments), _most_keys(segments)
    q_index, k_index = (
        torch.zeros(n, most_q, dtype=torch.int64),
        torch.zeros(n, most_k, dtype=torch.int64),
    )
    may = torch.zeros(n, most_q, most_k, dtype=torch.bool)
    # Padding queries attend to one key, since their softmax would be undefined otherwise.
    may[:, :, 0] = True
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
    mask = torch.zeros(may.shape).masked_fill_(~may, float("-inf"))[:, None]
    return Bucket(q_index, k_index, mask)


def _places(groups: list[list[_Segment]], n_tokens: int) -> torch.Tensor:
    """Return the place of each token's query among those of all buckets."""
    places = torch.empty(n_tokens, dtype=torch.int64)
    start = 0
    for segments in groups:
        most_q = _most_queries(segments)
        for segment in segments:
            rows = slice(segment.start, segment.start + segment.length)
            places[rows] = torch.arange(start, start + segment.length)
            start += most_q
    return places
