"""Token trees: what they hold, and that every token sees its own sequence and nothing else."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesearch.execution.tree_packing import MIN_SHARED, tree_batches

PROMPT = tuple(range(100, 112))
SEQUENCES = [(*PROMPT, *ending) for ending in ((1, 2, 3), (1, 2, 4), (5,), (6, 7, 8, 9))] + [
    (1, 2, 3)
]


def test_a_common_beginning_is_held_once() -> None:
    (tree,) = tree_batches(SEQUENCES, 64)
    assert tree.tokens == len(PROMPT) + 3 + 3 + 1 + 4 + 3, (
        "shared beginnings shorter than eight tokens are not"
    )
    for i, sequence in enumerate(SEQUENCES):
        rows = tree.spans[i]
        assert tree.ids[0, rows].tolist() == list(sequence)
        assert tree.positions[0, rows].tolist() == list(range(len(sequence)))
    assert tree.spans[0][: len(PROMPT)] == tree.spans[3][: len(PROMPT)]


def test_equal_sequences_and_beginnings_of_others_share_their_tokens() -> None:
    long = tuple(range(20))
    (tree,) = tree_batches([long, long[:12], long], 64)
    assert tree.tokens == 20
    assert tree.spans[0] == tree.spans[2]
    assert tree.spans[1] == tree.spans[0][:12]


def test_a_tree_larger_than_the_budget_is_cut_and_repeats_its_beginning() -> None:
    sequences = [(*PROMPT, *range(200 + 20 * i, 220 + 20 * i)) for i in range(12)]
    trees = tree_batches(sequences, 60)
    assert len(trees) > 1
    assert {i for tree in trees for i in tree.spans} == set(range(12))
    for tree in trees:
        assert tree.tokens <= 60
        for i, rows in tree.spans.items():
            assert tree.ids[0, rows].tolist() == list(sequences[i])


sequence = st.lists(st.integers(1, 3), min_size=1, max_size=24).map(tuple)


@settings(deadline=None, max_examples=60)
@given(st.lists(sequence, min_size=1, max_size=12), st.integers(8, 64))
def test_each_token_attends_to_its_ancestors(sequences: list[tuple[int, ...]], budget: int) -> None:
    trees = tree_batches(sequences, budget)
    assert sorted(i for tree in trees for i in tree.spans) == list(range(len(sequences)))
    for tree in trees:
        # The queries of all buckets, one bucket after the other: token, and tokens that it sees.
        queries: list[tuple[int, set[int]]] = []
        for bucket in tree.buckets:
            n, most_q = bucket.q_index.shape
            assert n == len(bucket.k_index)
            for row, column in itertools.product(range(n), range(most_q)):
                open_ = bucket.mask[row, 0, column] == 0
                seen = set(bucket.k_index[row][open_].tolist())
                queries.append((int(bucket.q_index[row, column]), seen))
        sees: dict[int, set[int]] = {}
        for token, place in enumerate(tree.places.tolist()):
            assert queries[place][0] == token
            sees[token] = queries[place][1]
        for i, rows in tree.spans.items():
            assert tree.ids[0, rows].tolist() == list(sequences[i])
            for depth, token in enumerate(rows):
                assert sees[token] == set(rows[: depth + 1])


@pytest.mark.parametrize("length", [MIN_SHARED - 1, MIN_SHARED])
def test_only_beginnings_that_pay_are_shared(length: int) -> None:
    beginning = torch.arange(1, length + 1).tolist()
    (tree,) = tree_batches([(*beginning, 50), (*beginning, 60)], 64)
    assert tree.tokens == (length + 2 if length >= MIN_SHARED else 2 * (length + 1))
