"""The baselines that `build` makes: each searches, resumes, and refuses what it cannot do."""

import itertools
from collections.abc import Callable

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from prunesearch.algorithms.registry import REGISTRY, names_with
from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, UnknownNameError
from prunesearch.samplers import (
    GenerationPendingError,
    Proposal,
    SubsetSampler,
    build,
    report,
)
from prunesearch.space import SearchSpace

SPACE = SearchSpace(12, 4, frozenset({0}))
COST = np.random.default_rng(1).random(12) + 0.1
CHEAPEST = LayerSubset.of(12, np.argsort(COST[1:])[:4] + 1)
NAMES = [entry.name for entry in REGISTRY.entries() if not entry.needs_llm]
RESUMABLE = [name for name in NAMES if name in names_with("resumable")]


def loss(candidate: LayerSubset) -> float:
    near = sum(b - a == 1 for a, b in itertools.pairwise(candidate.dropped))
    return float(COST[list(candidate.dropped)].sum() - 0.05 * near)


def drive(study: optuna.Study, sampler: SubsetSampler, total: int) -> list[tuple[str, str]]:
    """Batches as the search loop asks for them; partial subsets are pruned."""
    while (count := len(study.get_trials(deepcopy=False))) < total:
        batch: list[Proposal] = []
        while len(batch) < min(sampler.batch, total - count):
            try:
                batch.append(sampler.ask(study))
            except GenerationPendingError:
                break
        for proposal in batch:
            if proposal.partial_subset:
                report(study, proposal.number, 1, loss(proposal.candidate))
                study.tell(proposal.number, state=TrialState.PRUNED)
            else:
                study.tell(proposal.number, loss(proposal.candidate))
    return [(t.user_attrs["dropped"], t.state.name) for t in study.trials]


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_searches_without_repeating_itself(name: str) -> None:
    study = optuna.create_study()
    rows = drive(study, build(name, SPACE, seed=1), 70)
    assert len(set(rows)) == 70
    whole = [SPACE.from_params(t.params) for t in study.trials if t.state == TrialState.COMPLETE]
    assert len(whole) >= 30
    chance = np.mean([loss(c) for c in whole[:5]]) if name == "random" else loss(CHEAPEST) + 0.6
    assert study.best_value < chance


@pytest.mark.parametrize("name", RESUMABLE)
def test_those_of_our_own_resume_exactly(name: str) -> None:
    unbroken = drive(optuna.create_study(), build(name, SPACE, seed=1), 60)
    study = optuna.create_study()
    for stop in (5, 16, 40, 60):
        resumed = drive(study, build(name, SPACE, seed=1), stop)
    assert resumed == unbroken


@pytest.mark.parametrize("name", ["greedy", "one-shot", "tpe", "pso"])
def test_one_sampler_serves_study_after_study(name: str) -> None:
    sampler = build(name, SPACE, seed=1)
    drive(optuna.create_study(), sampler, 20)
    second = drive(optuna.create_study(), sampler, 20)
    assert len(second) == len(set(second)) == 20
    if name != "tpe":  # Optuna's random numbers go on
        assert second == drive(optuna.create_study(), build(name, SPACE, seed=1), 20)


def test_an_enqueued_subset_that_is_too_large_is_no_result() -> None:
    study, sampler = optuna.create_study(), build("pso", SPACE)
    study.enqueue_trial(SPACE.to_params(LayerSubset.of(12, [1, 2, 3, 4, 5])))
    assert sampler.enqueued(study) == []
    assert "are not 4 droppable" in study.trials[0].user_attrs["failure"]


def test_greedy_removes_the_least_harmful_each_time() -> None:
    study = optuna.create_study()
    drive(study, build("greedy", SPACE), 11 + 10 + 9 + 8)
    sizes = [SPACE.count(SPACE.any_subset(t.params)) for t in study.trials]
    assert sizes == [1] * 11 + [2] * 10 + [3] * 9 + [4] * 8
    assert {t.state for t in study.trials[:30]} == {TrialState.PRUNED}
    base: tuple[int, ...] = ()
    for _ in range(4):
        base = min(
            ((*base, i) for i in range(1, 12) if i not in base),
            key=lambda d: loss(LayerSubset.of(12, d)),
        )
    assert study.best_trial.user_attrs["dropped"] == LayerSubset.of(12, base).text


def test_one_shot_measures_drops_and_goes_on_in_order() -> None:
    study = optuna.create_study()
    drive(study, build("one-shot", SPACE), 16)
    assert SPACE.from_params(study.trials[11].params) == CHEAPEST
    totals = [COST[list(SPACE.from_params(t.params).dropped)].sum() for t in study.trials[11:]]
    assert totals == sorted(totals)
    given = optuna.create_study()
    drive(given, build("one-shot", SPACE, ranking=COST.tolist()), 2)
    assert [t.params for t in given.trials] == [t.params for t in study.trials[11:13]]


@pytest.mark.parametrize("name", names_with("algorithm"))
def test_any_swarm_can_be_started_from_a_ranking(name: str) -> None:
    study = optuna.create_study()
    drive(study, build(name, SPACE, ranking=COST.tolist()), 6)
    assert SPACE.from_params(study.trials[0].params) == CHEAPEST


@pytest.mark.parametrize("name", names_with("several_objectives"))
def test_a_front_in_one_run(name: str) -> None:
    space = SearchSpace(12, 6, budget="pareto")
    study = optuna.create_study(directions=["minimize", "minimize"])
    sampler = build(name, space, seed=3)
    for _ in range(60):
        proposal = sampler.ask(study)
        study.tell(
            proposal.number, [loss(proposal.candidate), 12.0 - len(proposal.candidate.dropped)]
        )
    assert len({t.user_attrs["dropped"] for t in study.trials}) == 60
    assert len(study.best_trials) >= 3


@pytest.mark.parametrize("name", ["pso", "woa"])
def test_one_run_finds_the_best_of_every_size(name: str) -> None:
    space = SearchSpace(12, 6, budget="pareto")
    ratios = []
    for seed in range(3):
        study, sampler = (
            optuna.create_study(directions=["minimize", "minimize"]),
            build(name, space, seed=seed),
        )
        for _ in range(90):
            proposal = sampler.ask(study)
            study.tell(
                proposal.number, [loss(proposal.candidate), 12.0 - len(proposal.candidate.dropped)]
            )
        for size in range(1, 7):
            best = min(loss(LayerSubset.of(12, d)) for d in itertools.combinations(range(12), size))
            found = [t.values[0] for t in study.trials if t.values[1] == 12.0 - size]
            ratios.append(min(found) / best)
    assert np.mean(ratios) < 1.03


def test_up_to_a_size_weighs_what_it_is_given() -> None:
    space = SearchSpace(12, 6, budget="up to")
    study, sampler = optuna.create_study(), build("pso", space, seed=1)
    for _ in range(80):
        proposal = sampler.ask(study)
        study.tell(
            proposal.number, loss(proposal.candidate) - 0.35 * len(proposal.candidate.dropped)
        )
    sizes = {SPACE.count(space.from_params(t.params)) for t in study.trials}
    assert sizes == set(range(1, 7))
    best = min(
        loss(LayerSubset.of(12, d)) - 0.35 * size
        for size in range(1, 7)
        for d in itertools.combinations(range(12), size)
    )
    assert study.best_value <= best + 0.03


def test_sublayers_are_searched_like_blocks() -> None:
    space = SearchSpace(8, 6, frozenset({0}), units="sublayers")
    for name in ("pso", "woa", "evolution"):
        study, sampler = optuna.create_study(), build(name, space, seed=1)
        for _ in range(40):
            proposal = sampler.ask(study)
            study.tell(
                proposal.number,
                float(sum(COST[i] * (i % 3 + 1) for i in proposal.candidate.attention)),
            )
        assert len({t.user_attrs["dropped"] for t in study.trials}) == 40
        assert all(space.count(space.from_params(t.params)) == 6 for t in study.trials)


def test_what_cannot_be_is_refused_in_a_line() -> None:
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: build("annealing", SPACE, encoding="keys"), "encoding 'keys' goes with"),
        (lambda: build("tpe", SPACE, asynchronous=True), "asynchronous goes with"),
        (lambda: build("greedy", SPACE, ranking=COST.tolist()), "a ranking cannot start"),
    ]
    for make, complaint in cases:
        with pytest.raises(InputError, match=complaint):
            make()
    with pytest.raises(UnknownNameError, match="greedy"):
        build("greedi", SPACE)
    several = optuna.create_study(directions=["minimize", "minimize"])
    with pytest.raises(InputError, match="searches one objective and the study has 2"):
        build("annealing", SPACE).ask(several)
