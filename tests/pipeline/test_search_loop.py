"""The engine and the loop: nothing scored twice, nothing lost, failures kept to their trial."""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState

from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.config.objective import ScoreWeights
from prunesearch.errors import InputError
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.evaluation.scalarization import TrialScalarizer
from prunesearch.events import Event, SearchProgress, subscribed
from prunesearch.execution.latency import LatencyModel
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.base import ChunkResult, Metrics, Work
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.calibration_data import token_windows
from prunesearch.objectives.metrics.kl import KL
from prunesearch.pipeline.search_loop import SearchResult, search
from prunesearch.runtime.stopping import StopRequested
from prunesearch.samplers import (
    PSOSampler,
    WOASampler,
    build,
    trials_needed,
)
from prunesearch.space import SearchSpace
from tests.support.models import N_LAYERS
from tests.support.table_engine import TableEngine

SPACE = SearchSpace(N_LAYERS, 2)
SUBSETS = [LayerSubset.of(N_LAYERS, d) for d in ([0], [1, 2], [5])]


@pytest.fixture
def scalarizer(loaded: LoadedModel) -> TrialScalarizer:
    return TrialScalarizer(
        "kl",
        False,
        ScoreWeights(),
        loaded.sizes,
        LatencyModel((1.0,) * N_LAYERS, (0.4,) * N_LAYERS, 1.0),
    )


def run(
    study: optuna.Study, engine: object, scalarizer: TrialScalarizer, total: int
) -> tuple[SearchResult, list[SearchProgress]]:
    seen: list[Event] = []
    sampler = PSOSampler(SPACE, seed=0, population=4).subsets
    with subscribed(seen.append):
        result = asyncio.run(search(study, sampler, engine, scalarizer, total))  # type: ignore[arg-type]
    return result, [event for event in seen if isinstance(event, SearchProgress)]


def rows(study: optuna.Study) -> list[tuple[int, str, float | None, str]]:
    return [(t.number, t.user_attrs["dropped"], t.value, t.state.name) for t in study.trials]


def test_a_killed_search_goes_on_as_if_nothing_had_happened(
    scalarizer: TrialScalarizer, tmp_path: Path
) -> None:
    unbroken = optuna.create_study()
    run(unbroken, TableEngine(), scalarizer, 14)
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(study_name="s", storage=url)
    scored = []
    for patience in (1, 5, 2, 100):
        study, engine = optuna.load_study(study_name="s", storage=url), TableEngine(patience)
        try:
            result, _ = run(study, engine, scalarizer, 14)
        except KeyboardInterrupt:
            assert any(t.state == TrialState.RUNNING for t in study.trials)
        scored += engine.scored
    assert rows(study) == rows(unbroken)
    assert result.adopted > 0
    assert len(scored) == 14, "no finished trial was evaluated again"


def test_total_means_total(scalarizer: TrialScalarizer) -> None:
    study = optuna.create_study()
    run(study, TableEngine(), scalarizer, 6)
    result, _ = run(study, TableEngine(), scalarizer, 9)
    assert (len(study.trials), result.computed) == (9, 3)
    assert run(study, TableEngine(), scalarizer, 9)[0].computed == 0
    result, progress = run(study, TableEngine(), scalarizer, 1000)
    assert len(study.trials) == SPACE.size == progress[-1].total, "the space has no more candidates"


@pytest.mark.parametrize(
    ("name", "ranking", "k"),
    [("greedy", "none", 3), ("greedy", "none", 1), ("one-shot", "single", 2), ("pso", "single", 2)],
)
def test_the_trials_that_a_plan_needs_are_known_before(
    name: str, ranking: str, k: int, scalarizer: TrialScalarizer
) -> None:
    space = SearchSpace(N_LAYERS, k)
    needed = trials_needed(name, ranking, space)
    first, whole = needed.first, needed.whole

    def results(total: int) -> tuple[int, int]:
        study = optuna.create_study()
        sampler = build(
            name, space, population=4, ranking="single" if ranking == "single" else None
        )
        result = asyncio.run(search(study, sampler, TableEngine(), scalarizer, total))
        return sum(t.state == TrialState.COMPLETE for t in study.trials), result.missing

    assert results(first - 1)[0] == 0
    assert results(first)[0] == 1
    assert results(whole)[1] == 0
    if name == "greedy":
        assert (first, whole) == {3: (12, 15), 1: (1, 6)}[k]
        assert results(whole - 2)[1] == 2


def test_a_failing_evaluation_fails_its_trial_only(scalarizer: TrialScalarizer) -> None:
    study = optuna.create_study()
    result, progress = run(study, TableEngine(failing=frozenset({3})), scalarizer, SPACE.size)
    failed = [t for t in study.trials if t.state == TrialState.FAIL]
    assert len(failed) == result.failed == 5
    assert all(t.user_attrs["failure"] == "MemoryError: too large" for t in failed)
    assert progress[-1].best_dropped == study.best_trial.user_attrs["dropped"] == "0,1"
    assert progress[-1].best_value == study.best_value


def test_a_running_trial_of_another_space_stops_the_search(scalarizer: TrialScalarizer) -> None:
    study = optuna.create_study()
    study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    with pytest.raises(InputError, match="trial 0 cannot be adopted"):
        run(study, TableEngine(), scalarizer, 3)


@pytest.fixture
def engine(loaded: LoadedModel, prose: Path, tmp_path: Path) -> LocalEngine:
    windows = token_windows(str(prose), loaded.tokenizer, 2048, 128)
    return LocalEngine(
        loaded, CalibrationObjective(loaded, windows, KL()), EvaluationCache(tmp_path / "cache")
    )


async def collect(engine: LocalEngine, candidates: Sequence[LayerSubset]) -> list[Evaluation]:
    return [evaluation async for evaluation in engine.evaluate(candidates)]


def test_nothing_is_scored_twice(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, LayerSubset]] = []
    score = engine.objective.score

    def noted(work: Work, forward: Forward) -> Iterator[ChunkResult]:
        for piece in work:
            calls.extend((piece.chunk.index, candidate) for candidate in piece.candidates)
        return score(work, forward)

    monkeypatch.setattr(engine.objective, "score", noted)
    first = asyncio.run(collect(engine, [*SUBSETS, *SUBSETS]))
    assert sorted(e.candidate for e in first) == sorted(SUBSETS)
    assert len(calls) == len(SUBSETS) * len(engine.objective.chunks)
    second = asyncio.run(collect(engine, SUBSETS))
    assert [e.cached for e in first + second] == [False] * 3 + [True] * 3
    assert {e.candidate: e.metrics for e in second} == {e.candidate: e.metrics for e in first}
    assert all(e.seconds == 0 for e in second)
    assert len(calls) == len(SUBSETS) * len(engine.objective.chunks)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no memory left"),
        MemoryError("no memory left"),
        RuntimeError("no memory left"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_running_out_of_memory_is_a_failed_evaluation(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(engine.objective, "score", fail)
    evaluation = engine.evaluate_now([SUBSETS[0]])[0]
    assert evaluation.failure == f"{type(error).__name__}: no memory left"
    assert not evaluation.metrics
    monkeypatch.undo()
    assert engine.evaluate_now([SUBSETS[0]])[0].failure is None, (
        "a failure is not kept in the cache"
    )


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        (lambda: math.exp(1000), "OverflowError"),
        (lambda: float("nan"), "kl is nan"),
        (lambda: [][0], "IndexError"),
    ],
    ids=["overflow", "nan", "own-code"],
)
def test_metrics_that_fail_fail_the_evaluation(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, metrics: Callable[[], float], reason: str
) -> None:
    monkeypatch.setattr(engine.objective, "metrics", lambda results: Metrics({"kl": metrics()}, {}))
    assert reason in str(engine.evaluate_now([SUBSETS[0]])[0].failure)


def test_nan_is_a_failed_evaluation_and_the_search_goes_on(
    engine: LocalEngine, scalarizer: TrialScalarizer
) -> None:
    with torch.no_grad():  # only candidates that keep block 3 break
        engine.loaded.model.model.layers[3].mlp.down_proj.weight.fill_(float("nan"))
    # The dense model, the reference of KL, must be whole for a search; here its breaking is the
    # point.
    study = optuna.create_study()
    result, _ = run(study, engine, scalarizer, 6)
    assert result.failed == 6
    assert "not finite" in study.trials[0].user_attrs["failure"]


def test_damaged_entries_are_computed_again(engine: LocalEngine) -> None:
    import sqlite3

    before = engine.evaluate_now([SUBSETS[1]])[0]
    with sqlite3.connect(engine._cache.folder / "cache.db") as rows:
        rows.execute("UPDATE Cache SET value = replace(value, '\"value\":[[', '\"value\":[[1')")
    after = engine.evaluate_now([SUBSETS[1]])[0]
    assert engine._cache.damaged == 2
    assert after.metrics == before.metrics
    assert not after.cached
    assert engine.evaluate_now([SUBSETS[1]])[0].cached


def test_two_samplers_share_the_store(engine: LocalEngine, scalarizer: TrialScalarizer) -> None:
    results = []
    for sampler in (
        PSOSampler(SPACE, seed=0, population=4).subsets,
        WOASampler(SPACE, seed=0, population=4).subsets,
    ):
        results.append(asyncio.run(search(optuna.create_study(), sampler, engine, scalarizer, 12)))
    assert (results[0].hits, results[0].computed) == (0, 12)
    assert results[1].hits >= 9, "15 candidates exist, 12 are known"


def test_stopping_leaves_the_model_whole(engine: LocalEngine) -> None:
    async def stop_soon() -> None:
        task = asyncio.create_task(collect(engine, SUBSETS))
        await asyncio.sleep(0.005)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(stop_soon())
    assert len(engine.loaded.model.model.layers) == N_LAYERS
    assert asyncio.run(collect(engine, SUBSETS))[0].failure is None, "the engine can be used again"


def test_a_stop_while_a_sampler_waits_cancels_the_search(
    scalarizer: TrialScalarizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop ends in order, and the caller raises what the signal asked for."""
    sampler = PSOSampler(SPACE, seed=0, population=4).subsets

    def ask(*_: object) -> None:
        raise StopRequested(15)

    monkeypatch.setattr(sampler, "ask", ask)
    study, engine = optuna.create_study(), TableEngine()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(search(study, sampler, engine, scalarizer, 4))
    assert study.trials == []
