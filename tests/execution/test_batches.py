"""Rows: batches of sequences side by side."""

from prunesearch.execution.batches import row_batches


def test_rows_are_of_similar_length_and_padded_at_the_right() -> None:
    sequences = [(1,) * n for n in (3, 9, 4, 8, 2)]
    batches = row_batches(sequences, 18)
    assert [members for _, members in batches] == [[1, 3], [2, 0, 4]]
    first = batches[0][0].ids
    assert first.tolist() == [[1] * 9, [1] * 8 + [0]]
    assert all(batch.tokens <= 18 for batch, _ in batches)
