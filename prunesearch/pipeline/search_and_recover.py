"""Search and recovery from one recipe: from the search to the evaluation of the healed model.

Each stage finds its earlier result by content: the study by its recipe, the evaluation in the
cache, and the others as `recovery.recover` says. The same command again only does what is left to
do.
"""

import gc
from pathlib import Path
from typing import Any

# The first import of optuna_dashboard keeps the variables of its callers alive. It is imported
# here, before a model is loaded.
import optuna_dashboard  # noqa: F401

from prunesearch import events
from prunesearch.cache.location import CacheLocation
from prunesearch.candidate import LayerSubset
from prunesearch.config.identity import study_name
from prunesearch.config.model import ModelSection
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import InputError
from prunesearch.models.loading import LoadedModel
from prunesearch.pipeline.run import (
    Outcome,
    check_grid,
    evaluate_model,
    facts_of,
    run_search,
)
from prunesearch.pipeline.session import open_session, space_of
from prunesearch.recovery.recover import HealOptions, check_out, heal_and_export
from prunesearch.runtime import stopping
from prunesearch.studies import persistence, selection


def search_and_recover(
    recipe: Recipe,
    options: RunOptions,
    out: Path | None = None,
) -> dict[str, Any]:
    """Search, choose among finalists, compensate, tune, heal, export, verify and evaluate.

    Args:
        recipe: recipe with a section `recover`.
        options: how the search runs.
        out: folder of the checkpoint. Default: a folder in ``storage/exports/``, named by the
            study.

    Returns:
        Report as JSON values.

    Raises:
        PruneSearchError: see `errors`. Finished stages are kept.
    """
    # Refuse bad input before any work.
    recovery = recipe.recover
    if recovery is None:
        raise InputError("the recipe has no section `recover`")
    name = options.study or study_name(recipe)
    out = out or Path("storage/exports") / f"{name}-recovered"
    check_out(out)
    check_grid([recipe], options)
    # Search, and recover the best candidates in the model that was searched.
    loaded, outcome, ranked = _searched(recipe, options, name)
    heal_options = HealOptions(out, CacheLocation.parse(options.cache).folder, options.storage)
    with stopping.deferred():
        document = heal_and_export(loaded, ranked, recovery, _facts(recipe, outcome), heal_options)
    document = {**outcome.document(options), **document}
    # The healed model is loaded next, and two models may not fit in memory. The parts of a model
    # refer to each other, so only the garbage collector frees it.
    del loaded
    gc.collect()
    if (wanted := recovery.evaluate) is not None:
        events.tell(events.Message(f"evaluating {out}"))
        document["evaluation"] = evaluate_model(
            ModelSection(path=str(out)), wanted.objective, wanted.data, options, "none"
        )
    return document


def _searched(
    recipe: Recipe, options: RunOptions, name: str
) -> tuple[LoadedModel, Outcome, list[LayerSubset]]:
    """Search, and return the model as well, so that the recovery does not load it again.

    Returns:
        The dense model, the outcome of the search, and the study's candidates, best first.
    """
    with open_session(recipe, options) as session:
        outcome = run_search(session, recipe, options)
        study = persistence.load(persistence.open_storage(options.storage, create=False), name)
        space = space_of(recipe.search, session.loaded)
        ranked = [space.from_params(trial.params) for trial in selection.best_trials(study, None)]
        return session.loaded, outcome, ranked


def _facts(recipe: Recipe, outcome: Outcome) -> dict[str, Any]:
    """Return the facts of the search for the manifest.

    Its metrics are left out, because they do not describe the recovered model.
    """
    facts = facts_of(recipe, outcome)
    return {name: value for name, value in facts.items() if name in ("study", "recipe")}
