"""The registry of algorithms states facts that hold."""

import pkgutil
import subprocess
import sys

import pytest

from prunesearch.algorithms.registry import REGISTRY, AlgorithmEntry, names_with
from prunesearch.errors import UnknownNameError
from prunesearch.space import SearchSpace


def test_the_algorithms_are_these() -> None:
    known = "pso woa evolution ga annealing greedy one-shot tpe nsga2 cmaes random".split()
    assert [name for name in REGISTRY.names() if name in known] == known
    assert names_with("several_objectives")[:2] == ["pso", "woa"]
    assert names_with("needs_llm") == ["llm"]
    assert names_with("ordinary_parameters") == ["pso", "woa", "tpe"]
    with pytest.raises(UnknownNameError, match="did you mean 'woa'"):
        REGISTRY.get("woaa")


@pytest.mark.parametrize("entry", REGISTRY.entries(), ids=lambda entry: entry.name)
def test_an_entry_is_complete(entry: AlgorithmEntry) -> None:
    assert callable(pkgutil.resolve_name(entry.sampler))
    assert entry.label
    if entry.algorithm is not None:
        assert entry.algorithm().name == entry.name
    if entry.vector_law is not None:
        assert entry.vector_law.name == entry.name
    assert entry.takes_ranking or not entry.needs_ranking
    assert (entry.ranking != "none") <= entry.takes_ranking
    needed = entry.trials_needed(SearchSpace(6, 2), entry.ranking)
    assert 1 <= needed.first <= needed.whole <= 11


def test_names_are_read_without_optuna() -> None:
    code = (
        "import sys; from prunesearch.algorithms.registry import REGISTRY; "
        "assert 'numpy' not in sys.modules; print(len(REGISTRY.names())); "
        "assert not {'optuna', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
