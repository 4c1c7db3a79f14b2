"""Prior knowledge: effects are estimated from trials, and favour the right subsets."""

import numpy as np
import pytest

from prunesearch.algorithms.operators import Mask, Real, generator
from prunesearch.algorithms.surrogate import Surrogate
from prunesearch.algorithms.warm_start import Effects, WarmStart, estimate

D = 14
COST = np.linspace(0.2, 2.0, D)


def true_loss(X_MD: Mask) -> Real:
    """Costs that add up, and a pair (4, 6) that is much cheaper together."""
    return np.exp(0.3 * (X_MD @ COST - 3.0 * (X_MD[:, 4] & X_MD[:, 6])))


def subsets(count: int, size: int) -> Mask:
    rng = np.random.default_rng(size)
    X_MD = np.zeros((count, D), dtype=np.bool_)
    for X_D in X_MD:
        X_D[rng.choice(D, size, replace=False)] = True
    return X_MD


@pytest.fixture(scope="module")
def effects() -> Effects:
    X_ND = subsets(120, 4)
    return estimate(X_ND, true_loss(X_ND))


def test_the_effects_are_those_of_the_loss(effects: Effects) -> None:
    assert np.corrcoef(effects.unit_D, COST)[0, 1] > 0.95
    assert effects.pair_RD[1, 4] == effects.pair_RD.min()  # of units 4 and 6
    # They hold for another size.
    other_MD = subsets(60, 6)
    assert np.corrcoef(effects.of_subsets(other_MD), np.log(true_loss(other_MD)))[0, 1] > 0.9


def test_an_estimate_is_the_sum_of_units_and_pairs(effects: Effects) -> None:
    X_MD = subsets(5, 5)
    pair_DD = effects.matrix()
    np.testing.assert_allclose(
        effects.of_subsets(X_MD),
        X_MD @ effects.unit_D + 0.5 * np.einsum("md,de,me->m", X_MD, pair_DD, X_MD),
    )


def test_the_favourites_are_the_best_estimates_among_free_units(effects: Effects) -> None:
    free_D = np.arange(D) != 0
    found = WarmStart.of(effects).favourites(free_D, 5, generator(0, 0, 0))
    best_D = found[0]
    assert np.flatnonzero(best_D).tolist() == [1, 2, 3, 4, 6]
    assert not any(X_D[0] for X_D in found)
    values = effects.of_subsets(np.array(found))
    assert (np.diff(values) >= 0).all()


def test_effects_are_stored_rounded_and_read_again(effects: Effects) -> None:
    stored = effects.stored()
    again = Effects.of_stored(stored)
    assert again.stored() == stored
    np.testing.assert_allclose(again.unit_D, effects.unit_D, atol=1e-6)


def test_few_trials_are_enough_for_a_surrogate_that_knows_the_effects(effects: Effects) -> None:
    X_ND, other_MD = subsets(8, 6), subsets(200, 6)[100:]
    loss_M = true_loss(other_MD)
    scores = np.log(true_loss(X_ND))
    scores = (scores - scores.mean()) / scores.std()
    informed = Surrogate(X_ND, scores, WarmStart.of(effects)).predict(other_MD)[0]
    alone = Surrogate(X_ND, scores, None).predict(other_MD)[0]
    first, second = (np.corrcoef(mean_M, np.log(loss_M))[0, 1] for mean_M in (informed, alone))
    assert first > 0.9 > second
