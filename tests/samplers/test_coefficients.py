"""Coefficients of the swarms: checked, used, stored in the study and held on resume."""

from typing import Any

import optuna
import pytest

from prunesearch import PSOSampler, SearchSpace, WOASampler
from prunesearch.errors import InputError

Maker = type[PSOSampler] | type[WOASampler]


def run(sampler: optuna.samplers.BaseSampler, trials: int = 24) -> list[dict[str, float]]:
    study = optuna.create_study(sampler=sampler)
    study.optimize(
        lambda trial: trial.suggest_float("x", -1, 1) ** 2 + trial.suggest_float("y", -1, 1) ** 2,
        n_trials=trials,
    )
    return [trial.params for trial in study.trials]


CHANGES: list[tuple[Maker, dict[str, Any]]] = [
    (PSOSampler, {"inertia": 0.4}),
    (PSOSampler, {"cognitive": 0.5}),
    (PSOSampler, {"social": 0.5}),
    (PSOSampler, {"topology": "ring"}),
    (WOASampler, {"iterations": 3}),
    (WOASampler, {"spiral": 2.0}),
    (WOASampler, {"probability": 0.9}),
]


@pytest.mark.parametrize(("make", "change"), CHANGES)
def test_each_changes_the_moves_and_is_held_to(make: Maker, change: dict[str, Any]) -> None:
    options: dict[str, Any] = {"seed": 0, "population": 4, "preselect": False}
    assert run(make(**options, **change)) != run(make(**options))
    study = optuna.create_study(sampler=make(**options, **change))
    study.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2, n_trials=5)
    study.sampler = make(**options)
    with pytest.raises(InputError, match="with other settings"):
        study.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2, n_trials=1)
    study.sampler = make(**options, **change)
    study.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2, n_trials=1)


@pytest.mark.parametrize(
    ("make", "defaults"),
    [
        (PSOSampler, {"inertia": 0.729, "cognitive": 1.496, "social": 1.496}),
        (WOASampler, {"iterations": 10, "spiral": 1.0, "probability": 0.5}),
    ],
)
def test_the_defaults_may_be_written_out(make: Maker, defaults: dict[str, float]) -> None:
    given: dict[str, Any] = {"seed": 0, "population": 4, **defaults}
    plain, over_keys = optuna.create_study(), optuna.create_study()
    space = SearchSpace(10, 3)
    for options in (given, {"seed": 0, "population": 4}):
        plain.sampler = make(**options)
        plain.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2, n_trials=4)
        sampler = make(space, encoding="keys", **options)
        for _ in range(4):
            over_keys.tell(sampler.ask(over_keys).number, 0.0)
    assert len(plain.trials) == len(over_keys.trials) == 8


@pytest.mark.parametrize(
    ("make", "wrong", "message"),
    [
        (PSOSampler, {"inertia": 1.5}, r"inertia = 1.5: give a number from 0 to 1"),
        (PSOSampler, {"social": "high"}, r"social = 'high': give a number"),
        (PSOSampler, {"cognitive": float("nan")}, "cognitive = nan"),
        (PSOSampler, {"topology": "star"}, "topology = 'star': use global or ring"),
        (WOASampler, {"iterations": 0}, "iterations = 0: give a whole number"),
        (WOASampler, {"iterations": 2.5}, "iterations = 2.5: give a whole number"),
        (WOASampler, {"iterations": float("nan")}, "iterations = nan: give a whole number"),
        (WOASampler, {"probability": -0.1}, "probability = -0.1"),
    ],
)
def test_wrong_values_are_named(make: Maker, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**wrong)


def test_sets_take_those_that_their_moves_have() -> None:
    space = SearchSpace(10, 3)
    moves = {}
    for name, sampler in (
        ("default", WOASampler(space, seed=0, preselect=False)),
        ("spiral", WOASampler(space, seed=0, preselect=False, probability=1.0)),
        ("keys", WOASampler(space, seed=0, preselect=False, encoding="keys", spiral=2.0)),
    ):
        study = optuna.create_study()
        drops = []
        for _ in range(18):
            proposal = sampler.ask(study)
            study.tell(proposal.number, float(sum(proposal.candidate.dropped)))
            drops.append(proposal.candidate.dropped)
        moves[name] = drops
    assert len({tuple(drops) for drops in moves.values()}) == 3
    with pytest.raises(InputError, match="spiral = 2: the moves of sets have no such coefficient"):
        WOASampler(space, spiral=2.0)
    with pytest.raises(InputError, match="topology = 'ring' is for ordinary parameters"):
        PSOSampler(space, topology="ring")
    study = optuna.create_study()
    PSOSampler(space, seed=0, inertia=0.5).ask(study)
    with pytest.raises(InputError, match=r"coefficients was \{'inertia': 0.5\}, is None"):
        PSOSampler(space, seed=0).ask(study)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"first": 5}, "first = 5: give a list of prunesearch.LayerSubset"),
        ({"first": [3]}, r"first = \[3\]: give a list"),
        ({"ranking": {}}, "ranking = {}: give a list with the harm"),
        ({"ranking": [1.0, None, 2.0]}, "ranking"),
        ({"ranking": 5.0}, "the ranking has 1 number for 10 units"),
    ],
)
@pytest.mark.parametrize("make", [PSOSampler, WOASampler])
def test_wrong_candidates_and_rankings_are_named(
    make: Maker, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(SearchSpace(10, 3), **wrong)


@pytest.mark.parametrize("wrong", [("a", 1), (8, 1.5), (8, True), (8, None)])
def test_a_space_has_whole_numbers(wrong: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match="give a whole number"):
        SearchSpace(*wrong)
