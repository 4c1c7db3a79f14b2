"""The landscapes: the numbers of the reference where it is present, and what must hold anywhere."""

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from benchmarks.landscapes import NAMES, Landscape, best_known, landscape, strong
from benchmarks.landscapes.best_known import neighbours
from benchmarks.landscapes.tables import of_losses
from prunesearch.algorithms.operators import Mask
from prunesearch.errors import InputError, UnknownNameError
from tests.support.paths import LANDSCAPE, SYNTHETIC


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The landscapes as another author wrote them."""
    if not SYNTHETIC.is_file():
        pytest.skip("the reference is not on this machine")
    spec = importlib.util.spec_from_file_location("synthetic", SYNTHETIC)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["synthetic"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def _random_subsets(searched: Landscape, count: int) -> Mask:
    rng = np.random.default_rng(0)
    return np.array([searched.random_subset(rng) for _ in range(count)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 7])
def test_numbers_are_those_of_the_reference(name: str, seed: int, reference: ModuleType) -> None:
    ours, theirs = landscape(name, seed), reference.MAKERS[name](seed)
    X_MD = _random_subsets(ours, 30)
    assert (ours.name, ours.n, ours.k_min, ours.k) == (name, theirs.n, theirs.kmin, theirs.k)
    np.testing.assert_allclose(ours.loss(X_MD), theirs.f(X_MD), rtol=1e-12)
    np.testing.assert_allclose(ours.true(X_MD), theirs.true(X_MD), rtol=1e-12)
    assert ours.rankings.keys() == theirs.rankings.keys()
    for ranking, harm_D in theirs.rankings.items():
        np.testing.assert_array_equal(ours.rankings[ranking], harm_D)
    assert ours.optimum == theirs.best


def test_a_measured_table_is_that_of_the_reference(reference: ModuleType) -> None:
    ours, theirs = landscape(str(LANDSCAPE), 0), reference.table(LANDSCAPE, "k3")
    X_MD = _random_subsets(ours, 30)
    np.testing.assert_array_equal(ours.loss(X_MD), theirs.f(X_MD))
    np.testing.assert_allclose(ours.rankings["good"], theirs.rankings["good"])
    assert ours.optimum == theirs.best == best_known(str(LANDSCAPE), 3)


def test_the_neighbours_are_those_of_the_reference(reference: ModuleType) -> None:
    for name in ("upto30-k12", "qubo60-k15"):
        ours, theirs = landscape(name, 1), reference.MAKERS[name](1)
        X_D = _random_subsets(ours, 1)[0]
        np.testing.assert_array_equal(neighbours(X_D, ours), reference.swaps(X_D, theirs))


def test_a_name_says_the_size() -> None:
    searched = landscape("trap3x4-k8-scat", 5)
    assert (searched.name, searched.n, searched.k, searched.fixed) == (
        "trap3x4-k8-scat",
        12,
        8,
        True,
    )
    assert landscape("sub12-k3", 0).space.units == "sublayers"
    assert landscape("upto9-k4", 0).space.k_min == 1


def test_other_names_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="layer80"):
        landscape("layers80-k20", 0)
    with pytest.raises(InputError, match="chooses 12 of 12"):
        landscape("qubo12-k12", 0)


def test_the_descent_finds_the_optimum_of_small_landscapes() -> None:
    searched = landscape("qubo12-k4", 2)
    every_MD = np.zeros((495, 12), dtype=np.bool_)
    for X_D, chosen in zip(every_MD, itertools.combinations(range(12), 4), strict=True):
        X_D[list(chosen)] = True
    value, X_D = strong(searched, evaluations=2_000)
    assert value == pytest.approx(searched.loss(every_MD).min())
    assert searched.loss(X_D[None])[0] == pytest.approx(value)
    # With an optimum that is known, nothing is searched.
    assert best_known("trap3x4-k8", 1) == landscape("trap3x4-k8", 1).optimum


def test_a_table_must_be_complete(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text('{"n_layers": 3, "k": 1, "rows": [[[0], 2.0], [[1], 1.0]]}')
    with pytest.raises(InputError, match="2 subsets of 3"):
        landscape(str(path), 0)


def test_the_ranking_of_a_table_is_the_mean_log_loss() -> None:
    searched = of_losses("tiny", 3, {(0,): 1.0, (1,): 2.0, (2,): 4.0})
    np.testing.assert_allclose(searched.rankings["good"], [1.0, 2.0, 4.0])
