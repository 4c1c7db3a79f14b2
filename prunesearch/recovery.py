"""A search and what follows it, from one recipe: finalists, compensation, healing, export, verification, evaluation.

Every stage is found again by its content (the study by its recipe, the rest see `heal.finish`, the evaluation in the
store), so the same command again does what is left to do.
"""

import gc
from pathlib import Path
from typing import Annotated, Any

import optuna_dashboard  # noqa: F401 (its first import keeps its callers' variables, so not while a model is held)
from pydantic import BaseModel, ConfigDict, Field

from prunesearch import stopping
from prunesearch.bench import open_bench, space_of
from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.heal.finish import HealOptions, Recovery, View, check_out, heal_and_export
from prunesearch.model.loading import LoadedModel
from prunesearch.pipeline import Outcome, check_grid, evaluate_model, facts_of, run_search
from prunesearch.recipe import Recipe, RunOptions, study_name, validated
from prunesearch.search import Listener
from prunesearch.store import selection, studies
from prunesearch.store.places import Places


class Evaluated(BaseModel):
    """What the finished model is evaluated on, as `prunesearch evaluate` does it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str | None = None
    task_data: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    calibration: str | None = None
    """Text for perplexity, where no task is given."""
    tokens: Annotated[int, Field(ge=16)] = 4096


class RecoverySection(Recovery):
    """The section ``recover`` of a recipe file."""

    evaluate: Evaluated | None = None


def search_and_recover(
    recipe: Recipe,
    recovery: RecoverySection,
    options: RunOptions,
    view: View,
    out: Path | None = None,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Search, choose among finalists, compensate, tune, heal, export, verify, evaluate.

    Args:
        view: shows where the recovery is.
        out: folder for the checkpoint; default: ``storage/exports/`` and the study's name.
        listener: hears the search's progress.

    Returns:
        What was done, as JSON values.

    Raises:
        PruneSearchError: see `errors`; what was finished is kept.
    """
    if recipe.units != "blocks" or recipe.drop.startswith("pareto"):
        raise InputError("recover: goes with whole blocks and one best candidate: leave out units and pareto")
    name = options.study or study_name(recipe)
    out = out or Path("storage/exports") / f"{name}-recovered"
    check_out(out)
    check_grid([recipe], options)
    loaded, outcome, ranked = _searched(recipe, options, name, listener)
    heal_options = HealOptions(out, Places.parse(options.cache).folder, options.storage)
    with stopping.deferred():
        document = heal_and_export(loaded, ranked, recovery, _facts(recipe, outcome), heal_options, view)
    document = {**outcome.document(options), **document}
    # The healed model is loaded next, and two may not fit. Parts of a model refer to each other, so only the collector
    # frees it.
    del loaded
    gc.collect()
    if recovery.evaluate is not None:
        view.say(f"evaluating {out}")
        document["evaluation"] = evaluate_model(_evaluation(recovery.evaluate, out), options, "none")
    return document


def _searched(
    recipe: Recipe, options: RunOptions, name: str, listener: Listener | None
) -> tuple[LoadedModel, Outcome, list[LayerSubset]]:
    """Search, and hand on the model that was searched: what follows loads no second one.

    Returns:
        The dense model, what was found, and the study's candidates, best first.
    """
    with open_bench(recipe, options) as bench:
        outcome = run_search(bench, recipe, options, listener)
        study = studies.load(studies.open_storage(options.storage, create=False), name)
        space = space_of(recipe, bench.loaded)
        ranked = [space.from_params(trial.params) for trial in selection.best_trials(study, None)]
        return bench.loaded, outcome, ranked


def _facts(recipe: Recipe, outcome: Outcome) -> dict[str, Any]:
    """What is known of the search; its metrics are not the recovered model's."""
    return {name: value for name, value in facts_of(recipe, outcome).items() if name in ("study", "recipe")}


def _evaluation(wanted: Evaluated, out: Path) -> Recipe:
    values = wanted.model_dump(exclude_none=True)
    objective = "task" if wanted.task else "perplexity"
    return validated(Recipe, {**values, "model": str(out), "drop": "1", "objective": objective})
