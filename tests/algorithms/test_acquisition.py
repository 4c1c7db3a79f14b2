"""The choice of a proposal by the surrogate's bounds."""

from collections.abc import Callable

import numpy as np
import pytest

from prunesearch.algorithms.acquisition import (
    Acquisition,
    ParticleGoal,
    SurrogateEnsemble,
    _chained,
)
from prunesearch.algorithms.gaussian_process import normal_scores
from prunesearch.algorithms.history import History, TrialOutcome
from prunesearch.algorithms.operators import Mask, Real, generator
from prunesearch.algorithms.planner import Planner
from prunesearch.algorithms.pso import ParticleSwarm
from prunesearch.algorithms.subset_constraints import SubsetConstraints
from prunesearch.algorithms.surrogate import Ranking, Surrogate

COST = np.random.default_rng(3).normal(size=20)
ALONE = np.ones(1)


def fitted(constraints: SubsetConstraints, trials: int = 60) -> tuple[SurrogateEnsemble, Mask]:
    """A surrogate of an additive loss, without exploration, and its subsets."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(constraints.k_min, constraints.k_max + 1, size=trials)
    X = constraints.random_subsets(sizes, rng)
    return SurrogateEnsemble([Surrogate(X, normal_scores(X @ COST), None)], 0.0), X


def acquisition(
    constraints: SubsetConstraints, seen: set[bytes]
) -> tuple[Acquisition, SurrogateEnsemble, Mask]:
    model, X = fitted(constraints)
    goal = ParticleGoal(constraints, ALONE)
    return Acquisition(model, goal, proposals=8, rounds=20, seen=seen), model, X


def all_exchanges(X_D: Mask, constraints: SubsetConstraints) -> Mask:
    """All subsets that exchanging, adding or removing one unit makes."""
    rows = []
    for out in [*np.flatnonzero(X_D), None]:
        for into in [*np.flatnonzero(~X_D), None]:
            Y_D = X_D.copy()
            Y_D[[unit for unit in (out, into) if unit is not None]] ^= True
            if constraints.holds(Y_D) and (Y_D != X_D).any():
                rows.append(Y_D)
    return np.array(rows)


@pytest.mark.parametrize("most", [6, 8])
def test_the_search_ends_where_no_exchange_is_better(most: int) -> None:
    constraints = SubsetConstraints.of(np.ones(20, dtype=bool), 6, most)
    chooser, model, X = acquisition(constraints, set())
    chosen_D, start = chooser.select(X[:4], generator(0, 0, 0))
    assert constraints.holds(chosen_D)
    assert 0 <= start < 4
    bound = model.lower_confidence_bound(chosen_D[None], ALONE)[0]
    assert bound < model.lower_confidence_bound(X[:4], ALONE).min()
    around_MD = all_exchanges(chosen_D, constraints)
    assert bound <= model.lower_confidence_bound(around_MD, ALONE).min() + 1e-9


def test_what_was_proposed_is_not_chosen_again() -> None:
    constraints = SubsetConstraints.of(np.ones(20, dtype=bool), 6)
    seen: set[bytes] = set()
    for _ in range(40):
        chooser, _, X = acquisition(constraints, seen)
        chosen_D, _ = chooser.select(X[:4], generator(0, 0, 0))
        assert chosen_D.tobytes() not in seen
        seen.add(chosen_D.tobytes())


def best_of_a_search(
    loss: Callable[[Mask], Real], n: int, k: int, generations: int, ranking: Ranking | None = None
) -> float:
    """Best loss that particle swarm optimization finds with 6 particles."""
    constraints = SubsetConstraints.of(np.ones(n, dtype=bool), k)
    planner = Planner(ParticleSwarm(), constraints, 0, 6, ranking=ranking)
    history, seen = History(n), set[bytes]()
    best = np.inf
    for generation in range(generations):
        planned = list(planner.propose(history.view(6 * generation), generation, range(6), seen))
        loss_P = loss(np.array([X_D for X_D, _ in planned]))
        for (X_D, memory), value in zip(planned, loss_P.tolist(), strict=True):
            history.append(TrialOutcome(X_D, (value,), memory=memory))
        best = min(best, float(loss_P.min()))
    return best


def test_a_wrong_ranking_costs_little() -> None:
    cost = np.where(np.arange(18) % 3 == 0, 3.0, np.linspace(0.0, 0.5, 18))

    def loss(X_MD: Mask) -> Real:
        """Nearly constant where one of six critical units is dropped."""
        return np.asarray(12.0 * (1.0 - np.exp(-np.exp(X_MD @ cost) / 12.0)))

    least = float(loss(np.isin(np.arange(18), (1, 2, 4, 5))[None])[0])
    wrong = Ranking(np.exp(-cost))
    assert best_of_a_search(loss, 18, 4, generations=8, ranking=wrong) < least + 0.3


def test_a_plateau_is_left() -> None:
    cost = np.random.default_rng(1).normal(size=24)
    lowest = float(np.sort(cost)[:6].sum())

    def loss(X_MD: Mask) -> Real:
        """Noise around 1, except near the best subset."""
        noise_M = np.array([generator(int.from_bytes(np.packbits(x)), 0, 0).normal() for x in X_MD])
        gain_M = 1.0 / (1.0 + np.exp(4.0 * (X_MD @ cost - 0.6 * lowest)))
        return np.asarray(1.0 - gain_M + 0.05 * noise_M)

    assert best_of_a_search(loss, 24, 6, generations=25) < 0.4


def test_the_best_exchanges_are_also_tried_at_once() -> None:
    X_D = np.isin(np.arange(8), (0, 1, 2))
    # The best first; 8 stands for no unit. The second one takes what the first one took.
    out, into = np.array([0, 0, 8, 1, 2]), np.array([5, 6, 7, 6, 4])
    found = [np.flatnonzero(Y_D).tolist() for Y_D in _chained(X_D, out, into)]
    assert found == [[2, 5, 6], [4, 5, 6]]
    assert _chained(X_D, out[:2], into[:2]).shape == (0, 8)
