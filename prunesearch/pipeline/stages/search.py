"""Stage `search`: bring the study of each recipe to the requested number of trials.

A study is found by its recipe and resumed. An evaluation that is in the cache is not repeated.
"""

from dataclasses import replace

from prunesearch.config.run_options import RunOptions
from prunesearch.errors import InputError, either
from prunesearch.export.companions import companions
from prunesearch.export.formats.registry import REGISTRY
from prunesearch.pipeline.searches import check_grid, run_search, run_searches
from prunesearch.pipeline.session import open_session
from prunesearch.pipeline.stages.base import Stage
from prunesearch.pipeline.state import Request, State
from prunesearch.runtime.json_values import JsonObject
from prunesearch.studies import persistence, places


def search(state: State) -> State:
    """Search all recipes at once, and keep the model for the stages that follow.

    The session is closed afterwards, so that no worker process holds memory during a healing.
    """
    request = state.request
    with open_session(request.recipes[0], request.options) as session:
        state.resources.keep(session.loaded)
        # Find out what an export would refuse before any candidate is scored.
        if request.export is not None:
            companions(session.loaded)
        if request.in_sequence:
            outcomes = [run_search(session, recipe, request.options) for recipe in request.recipes]
        else:
            outcomes = run_searches(session, request.recipes, request.options)
    return replace(state, outcomes=tuple(outcomes))


def check(request: Request) -> None:
    """Refuse recipes that cannot be searched or exported, before anything is loaded.

    Raises:
        InputError: the result could not be exported without a choice by the user; see also
            `searches.check_grid`.
    """
    if request.export is not None:
        formats = [entry.name for entry in REGISTRY.entries() if entry.sublayers]
        for recipe in request.recipes:
            if recipe.search.is_pareto:
                raise InputError(
                    f"drop: {recipe.search.drop} gives a front, not one best: only search it, and "
                    f"then export the study with `max_loss` or `max_size`"
                )
            if recipe.search.units != "blocks":
                raise InputError(
                    f"units: sublayers leaves a choice of how to write the result: only search, "
                    f"and then export the study with `export_format` {either(formats)}"
                )
    if request.recipes:
        check_grid(request.recipes, request.options)


def resume_request(
    name: str,
    options: RunOptions,
    *,
    trust_remote_code: bool = False,
    **location: str | None,
) -> Request:
    """Return the request that resumes a study, from any folder or machine.

    Args:
        name: name of the study.
        options: how it is run. Without trials, the study gets as many as were requested last.
        trust_remote_code: run the checkpoint's own code. The setting of the study's creator does
            not count.
        location: present locations of model and data, by the recipe's names. Their content must not
            have changed.

    Raises:
        StudyError: the study does not exist, or its model or data cannot be found.
    """
    study = persistence.load(persistence.open_storage(options.storage, create=False), name)
    recipe = places.located(study, location).with_changes(trust_remote_code=trust_remote_code)
    changed: JsonObject = {"study": name}
    if "trials" not in options.model_fields_set and persistence.TRIALS_ATTR in study.user_attrs:
        changed["trials"] = study.user_attrs[persistence.TRIALS_ATTR]
    options = options.model_copy(update=changed)
    return Request(options, (recipe,))


SEARCH = Stage("search", search, check, defers_signals=False)
