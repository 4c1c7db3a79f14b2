"""Searches the studies of a benchmark, in one or several processes.

A study has one writer. A process that finds a study busy goes on with the next one, so any number
of processes may be started, now or later, and a benchmark that was interrupted continues.
"""

import multiprocessing
import time
from collections.abc import Sequence
from typing import Protocol

import optuna
import torch

from prunesearch import events
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import StudyBusyError, StudyError
from prunesearch.pipeline.searches import run_search
from prunesearch.pipeline.session import Session, open_session
from prunesearch.studies import persistence

_WAIT_SECONDS = 2.0  # between two looks at studies that other processes search


class Searched(Protocol):
    """One study. All studies of a benchmark have the same storage."""

    @property
    def name(self) -> str:
        """Name of the study."""
        ...

    @property
    def trials(self) -> int:
        """Number of trials that the study shall have."""
        ...

    @property
    def recipe(self) -> Recipe:
        """Recipe of the study."""
        ...

    @property
    def options(self) -> RunOptions:
        """How the study is run, with its name and its number of trials."""
        ...


def run_all(searches: Sequence[Searched], workers: int) -> None:
    """Bring all studies to their number of trials, and return when they have them."""
    if not searches or not left(searches):
        return
    if workers == 1:
        work(searches)
    else:
        context = multiprocessing.get_context("spawn")
        processes = []
        for number in range(workers):
            # Each process begins with other studies.
            turned = [*searches[number:], *searches[:number]]
            processes.append(context.Process(target=work, args=(turned,)))
            processes[-1].start()
        for process in processes:
            process.join()
    # Studies may be under way in processes that somebody else has started.
    while _busy(left(searches)):
        time.sleep(_WAIT_SECONDS)
    # One of these may have been ended. A small space has fewer candidates than trials.
    work(searches)


def left(searches: Sequence[Searched]) -> list[Searched]:
    """Return the studies that do not have all their trials."""
    storage = persistence.open_storage(searches[0].options.storage, create=True)
    found = []
    for search in searches:
        try:
            complete = persistence.is_complete(storage, search.name, search.trials)
        except StudyError:
            complete = False
        if not complete:
            found.append(search)
    return found


def _busy(searches: Sequence[Searched]) -> bool:
    """Return whether another process is searching one of the studies."""
    if not searches:
        return False
    storage = persistence.open_storage(searches[0].options.storage, create=True)
    return any(persistence.writer_of(storage, search.name) is not None for search in searches)


def work(searches: Sequence[Searched]) -> None:
    """Search the studies that no other process is searching, one after the other."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    todo = left(searches)
    if not todo:
        return
    for alike in _by_session(todo):
        # Another process may have completed them meanwhile.
        if not left(alike):
            continue
        with open_session(alike[0].recipe, alike[0].options) as session:
            for search in alike:
                run_one(session, search)


def _by_session(searches: Sequence[Searched]) -> list[list[Searched]]:
    """Return the studies in groups of one model, one objective and the same data."""
    groups: dict[str, list[Searched]] = {}
    for search in searches:
        recipe = search.recipe
        sections = (recipe.model, recipe.objective, recipe.data)
        key = " ".join(section.model_dump_json() for section in sections)
        groups.setdefault(key, []).append(search)
    return list(groups.values())


def run_one(session: Session, search: Searched) -> None:
    """Search one study, unless it is complete or another process is searching it."""
    if not left([search]):
        return
    start = time.perf_counter()
    try:
        run_search(session, search.recipe, search.options)
    except StudyBusyError:
        return
    seconds = time.perf_counter() - start
    events.tell(events.StageProgress(f"{search.name}: {seconds:.0f} s"))
