"""Races: the test, its rungs, and that they save work without losing the winner."""

import asyncio
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
from prunesearch.objectives.race import is_worse, rungs
from prunesearch.pipeline.search_loop import search
from prunesearch.samplers import PSOSampler
from prunesearch.space import SearchSpace
from tests.support.models import N_LAYERS


def test_rungs_double_and_end_with_everything() -> None:
    assert rungs(1) == [1]
    assert rungs(4) == [1, 2, 4]
    assert rungs(10) == [1, 2, 4, 8, 10]


def test_what_is_hard_for_both_cancels() -> None:
    rng = np.random.default_rng(0)
    hardness = rng.normal(0, 10, 16)
    assert is_worse(list(hardness + 0.1 + rng.normal(0, 0.01, 16)), list(hardness))
    assert not is_worse(list(hardness - 0.1), list(hardness))
    assert not is_worse(list(hardness), list(hardness)), "a candidate does not lose to itself"
    assert not is_worse([9.0, 9.0, 9.0], [1.0, 1.0, 1.0]), "too few items to tell"


def test_a_fair_candidate_is_dropped_as_seldom_as_the_test_says() -> None:
    rng = np.random.default_rng(1)
    dropped = sum(
        is_worse(list(rng.normal(0, 1, 8)), list(rng.normal(0, 1, 8))) for _ in range(4000)
    )
    assert 0.035 < dropped / 4000 < 0.065


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
    assert engine.results.tokens < 16 * sum(chunk.tokens for chunk in engine.objective.chunks)
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
