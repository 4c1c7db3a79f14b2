"""What a search cost."""

import pytest

from prunesearch.studies.search_cost import SearchCost
from tests.support.study_values import study_data, trial_data


def test_all_trials_count() -> None:
    """Computed and failed trials cost seconds, hits save them."""
    trials = [
        trial_data(0, "0,1", 0.5, cache="computed", seconds=2.0),
        trial_data(1, "0,2", 0.5, state="pruned", cache="computed", seconds=1.0),
        trial_data(2, "0,1", 0.5, cache="hit", seconds=0.0, saved_seconds=2.0),
        trial_data(3, "1,2", state="fail", cache="computed", seconds=0.5),
    ]
    cost = SearchCost.of(study_data("search", trials))
    assert cost.second_N == (2.0, 1.0, 0.5)
    assert (cost.computed, cost.hits) == (3, 1)
    assert (cost.seconds, cost.saved_seconds) == pytest.approx((3.5, 2.0))
    # Each trial starts at its number and takes a second.
    assert cost.span == pytest.approx(4.0)


def test_a_study_without_trials_costs_nothing() -> None:
    assert SearchCost.of(study_data("empty", [])) == SearchCost((), 0, 0, 0.0, None)


def test_trials_of_earlier_versions_cost_time_and_say_nothing_of_the_cache() -> None:
    cost = SearchCost.of(study_data("old", [trial_data(0, "0,1", 0.5, seconds=2.0)]))
    assert (cost.second_N, cost.computed, cost.hits) == ((2.0,), 0, 0)
