"""Where a candidate came from."""

from prunesearch.algorithms.registry import REGISTRY
from prunesearch.studies.ancestry import STORED, ancestry
from prunesearch.studies.study_data import TrialData
from tests.support.study_values import study_data, trial_data


def steps(
    study_trials: list[TrialData], **given: object
) -> list[tuple[int, str, tuple[str, ...], tuple[str, ...]]]:
    study = study_data("s", study_trials, **given)  # type: ignore[arg-type]
    best = study.best()
    assert best is not None
    found = ancestry(study, best)
    return [(each.trial.number, each.origin, each.added, each.restored) for each in found]


def test_stored_parents_are_followed_to_the_first_trial() -> None:
    trials = [
        trial_data(0, "0,1", 9.0),
        trial_data(1, "2,3", 8.0),
        trial_data(2, "0,3", 5.0, parents=(0, 1)),
        trial_data(3, "0,2", 1.0, parents=(2,)),
    ]
    # Trials 0 and 1 are equally close to trial 2, and trial 1 is better.
    assert steps(trials, sampler="random") == [
        (1, "", (), ()),
        (2, STORED, ("0",), ("2",)),
        (3, STORED, ("2",), ("3",)),
    ]


def test_the_parents_of_a_particle_are_its_own_trials_and_the_leader() -> None:
    # Two particles: trials 0, 2 and 4 belong to the first, 1, 3 and 5 to the second.
    trials = [
        trial_data(0, "0,1,2", 5.0),
        trial_data(1, "3,4,5", 9.0),
        trial_data(2, "0,1,3", 4.0),
        trial_data(3, "3,4,6", 8.0),
        trial_data(4, "0,1,7", 3.5),
        trial_data(5, "0,3,4", 1.0),
    ]
    found = steps(trials, n_layers=8, population=2)
    # The particle's latest trial (3) shares two layers, as does the leader (2), which is better.
    assert found == [
        (0, "", (), ()),
        (2, "particle", ("3",), ("2",)),
        (5, "leader", ("4",), ("1",)),
    ]


def test_a_candidate_that_is_drawn_at_random_has_no_ancestors() -> None:
    trials = [trial_data(number, f"{number % 3},3", 9.0 - number) for number in range(40)]
    assert steps(trials, sampler="random", population=2) == [(39, "", (), ())]


def test_a_generation_sees_finished_trials_of_earlier_ones_only() -> None:
    trials = [
        trial_data(0, "0,1", 5.0),
        trial_data(1, "0,2", state="fail"),
        trial_data(2, "0,3", 4.0),
        trial_data(3, "1,3", 1.0),
    ]
    # Trial 2 is of the same generation, and trial 1 has failed.
    assert steps(trials, sampler="evolution", population=2) == [
        (0, "", (), ()),
        (3, "leader", ("3",), ("0",)),
    ]


def test_greedy_goes_through_partial_subsets() -> None:
    trials = [
        trial_data(0, "0", state="pruned", kl=0.5),
        trial_data(1, "1", state="pruned", kl=0.2),
        trial_data(2, "2", state="pruned", kl=0.9),
        trial_data(3, "0,1", 1.0),
        trial_data(4, "1,2", 0.7),
        trial_data(5, "0,3", 0.6),
    ]
    assert steps(trials[:5], sampler="greedy") == [(1, "", (), ()), (4, "subset", ("2",), ())]
    # A variation of the result comes from the result, if no subset of it was tried.
    assert steps([*trials[1:5], trials[5]], sampler="greedy") == [
        (1, "", (), ()),
        (4, "subset", ("2",), ()),
        (5, "leader", ("0", "3"), ("1", "2")),
    ]


def test_widths_change_by_shares() -> None:
    trials = [
        trial_data(0, "0:4/2,1:4/2", 3.0),
        trial_data(1, "0:8/2,1:2/2", 1.0, parents=(0,)),
    ]
    units, sizes = ("0a", "0m", "1a", "1m"), (2, 8, 2, 8)
    assert steps(trials, units=units, unit_sizes=sizes) == [
        (0, "", (), ()),
        (1, STORED, ("1m",), ("0m",)),
    ]


def test_every_algorithm_says_where_its_candidates_come_from() -> None:
    without = [entry.name for entry in REGISTRY.entries() if not entry.origins]
    assert without == ["one-shot", "tpe", "nsga2", "cmaes", "random"]
