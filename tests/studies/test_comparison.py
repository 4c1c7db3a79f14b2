"""Comparisons of studies."""

import json
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from prunesearch.analysis.paired import paired_test
from prunesearch.errors import InputError, StudyError, UnknownNameError
from prunesearch.studies import measurements, persistence
from prunesearch.studies.comparison import StudyComparison, compare
from prunesearch.studies.measurements import Measurement
from tests.support.stored_studies import store_study, trial

RNG = np.random.default_rng(1)


class Studies:
    """A database with studies of one model and one text."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder / 'study.db'}"
        self._storage = persistence.open_storage(self.url, create=True)

    def add(
        self,
        name: str,
        trials: list[FrozenTrial],
        maximize: tuple[bool, ...] = (False,),
        **recipe: object,
    ) -> optuna.Study:
        """Store a study. The keywords change the section search of its recipe."""
        store_study(self._storage, name, trials, maximize=maximize)
        study = optuna.load_study(storage=self._storage, study_name=name)
        stored = json.loads(study.user_attrs["recipe"])
        stored["search"] |= recipe
        study.set_user_attr("recipe", json.dumps(stored))
        study.set_user_attr("dense", json.dumps({"metric": "kl", "metrics": {"kl": 0.0}}))
        self.identify(study)
        return study

    def identify(self, study: optuna.Study, **changes: str) -> None:
        identity = {"model content": "m" * 64, "data content": "d" * 64, "numerics": {}, **changes}
        study.set_user_attr("identity", json.dumps(identity))

    def compare(self, *names: str, joint: bool = False) -> StudyComparison:
        return compare(self.url, names, joint=joint)


@pytest.fixture
def studies(tmp_path: Path) -> Studies:
    return Studies(tmp_path)


def measure(study: optuna.Study, losses: np.ndarray, data: str = "fresh") -> None:
    """Store losses of a study's winner."""
    winner = study.best_trial.user_attrs["dropped"]
    measurements.add(
        study,
        Measurement(
            winner, "winner", data, data, "held out", "kl", float(losses.mean()), None,
            len(losses), tuple(losses.tolist()),
        ),
    )  # fmt: skip


def test_rows_say_what_was_found_and_what_it_cost(studies: Studies) -> None:
    trials = [
        trial(0, 0.5, seconds=2.0, params=100),
        trial(1, 0.3, cache="hit", saved_seconds=4.0, params=100, kl_stderr=0.01),
        create_trial(state=TrialState.PRUNED, user_attrs={"dropped": "1,2", "seconds": 1.0}),
        trial(3, 0.4, params=100),
        create_trial(state=TrialState.FAIL),
    ]
    studies.add("a", trials)
    studies.add("b", [trial(0, 0.6, params=100), trial(1, 0.2, params=100)], sampler="woa", seed=3)
    found = studies.compare("a", "b")
    row, other = found.studies
    assert (row.best, row.winner, row.stderr, row.dense) == (0.3, "1,2", 0.01, 0.0)
    assert (row.evaluations, row.distinct, row.hits, row.failed) == (4, 3, 1, 1)
    assert (row.seconds, row.saved_seconds, row.evaluations_to_best) == (3.0, 4.0, 2)
    assert row.seconds_to_best is not None and row.wall_seconds is not None
    assert (row.params, row.budget, row.sampler) == (100, "2 blocks", "pso")
    assert (other.sampler, other.seed, other.best) == ("woa", 3, 0.2)
    # The shorter study has two evaluations.
    assert found.equal_evaluations == 2
    assert (row.best_at_equal, other.best_at_equal) == (0.3, 0.2)
    assert not found.samplers


def test_winners_are_tested_on_the_same_documents(studies: Studies) -> None:
    first = RNG.random(30)
    second, third = first + 0.1 + 0.01 * RNG.random(30), first + 0.01 * RNG.normal(size=30)
    measure(studies.add("a", [trial(0, 0.3, params=100)]), first)
    measure(studies.add("b", [trial(1, 0.4, params=100)]), second)
    measure(studies.add("c", [trial(2, 0.31, params=100)]), third)
    found = studies.compare("b", "a", "c")
    assert [(one.first, one.second) for one in found.tests] == [("a", "c"), ("a", "b"), ("c", "b")]
    same, worse, _ = found.tests
    expected = paired_test(first, second)
    assert worse.difference == pytest.approx(expected.difference) and worse.documents == 30
    assert worse.p == 0.0001 and worse.differ
    assert worse.p_corrected == pytest.approx(0.0003)
    assert (worse.badge, worse.source, worse.data) == ("held out", "measured", "fresh")
    assert same.p_corrected >= same.p and not same.differ
    assert found.untested == () and found.notes == ()


def test_winners_that_cannot_be_compared_are_named(studies: Studies) -> None:
    measure(studies.add("a", [trial(0, 0.3, params=100)]), RNG.random(9))
    measure(studies.add("other data", [trial(1, 0.4, params=100)]), RNG.random(9), "else")
    studies.add("larger", [trial(2, 0.1, params=150)], drop="1")
    studies.add("same", [trial(0, 0.3, params=100)])
    studies.add("front", [trial(0, 0.3, 5.0)], maximize=(False, False))
    reasons = {
        (one.first, one.second): one.reason for one in studies.compare("a", "larger").untested
    }
    reasons |= {
        (one.first, one.second): one.reason for one in studies.compare("a", "same").untested
    }
    assert reasons["larger", "a"] == (
        "their budgets are 1 block and 2 blocks: the winners keep 150 and 100 parameters"
    )
    assert reasons["a", "same"] == "both found the same candidate"
    (pair,) = studies.compare("a", "other data").untested
    assert pair.reason.startswith("there are no losses of each document")
    found = studies.compare("a", "front")
    assert found.untested[0].reason == "front has a front and no single winner"
    assert found.studies[1].front == 1 and found.studies[1].best is None
    assert found.equal_evaluations is None
    assert studies.compare("a", "larger").notes == (
        "the best values of a and larger cannot be compared: their budgets are 2 blocks and 1 block: the "
        "winners keep 100 and 150 parameters",
    )


@pytest.mark.parametrize(
    ("changes", "metric", "reason", "tested"),
    [
        (
            {"kl_top": 16},
            "kl",
            "differ: none and kl_top 16",
            False,
        ),
        (
            {"score_weights": {"size": 5.0}},
            "kl",
            "differ: none and quality=1, size=5, latency=0",
            True,
        ),
        (
            {"name": "kl=1,perplexity=2"},
            "mix",
            "differ: none and kl=1,perplexity=2",
            False,
        ),
    ],
)
def test_metrics_of_one_name_that_differ_are_not_compared(
    studies: Studies, changes: dict[str, object], metric: str, reason: str, tested: bool
) -> None:
    losses = RNG.random(30)
    for name, dropped in (("a", 0), ("b", 1)):
        study = studies.add(name, [trial(dropped, 0.3, params=100)])
        measure(study, losses + dropped)
        stored = json.loads(study.user_attrs["recipe"])
        if name == "b":
            stored["objective"] |= changes
        study.set_user_attr("recipe", json.dumps(stored))
        study.set_user_attr("dense", json.dumps({"metric": metric, "metrics": {metric: 0.0}}))
    found = studies.compare("a", "b")
    (note,) = found.notes
    assert reason in note
    assert found.studies[0].best_at_equal is None
    assert bool(found.tests) is tested
    if not tested:
        assert reason in found.untested[0].reason


def test_studies_of_different_models_are_refused_unless_asked_for(studies: Studies) -> None:
    studies.add("a", [trial(0, 0.3)])
    studies.identify(studies.add("b", [trial(1, 0.4)]), **{"model content": "n" * 64})
    with pytest.raises(
        StudyError, match="study 'a' prunes tiny and study 'b' prunes tiny of other"
    ):
        studies.compare("a", "b")
    found = studies.compare("a", "b", joint=True)
    assert found.untested[0].reason == "they prune different models"


def test_means_over_seeds(studies: Studies) -> None:
    studies.add("p0", [trial(0, 0.5), trial(1, 0.3)])
    studies.add("p1", [trial(0, 0.5), trial(1, 0.4), trial(2, 0.1)], seed=1)
    studies.add("r", [trial(0, 0.7), trial(1, 0.6)], sampler="random")
    swarm, random = studies.compare("p0", "p1", "r").samplers
    assert (swarm.sampler, swarm.studies, swarm.evaluations) == ("pso", 2, 2)
    assert (swarm.mean, swarm.stderr) == pytest.approx((0.35, 0.05))
    assert (random.studies, random.mean) == (1, 0.6)


def test_means_are_over_studies_that_remove_the_same_units(studies: Studies) -> None:
    studies.add("p0", [trial(0, 0.5)])
    studies.add("p1", [trial(0, 0.4)], seed=1)
    studies.add("s", [trial(0, 0.1)], units="sublayers")
    found = studies.compare("p0", "p1", "s").samplers
    assert [(mean.budget, mean.studies) for mean in found] == [("2 blocks", 2), ("2 sublayers", 1)]


def test_many_studies_are_compared_with_the_best_one(studies: Studies) -> None:
    names = [f"s{number}" for number in range(7)]
    for number, name in enumerate(names):
        study = studies.add(name, [trial(number, 0.3 + number / 10, params=100)])
        measure(study, RNG.random(5))
    found = studies.compare(*names)
    first = [one.first for one in found.tests] + [one.first for one in found.untested]
    assert first == ["s0"] * 6
    assert "with more than 6 studies" in found.notes[-1]


def test_bad_input_is_told(studies: Studies) -> None:
    studies.add("empty", [])
    studies.add("half", [trial(0, 0.3), create_trial(state=TrialState.RUNNING)])
    with pytest.raises(StudyError, match="no trial of 'empty' has finished yet"):
        studies.compare("empty")
    with pytest.raises(UnknownNameError, match="unknown study 'hall': did you mean 'half'"):
        studies.compare("hall")
    with pytest.raises(InputError, match="study 'half' is named twice"):
        studies.compare("half", "half")
    found = studies.compare("half", "empty")
    assert found.notes == (
        "study half is not finished: 1 trial is under way or was left by a search that was stopped",
        "study empty has no finished trial yet",
    )
    assert (found.studies[0].running, found.studies[1].best) == (1, None)
