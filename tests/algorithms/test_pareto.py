"""Archive, crowding and scalarisation."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prunesearch.algorithms import pareto


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 3))
def test_the_archive_is_what_nothing_dominates(seed: int, rows: int, objectives: int) -> None:
    loss = np.random.default_rng(seed).integers(0, 6, (rows, objectives)).astype(float)
    kept = pareto.archive(loss)

    def dominates(a: np.ndarray, b: np.ndarray) -> bool:
        return bool((a <= b).all() and (a < b).any())

    for row in range(rows):
        beaten = any(dominates(other, loss[row]) for other in loss)
        twin = any((loss[k] == loss[row]).all() for k in kept)
        assert twin == (not beaten)
    assert len({tuple(loss[k]) for k in kept}) == len(kept)


def test_crowding_is_largest_at_the_ends_and_in_gaps() -> None:
    loss = np.array([[0.0, 10.0], [1.0, 9.0], [2.0, 8.0], [7.0, 3.0], [10.0, 0.0]])
    crowd = pareto.crowding(loss)
    assert np.isinf(crowd[[0, 4]]).all()
    assert crowd[3] == crowd.tolist()[3] > crowd[2] > crowd[1]


def test_weights_cover_the_front_evenly() -> None:
    first = sorted(pareto.weights(p, 0, 64, 2)[0] for p in range(64))
    assert max(np.diff([0.0, *first, 1.0])) < 0.06
    three = np.array([pareto.weights(p, g, 8, 3) for g in range(4) for p in range(8)])
    assert np.allclose(three.sum(1), 1.0)
    assert (three > 0).all()


def test_the_scalar_sees_ranks_and_prefers_what_dominates() -> None:
    loss = np.array([[1.0, 1.0], [2.0, 2.0], [1.0, 3.0]])
    scaled = loss * [1000.0, 1e-6]
    weight = np.array([0.5, 0.5])
    assert np.allclose(pareto.scalar(loss, weight), pareto.scalar(scaled, weight))
    assert np.argmin(pareto.scalar(loss, weight)) == 0
