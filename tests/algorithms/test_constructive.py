"""Greedy removal and the order of a ranking."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prunesearch.algorithms.greedy import greedy_step
from prunesearch.algorithms.subset_constraints import SubsetConstraints


@given(st.integers(0, 1000), st.integers(1, 4))
def test_subsets_come_in_order_of_their_total(seed: int, size: int) -> None:
    harm = np.random.default_rng(seed).random(7)
    constraints = SubsetConstraints.of(np.array([True] * 6 + [False]), size)
    totals = [float(harm[x].sum()) for x in constraints.by_total(harm)]
    expected = sorted(float(sum(harm[list(s)])) for s in itertools.combinations(range(6), size))
    assert np.allclose(totals, expected)


def test_greedy_takes_the_least_harmful_each_time() -> None:
    constraints = SubsetConstraints.of(np.ones(4, dtype=bool), 2)
    losses: dict[bytes, float] = {}

    def mask(*chosen: int) -> bytes:
        return np.isin(np.arange(4), chosen).tobytes()

    base, children = greedy_step(constraints, losses)
    assert not base.any()
    assert len(children) == 4
    losses |= {mask(i): cost for i, cost in enumerate([3.0, 1.0, 2.0, float("inf")])}
    base, children = greedy_step(constraints, losses)
    assert base.tobytes() == mask(1)
    assert sorted(child.tobytes() for child in children) == sorted(
        mask(1, other) for other in (0, 2, 3)
    )
    losses |= {mask(1, other): cost for other, cost in ((0, 5.0), (2, 9.0), (3, 7.0))}
    base, children = greedy_step(constraints, losses)
    assert base.tobytes() == mask(0, 1)
    assert children == []
