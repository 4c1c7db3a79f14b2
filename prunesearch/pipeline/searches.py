"""Searches of one or several studies with one session, from the request to the outcome."""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from prunesearch import events
from prunesearch.algorithms.registry import REGISTRY
from prunesearch.candidate import LayerSubset
from prunesearch.config.identity import study_name
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import InputError, StudyBusyError
from prunesearch.llm.opening import check_chat
from prunesearch.pipeline.confirming import decide
from prunesearch.pipeline.distinction import DistinctionCheck
from prunesearch.pipeline.outcome import SearchOutcome, outcome_of
from prunesearch.pipeline.prepared_study import PreparedStudy, open_study, refuse_other_model
from prunesearch.pipeline.search_loop import SearchResult, search
from prunesearch.pipeline.session import Session, require
from prunesearch.pipeline.tracked_results import study_finished, study_opened
from prunesearch.runtime import stopping
from prunesearch.samplers import trials_needed
from prunesearch.space import Space
from prunesearch.studies import persistence, places, selection
from prunesearch.studies.warm_start import check_warm_start
from prunesearch.units import noun_for

Result = TypeVar("Result")


def check_grid(recipes: Sequence[Recipe], options: RunOptions) -> None:
    """Refuse recipes whose studies cannot be written, before anything is loaded.

    Raises:
        InputError: `study` names one study for several recipes, a recipe occurs twice, or a
            language model cannot be used.
        StudyBusyError: another process is searching a study that is not complete.
        StudyError: a study was made with another recipe.
    """
    if options.study is not None and len(recipes) > 1:
        raise InputError(f"`study` names one study, and {len(recipes)} are searched: leave it out")
    for recipe in recipes:
        if REGISTRY.get(recipe.search.sampler).needs_llm:
            assert recipe.llm.model is not None, "a recipe without a model is refused"
            check_chat(recipe.llm.url, recipe.llm.model)
    names = [study_name(recipe) for recipe in recipes]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"study {name!r} would be searched twice at once: name each sampler and number once"
            )
    asked = [(options.study or study_name(recipe), recipe) for recipe in recipes]
    persistence.refuse_busy(options.storage, [name for name, _ in asked], options.trials)
    persistence.refuse_others(options.storage, asked)
    for name, recipe in asked:
        _check_warm_start(name, recipe, options)


def _check_warm_start(name: str, recipe: Recipe, options: RunOptions) -> None:
    """Refuse a warm start that cannot be, before anything is loaded.

    Raises:
        InputError: `warm_start_storage` is given without `warm_start`, or a study is its own start.
        UnknownNameError, StudyError: see `studies.warm_start.check_warm_start`.
    """
    other, storage = recipe.search.warm_start, options.warm_start_storage
    if other is None:
        if storage is not None:
            raise InputError("`warm_start_storage` goes with `warm_start` STUDY")
        return
    if other == name and storage in (None, options.storage):
        raise InputError(f"`warm_start` {other} is the study itself: name another one")
    # A study that has begun holds what it needs of the other one.
    if not persistence.exists_in(options.storage, name):
        check_warm_start(storage or options.storage, other, recipe)


def run_search(session: Session, recipe: Recipe, options: RunOptions) -> SearchOutcome:
    """Create or resume the recipe's study and bring it to the requested number of trials.

    Raises:
        StudyError: the study belongs to another recipe, model or data, or another process is
            writing it.
        RunError: the dense model or every candidate could not be scored, or the database failed.
    """
    (outcome,) = run_searches(session, [recipe], options)
    return outcome


def run_searches(
    session: Session,
    recipes: Sequence[Recipe],
    options: RunOptions,
) -> list[SearchOutcome]:
    """Search several recipes at once with one engine, which scores their candidates together.

    Call `check_grid` before the session is opened.

    Args:
        session: loaded model, objective and engine.
        recipes: recipes with the model and objective of `session`.
        options: how the recipes are run.

    Raises:
        StudyError, RunError: see `run_search`.
    """
    start = time.perf_counter()
    # How many trials each study shall have.
    spaces = [session.space_of(recipe.search) for recipe in recipes]
    totals = [
        trials_of(recipe, space, options) for recipe, space in zip(recipes, spaces, strict=True)
    ]
    for recipe, total in zip(recipes, totals, strict=True):
        if total > options.trials:
            events.tell(
                events.StageProgress(
                    f"{recipe.search.sampler} needs {total} trials here, so it gets them"
                )
            )
    storage = persistence.open_storage(options.storage, create=True)
    names = [options.study or study_name(recipe) for recipe in recipes]
    # Complete studies that another process is writing are only reported.
    complete: set[str] = set()
    with ExitStack() as held:
        # Become the only writer of each study.
        for name, total in zip(names, totals, strict=True):
            held.enter_context(persistence.database_failures(name, storage))
            try:
                held.enter_context(persistence.sole_writer(storage, name))
            except StudyBusyError:
                if not persistence.is_complete(storage, name, total):
                    raise
                complete.add(name)
        for recipe, space in zip(recipes, spaces, strict=True):
            refuse_other_model(session, recipe, space, storage, options)
        # All studies are opened before any work, so that a refusal costs nothing.
        opened = []
        for recipe, name in zip(recipes, names, strict=True):
            opened.append(open_study(session, recipe, storage, name))
        # The dense model is what every candidate is compared with.
        events.tell(events.StageProgress("scoring the dense model"))
        dense = require(*session.engine.evaluate_now([LayerSubset.of(session.loaded.n_layers)]))
        prepared, left = [], []
        for recipe, study, space, total in zip(recipes, opened, spaces, totals, strict=True):
            ready = PreparedStudy.of(session, recipe, study, space, dense, options)
            prepared.append(ready)
            if study.study_name not in complete:
                left.append((ready, total))
        for ready, total in left:
            places.remember_places(ready.study, ready.recipe)
            # A search that scores partial subsets first, such as greedy, needs trials for them too.
            search = ready.recipe.search
            candidates = ready.space.size
            most = max(candidates, trials_needed(search.sampler, search.start, ready.space).whole)
            if most < total:
                there = f"there are only {candidates:,} candidates"
                if candidates == 1:
                    there = "there is only 1 candidate"
                events.tell(
                    events.Message(
                        f"{there}, fewer than {total:,} trials: the search ends when "
                        f"{noun_for(candidates, 'it is', 'all are')} scored"
                    )
                )
            ready.study.set_user_attr(persistence.TRIALS_ATTR, min(total, most))
            if options.track:
                events.tell(study_opened(session, ready))
        chunks = len(session.objective.chunks)
        if chunks == 1 and any(ready.recipe.objective.race for ready, _ in left):
            events.tell(
                events.Message(
                    "a race has nothing to save here: all data are one chunk, and a candidate "
                    "drops out between chunks; give more `tokens` or a larger `limit`"
                )
            )
        # Search, then collect the outcomes in the order of the recipes.
        searched = iter(_run_to_end(_search_all(session, left)))
        decided = []
        for ready in prepared:
            if ready.study.study_name in complete:
                decided.append(selection.recommendation_of(ready.study))
            else:
                decided.append(decide(ready, session, options))
        for ready, _ in left:
            ready.write_notes()
        nothing = SearchResult(0, 0, 0, 0)
        outcomes = []
        for ready, recommendation in zip(prepared, decided, strict=True):
            result = nothing if ready.study.study_name in complete else next(searched)
            outcomes.append(outcome_of(ready, session, dense, result, start, recommendation))
            events.tell(study_finished(outcomes[-1]))
        return outcomes


def trials_of(recipe: Recipe, space: Space, options: RunOptions) -> int:
    """Return the number of trials that a search shall have.

    It is the requested number. Without a request it is the default, or what the sampler needs if
    that is more.

    Raises:
        InputError: the requested number is too small for a result.
    """
    needed = trials_needed(recipe.search.sampler, recipe.search.start, space)
    if "trials" not in options.model_fields_set:
        return max(options.trials, needed.whole)
    if options.trials < needed.first:
        chosen = f"`sampler` {recipe.search.sampler}"
        if recipe.search.start != "none":
            chosen += f" `ranking` {recipe.search.start}"
        raise InputError(
            f"`trials` {options.trials} would give no result: {chosen} {needed.reason}, "
            f"which takes {needed.first} trials here until the first result "
            f"and {needed.whole} in all: give `trials` {needed.whole}, or leave `trials` out"
        )
    return options.trials


def _after_generation(ready: PreparedStudy, check: DistinctionCheck) -> None:
    """Do what follows each batch of trials."""
    ready.noter.now_and_then()
    check.after_generation()


async def _search_all(
    session: Session, prepared: Sequence[tuple[PreparedStudy, int]]
) -> list[SearchResult]:
    """Search all prepared studies concurrently."""
    searches = []
    for ready, total in prepared:
        check = DistinctionCheck(ready, session)
        searches.append(
            search(
                ready.study,
                ready.sampler,
                session.engine,
                ready.scalarizer,
                total,
                ready.recipe.objective.race,
                partial(_after_generation, ready, check),
            )
        )
    return await asyncio.gather(*searches)


def _run_to_end(searching: Coroutine[Any, Any, Result]) -> Result:
    """Run searches in a new event loop.

    If this thread has a running loop already, as in a notebook, the new loop runs in another
    thread.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_until_stopped(searching))
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, asyncio.run, searching).result()


async def _until_stopped(searching: Coroutine[Any, Any, Result]) -> Result:
    """Run searches until they are done or a signal cancels them.

    Raises:
        StopRequested: a signal cancelled them.
    """
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(searching)

    def wake() -> None:
        loop.call_soon_threadsafe(task.cancel)

    with stopping.waking(wake):
        try:
            return await task
        except asyncio.CancelledError:
            stopping.check()
            raise
