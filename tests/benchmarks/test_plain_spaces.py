"""The functions of `benchmarks.plain_spaces`, and how its runs are compared and kept."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.plain_parts.runs import SAMPLERS, Runs, dominated_share
from benchmarks.plain_spaces import verdict
from benchmarks.support import plain_problems
from benchmarks.support.plain_problems import PROBLEMS, problem, shift


@pytest.mark.parametrize(
    ("function", "best_D"),
    [
        (plain_problems.schwefel, [420.968746] * 3),
        (plain_problems.styblinski_tang, [-2.903534] * 4),
        (plain_problems.hartmann, [0.11458891, 0.55564889, 0.85254698]),
        (plain_problems.hartmann, [0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573]),
        (plain_problems.rosenbrock, [0.0] * 5),
        (plain_problems.levy, [0.0] * 5),
        (plain_problems.ackley, [0.0] * 5),
        (plain_problems.griewank, [0.0] * 5),
        (plain_problems.rastrigin, [0.0] * 5),
    ],
)
def test_the_least_of_a_function_is_zero(function: object, best_D: list[float]) -> None:
    assert callable(function)
    assert function(np.array(best_D)) == pytest.approx(0.0, abs=1e-4)
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert function(np.array(best_D) + 0.01 * rng.standard_normal(len(best_D))) > -1e-9


def test_branin_has_three_minima() -> None:
    for place in ((-np.pi, 12.275), (np.pi, 2.275), (9.42477796, 2.475)):
        assert plain_problems.branin(np.array(place)) == pytest.approx(0.0, abs=1e-9)


def test_there_are_19_functions_and_seeds_shift_their_optimum() -> None:
    assert len(PROBLEMS) == 19
    for seed in range(3):
        place_D = shift("sphere-5", seed, -5.0, 5.0, 5)
        params = {f"x{index:02d}": value for index, value in enumerate(place_D)}
        assert problem("sphere-5", seed).loss(params) == 0.0
        assert problem("sphere-5", seed + 1).loss(params) > 0.1
        assert (np.abs(place_D) >= 0.7).all()
    for name in PROBLEMS:
        size = int(name.rpartition("-")[2])
        assert len(problem(name, 0).space) == size


def test_a_verdict_needs_a_difference_in_pairs() -> None:
    rng = np.random.default_rng(0)
    theirs_S = rng.standard_normal(12)
    assert verdict(theirs_S, theirs_S) == 0
    assert verdict(theirs_S - 1.0, theirs_S) == 1
    assert verdict(theirs_S + 0.5 + 0.1 * rng.standard_normal(12), theirs_S) == -1
    assert verdict(rng.standard_normal(12), theirs_S) == 0


def test_a_hypervolume_counts_what_the_front_dominates() -> None:
    assert dominated_share(np.array([[1.0, 1.0]]), (2.0, 2.0)) == 0.25
    loss_NO = np.array([[0.5, 1.5], [1.0, 1.0], [1.5, 1.8], [3.0, 0.0]])
    assert dominated_share(loss_NO, (2.0, 2.0)) == pytest.approx((1.0 + 0.25) / 4.0)


def test_a_finished_run_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(tmp_path)
    first_N = runs.losses("branin-2", "random", 0, 5)

    def refuse(seed: int) -> None:
        raise AssertionError(f"seed {seed} runs again")

    monkeypatch.setitem(SAMPLERS, "random", refuse)
    np.testing.assert_array_equal(runs.losses("branin-2", "random", 0, 5), first_N)
    with pytest.raises(AssertionError, match="seed 1 runs again"):
        runs.losses("branin-2", "random", 1, 5)
