"""Races: the test, its rungs, and that they save work without losing the winner."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.candidate import LayerSubset
from prunesearch.config.objective import ScoreWeights
from prunesearch.config.recipe import Recipe
from prunesearch.errors import InputError
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.evaluation.scalarization import TrialScalarizer
from prunesearch.execution.latency import LatencyModel
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.calibration_data import token_windows
from prunesearch.objectives.metrics.kl import KL
from prunesearch.objectives.race import ItemLosses, Race, is_worse, rungs
from prunesearch.pipeline.search_loop import race_of, search
from prunesearch.samplers import PSOSampler
from prunesearch.space import SearchSpace
from tests.support.models import N_LAYERS


def test_rungs_are_each_chunk_and_then_steps_of_a_quarter() -> None:
    assert rungs(1) == [1]
    assert rungs(4) == [1, 2, 3, 4]
    assert rungs(16) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 16]
    assert len(rungs(10_000)) < 50


def items(losses: Sequence[float] | np.ndarray) -> ItemLosses:
    return ItemLosses(tuple(map(float, losses)))


def test_what_is_hard_for_both_cancels() -> None:
    rng = np.random.default_rng(0)
    hardness = rng.normal(0, 10, 16)
    known = items(hardness)
    assert is_worse(items(hardness + 0.1 + rng.normal(0, 0.01, 16)), known)
    assert not is_worse(items(hardness - 0.1), known)
    assert not is_worse(known, known), "a candidate does not lose to itself"
    assert not is_worse(items([9.0] * 3), items([1.0] * 3)), "too few items to tell"


def test_a_fair_candidate_is_dropped_as_seldom_as_the_test_says() -> None:
    rng = np.random.default_rng(1)
    dropped = sum(
        is_worse(items(rng.normal(0, 1, 8)), items(rng.normal(0, 1, 8))) for _ in range(4000)
    )
    assert 0.035 < dropped / 4000 < 0.065


def test_the_scored_data_leave_less_to_be_uncertain_about() -> None:
    losses, baseline = items([1.0, 0.0, 1.0, 0.2]), items([0.5, 0.3, 0.3, 0.2])
    assert not is_worse(losses, baseline)
    assert is_worse(losses, baseline, share=0.9)


def known_losses(rng: np.random.Generator, candidates: int, items: int) -> np.ndarray:
    """Losses with a hardness of each item and a rest, shape (candidates, items); equal means."""
    losses = rng.normal(0, 1, items) + rng.normal(0, 0.5, (candidates, items))
    return np.asarray(losses - losses.mean(1, keepdims=True))


def test_a_race_rarely_drops_a_candidate_that_is_better() -> None:
    """The promise: 5 % if it is better by one standard error on all data, over the whole race."""
    rng = np.random.default_rng(2)
    chunks, per_chunk, races = 8, 4, 700
    shares = dict.fromkeys((-8.0, 0.0, 1.0), 0)
    for _ in range(races):
        candidate, *others = known_losses(rng, 5, chunks * per_chunk)
        baseline, *controls = map(items, others)
        error = np.std(candidate - others[0], ddof=1) / math.sqrt(chunks * per_chunk)
        for gain in shares:
            losses = items(candidate - gain * error)
            shares[gain] += any(
                is_worse(losses.first(rung * per_chunk), baseline, controls, rung / chunks)
                for rung in rungs(chunks)[:-1]
            )
    assert shares[1.0] / races < 0.05
    assert shares[0.0] / races < 0.22, "several tests with a confidence of 95 % each"
    assert shares[-8.0] / races > 0.97


def test_controls_show_how_hard_the_items_are() -> None:
    """The first items are easy for all but the baseline, so that it seems to be the worse one."""
    rng = np.random.default_rng(3)
    hardness = rng.normal(0, 0.05, 16)
    controls = [items(hardness + rng.normal(0, 0.02, 16)) for _ in range(3)]
    baseline = hardness + 0.1
    baseline[:4] -= 0.4  # lucky on what comes first; its mean over all data equals the controls'
    losses = items((hardness + rng.normal(0, 0.02, 16))[:4])
    assert is_worse(losses, items(baseline), share=0.25)
    assert not is_worse(losses, items(baseline), controls, 0.25)


def answers(margins: np.ndarray) -> ItemLosses:
    return ItemLosses(tuple(np.where(margins > 0, -1.0, 0.0)), tuple(margins.tolist()))


def test_margins_tell_more_of_answers_than_right_and_wrong() -> None:
    """The promise holds for answers, and a race on margins drops bad candidates earlier."""
    rng = np.random.default_rng(4)
    documents, first, races = 256, 64, 300
    raced = dropped = by_margin = by_losses = 0
    for _ in range(races):
        shared = rng.normal(0, 1, documents)
        candidate, baseline, *controls = shared + rng.normal(0, 0.4, (5, documents))
        known = [answers(margins) for margins in (baseline, *controls)]
        # A candidate of the same kind that is at least as good on all documents.
        if (candidate > 0).sum() >= (baseline > 0).sum():
            raced += 1
            dropped += is_worse(answers(candidate).first(first), known[0], known[1:], 0.25)
        # One that is worse.
        worse = answers(candidate - 0.2).first(first)
        by_margin += is_worse(worse, known[0], known[1:], 0.25)
        plain = [ItemLosses(one.losses) for one in known]
        by_losses += is_worse(ItemLosses(worse.losses), plain[0], plain[1:], 0.25)
    assert dropped / raced < 0.06
    assert by_margin > 1.2 * by_losses


def test_the_best_before_a_generation_are_its_baseline_and_controls() -> None:
    space = SearchSpace(N_LAYERS, 3)
    sampler = PSOSampler(space, seed=0, population=4).subsets
    study = optuna.create_study()
    assert race_of(study, sampler, 0) is None
    for value in (4.0, 2.0, 3.0, 1.0, 5.0, 0.0):
        study.tell(sampler.ask(study).number, value)
    dropped = [LayerSubset.parse(t.user_attrs["dropped"], N_LAYERS) for t in study.trials]
    assert race_of(study, sampler, 3) == Race(dropped[0]), "nothing is known before generation 0"
    for number in (4, 7):
        assert race_of(study, sampler, number) == Race(
            dropped[3], (dropped[1], dropped[2], dropped[0])
        )


@pytest.fixture
def engine(loaded: LoadedModel, prose: Path, tmp_path: Path) -> LocalEngine:
    windows = token_windows(str(prose), loaded.tokenizer, 2048, 32)
    return LocalEngine(
        loaded,
        CalibrationObjective(loaded, windows, KL(), chunk_tokens=128),
        EvaluationCache(tmp_path / "c"),
    )


def raced(engine: LocalEngine, study: optuna.Study, total: int) -> None:
    space = SearchSpace(N_LAYERS, 3)
    latency = LatencyModel((1.0,) * N_LAYERS, (0.4,) * N_LAYERS, 1.0)
    scalarizer = TrialScalarizer("kl", False, ScoreWeights(), engine.loaded.sizes, latency)
    sampler = PSOSampler(space, seed=0, population=4).subsets
    asyncio.run(search(study, sampler, engine, scalarizer, total, race=True))


def test_a_race_scores_the_winner_in_full_and_the_losers_in_part(engine: LocalEngine) -> None:
    study = optuna.create_study()
    raced(engine, study, 16)
    pruned = [t for t in study.trials if t.state == TrialState.PRUNED]
    whole = [t for t in study.trials if t.state == TrialState.COMPLETE]
    assert len(pruned) + len(whole) == 16
    assert pruned
    chunks = len(engine.objective.chunks)
    assert all(chunks in t.intermediate_values for t in whole)
    assert all(max(t.intermediate_values) < chunks for t in pruned)
    best = LayerSubset.parse(study.best_trial.user_attrs["dropped"], N_LAYERS)
    assert engine.evaluate_now([best])[0].metrics["kl"] == pytest.approx(study.best_value)
    # Nothing else is scored: each candidate up to its last rung, and once the dense model.
    sizes = [chunk.tokens for chunk in engine.objective.chunks]
    scored_tokens = sum(sum(sizes[: max(t.intermediate_values)]) for t in study.trials)
    assert engine.results.tokens == scored_tokens < 16 * sum(sizes)
    for trial in (
        pruned
    ):  # what was dropped is indeed worse, and what was scored is used by a full evaluation
        candidate = LayerSubset.parse(trial.user_attrs["dropped"], N_LAYERS)
        before = engine.results.tokens
        assert engine.evaluate_now([candidate])[0].metrics["kl"] > study.best_value
        scored = max(trial.intermediate_values)
        assert engine.results.tokens - before == sum(
            chunk.tokens for chunk in engine.objective.chunks[scored:]
        )


def test_a_broken_off_race_goes_on_as_if_nothing_had_happened(
    engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = optuna.create_study()
    raced(engine, unbroken, 12)
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(study_name="s", storage=url)
    for total in (3, 4, 9, 12):
        raced(engine, optuna.load_study(study_name="s", storage=url), total)
    rows = [
        [(t.number, t.user_attrs["dropped"], t.state, t.value) for t in s.trials]
        for s in (unbroken, optuna.load_study(study_name="s", storage=url))
    ]
    assert rows[0] == rows[1]


def test_mixes_are_not_raced() -> None:
    with pytest.raises(InputError, match="race one objective"):
        Recipe(**{"model": "m", "drop": "2", "objective": "kl=1,hellaswag=1", "race": True})
