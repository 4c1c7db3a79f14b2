"""Grey wolf optimization moves as its equations say."""

import numpy as np
import pytest

from prunesearch.algorithms.grey_wolf import GreyWolf, leaders
from prunesearch.algorithms.history import History, Swarm, TrialOutcome, gather
from prunesearch.algorithms.subset_constraints import SubsetConstraints
from prunesearch.config.recipe import Recipe
from prunesearch.errors import InputError

CONSTRAINTS = SubsetConstraints.of(np.ones(8, dtype=bool), 3)


def swarm_of(*subsets: tuple[int, ...], generation: int, objectives: int = 1) -> Swarm:
    """A swarm whose n-th subset has the loss n."""
    history = History(8, objectives)
    for number, subset in enumerate(subsets):
        losses = (float(number),) * objectives
        history.append(TrialOutcome(np.isin(np.arange(8), subset), losses))
    view = history.view(len(history))
    swarm = gather(view, CONSTRAINTS, generation, len(subsets), np.random.default_rng(0))
    assert swarm is not None
    return swarm


def test_the_three_best_distinct_subsets_lead() -> None:
    swarm = swarm_of((0, 1, 2), (0, 1, 2), (3, 4, 5), (5, 6, 7), (0, 3, 6), generation=1)
    found = leaders(swarm, 4, np.random.default_rng(0))
    assert [np.flatnonzero(X_D).tolist() for X_D in found] == [[0, 1, 2], [3, 4, 5], [5, 6, 7]]


def test_the_last_leader_is_repeated_while_there_are_fewer_than_three() -> None:
    swarm = swarm_of((0, 1, 2), (3, 4, 5), (3, 4, 5), generation=1)
    found = leaders(swarm, 2, np.random.default_rng(0))
    assert [np.flatnonzero(X_D).tolist() for X_D in found] == [[0, 1, 2], [3, 4, 5], [3, 4, 5]]


def test_a_pack_with_one_leader_ends_at_it() -> None:
    # In the last generation of a cycle a = 0.2, so eq. 3.6 gives a leader's unit at least 1 - 0.2,
    # and another unit at most 0.2.
    swarm = swarm_of((0, 1, 2), generation=10)
    moves = GreyWolf().move(swarm, 0, 50, np.random.default_rng(0))
    assert (np.isin(np.arange(8), (0, 1, 2)) == moves.X_MD).all()


def test_a_unit_of_two_leaders_goes_before_a_unit_of_one() -> None:
    swarm = swarm_of((0, 1, 2), (0, 1, 3), (0, 4, 5), (5, 6, 7), generation=10)
    moves = GreyWolf().move(swarm, 3, 200, np.random.default_rng(0))
    assert moves.X_MD[:, :2].all()  # the means of 0 and 1 are the largest
    counts_D = moves.X_MD.sum(axis=0)
    assert counts_D[[2, 3, 4, 5]].min() > 10  # one of them takes the third place
    assert counts_D[[6, 7]].sum() == 0


def test_a_large_a_finds_units_that_nobody_has() -> None:
    swarm = swarm_of((0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3), generation=1)
    moves = GreyWolf().move(swarm, 3, 200, np.random.default_rng(0))
    assert moves.X_MD[:, 4:].any()
    assert (moves.X_MD.sum(axis=1) == 3).all()


def test_a_front_leads_with_its_members() -> None:
    swarm = swarm_of((0, 1, 2), (3, 4, 5), generation=1, objectives=2)
    found = leaders(swarm, 1, np.random.default_rng(0))
    assert {tuple(np.flatnonzero(X_D).tolist()) for X_D in found} == {
        (0, 1, 2)
    }  # the rest is dominated


def test_a_recipe_takes_it() -> None:
    recipe = Recipe(model="m", drop="2", sampler="gwo", asynchronous=True)
    assert recipe.search.start == "influence"
    Recipe(model="m", drop="pareto", sampler="gwo")
    with pytest.raises(InputError, match=r"goes with .sampler. pso or woa, not gwo"):
        Recipe(model="m", drop="2", sampler="gwo", form="keys")
