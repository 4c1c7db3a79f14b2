"""The problems of the comparison on one landscape: a measured table, a tiny one, a real model."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.landscapes.tables import of_losses, table
from benchmarks.search_quality_parts.problem import Problem, of_landscape
from prunesearch.candidate import LayerSubset
from prunesearch.space import SearchSpace


def measured(path: Path) -> tuple[Problem, float]:
    """Return a measured landscape and its best value.

    Raises:
        InputError: the file is not a landscape, or some subsets are missing.
    """
    searched = table(path)
    assert searched.optimum is not None
    return of_landscape(searched), searched.optimum


def tiny() -> tuple[Problem, float]:
    """Return a landscape of 20 subsets, for a smoke run, and its best value."""
    losses: dict[tuple[int, ...], float] = {}
    for subset in itertools.combinations(range(6), 3):
        losses[subset] = float(sum(i * i + 1 for i in subset))
    return of_landscape(of_losses("tiny", 6, losses)), min(losses.values())


@contextmanager
def live(model: str, drop: str, calibration: str, cache: str) -> Iterator[Problem]:
    """Open a model and return its problem: KL on 4 x 256 tokens, through the cache.

    Args:
        model: a model folder or Hugging Face id.
        drop: value of the option `drop`.
        calibration: calibration text.
        cache: folder of the cache.
    """
    from prunesearch.config.recipe import Recipe
    from prunesearch.config.run_options import RunOptions
    from prunesearch.objectives.calibration_data import token_windows
    from prunesearch.objectives.importance import rank_units
    from prunesearch.pipeline.session import open_session, require

    recipe = Recipe(model=model, search={"drop": drop}, data={"calibration": calibration})
    with open_session(recipe, RunOptions(cache=cache)) as session:
        loaded = session.loaded
        space = SearchSpace.parse(loaded.n_layers, drop)

        def value(dropped: tuple[int, ...]) -> float:
            candidate = LayerSubset(space.n_layers, dropped)
            evaluation = require(*session.engine.evaluate_now([candidate]))
            return float(evaluation.metrics["kl"])

        windows = token_windows(
            calibration, loaded.tokenizer, recipe.data.tokens, recipe.data.window
        )
        influence = rank_units(loaded.model, loaded.layers, windows, "influence", "blocks")
        yield Problem(space, value, True, influence)
