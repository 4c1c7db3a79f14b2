"""The parts of the benchmark of the search: what counts, and what its statistics say."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.landscapes import best_known, landscape
from benchmarks.search_quality_parts import synthetic_results
from benchmarks.search_quality_parts.baselines import BASELINES
from benchmarks.search_quality_parts.baselines.model_search import all_swaps
from benchmarks.search_quality_parts.problem import (
    Problem,
    Trace,
    Units,
    Watch,
    of_landscape,
)
from benchmarks.search_quality_parts.synthetic_results import (
    Cell,
    compared,
    hill_climbing_wins,
    stuck_runs,
    table_of,
)
from benchmarks.search_quality_parts.synthetic_runs import RunFile, SyntheticRun, measure
from benchmarks.search_quality_parts.synthetic_tables import markdown
from prunesearch.algorithms.subset_constraints import SubsetConstraints
from prunesearch.errors import UnknownNameError
from prunesearch.space import SearchSpace

_TINY = "qubo10-k3"


@pytest.fixture
def quick_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the best known values come from a short descent."""
    monkeypatch.setattr(
        synthetic_results, "best_known", lambda name, seed: best_known(name, seed, 1)
    )


def _filled(file: RunFile, algorithm: str, losses: Sequence[float]) -> None:
    """Add a run for each seed that has found one loss."""
    for seed, loss in enumerate(losses):
        file.add(SyntheticRun(_TINY, algorithm, seed, 8, 0.1, [loss]))


def test_a_repeated_subset_is_no_evaluation_and_a_noisy_winner_counts_with_its_true_value() -> None:
    seen: dict[Units, float] = {(0,): 1.0, (1,): 2.0, (2,): 0.5}
    true: dict[Units, float] = {(0,): 3.0, (1,): 1.0, (2,): 4.0}
    watch = Watch(Problem(SearchSpace(4, 1), seen.__getitem__, False, None, true.__getitem__))
    for units in ((0,), (1,), (1,), (2,)):
        watch.evaluate(units)
    assert watch.trace.best == [3.0, 3.0, 4.0]
    assert watch.trace.proposed == 4
    assert (watch.over(3), watch.over(4)) == (True, False)


def test_partial_subsets_are_evaluations_but_no_results() -> None:
    problem = of_landscape(landscape(_TINY, 0))
    watch = Watch(problem, spent=1)
    watch.evaluate((0,), whole=False)
    value = watch.evaluate((0, 1, 2))
    assert watch.trace.best == [float("inf"), float("inf"), value]


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_finds_the_optimum_of_a_small_landscape(name: str) -> None:
    problem = of_landscape(landscape(_TINY, 1))
    trace = BASELINES[name](problem, 0, 45)
    assert trace.proposed == len(trace.best) == 45  # nothing twice
    assert trace.best[-1] == pytest.approx(best_known(_TINY, 1, 2_000))


def test_a_baseline_varies_the_size_where_it_may() -> None:
    X_D = np.isin(np.arange(5), (0, 1))
    sizes = all_swaps(X_D, SubsetConstraints.of(np.ones(5, dtype=bool), 1, 3)).sum(axis=1)
    assert np.bincount(sizes).tolist() == [0, 2, 6, 3]
    for run in BASELINES.values():
        assert len(run(of_landscape(landscape("upto8-k4", 0)), 0, 15).best) == 15


def test_differences_are_paired_and_corrected() -> None:
    luck = np.random.default_rng(0).random(12)
    cells = compared({"pso": luck, "woa": luck + 0.1, "random": luck - 0.1, "tpe": luck[::-1]})
    assert cells["pso"].test is None
    assert (cells["woa"].verdict, cells["random"].verdict, cells["tpe"].verdict) == (
        "worse",
        "better",
        "",
    )
    assert cells["woa"].p == pytest.approx(3 * 2 / 2**12)
    # A row without a whole subset has no mean, and is not tested.
    assert compared({"pso": luck, "greedy": luck + np.inf})["greedy"].mean is None


@pytest.mark.usefixtures("quick_descent")
def test_a_run_that_only_guesses_is_stuck() -> None:
    name = "acc200-n32-k8-floor"
    found = -0.25 - best_known(name, 0, 1)  # from the best known value to guessing
    assert stuck_runs(name, Cell(np.array([found])), [0]) == 1
    assert stuck_runs(name, Cell(np.array([0.2 * found])), [0]) == 0
    assert stuck_runs(_TINY, Cell(np.array([found])), [0]) is None


def test_runs_are_written_down_and_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    measure([_TINY], [0, 1], 8, "random;hill-climbing", RunFile(path))
    with path.open("a") as file:
        file.write('{"landscape": "qubo')  # what a killed process leaves
    again = RunFile(path)
    assert len(again.runs) == 4
    measure([_TINY], [0, 1], 8, "random;hill-climbing; pso, good ranking", again)
    assert len(path.read_text().splitlines()) == 5
    with pytest.raises(UnknownNameError, match="randon"):
        measure([_TINY], [0], 8, "randon", again)


@pytest.mark.usefixtures("quick_descent")
def test_the_tables_say_who_is_better() -> None:
    file = RunFile(None)
    _filled(file, "pso", [1.0, 2.0, 3.0])
    _filled(file, "hill-climbing", [0.0, 1.0, 2.0])
    _filled(file, "evolution", [2.0, 2.0, 2.0])
    _filled(file, "tpe", [2.0])  # has not run with every seed
    table = table_of(_TINY, range(3), [8], file)
    assert list(table) == ["hill-climbing", "pso", "evolution"]
    assert hill_climbing_wins({_TINY: table}, 8) == 1
    known = np.mean([best_known(_TINY, seed, 1) for seed in range(3)])
    assert table["pso"][8].mean == pytest.approx(2.0 - known)
    text = markdown({_TINY: table}, [8], 3)
    assert "`hill-climbing` is better on 1 of 1" in text
    assert f"| pso | {2.0 - known:.4f} ± " in text


def test_a_trace_without_a_whole_subset_has_no_value() -> None:
    assert Trace().at(5) == float("inf")
