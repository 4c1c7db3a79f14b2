"""Searches the studies of a campaign, in one or several processes, and reads them.

A study has one writer. A process that finds a study busy goes on with the next one, so any number
of processes may be started, now or later, and a campaign that was interrupted continues.
"""

import math
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from benchmarks.rates_parts.campaign import Search
from prunesearch import events
from prunesearch.candidate import LayerSubset
from prunesearch.errors import StudyBusyError, StudyError
from prunesearch.pipeline.searches import run_search
from prunesearch.pipeline.session import Session, open_session
from prunesearch.studies import persistence
from prunesearch.studies.sources import SourceShares, facts_of, replies_of, source_shares

_WAIT_SECONDS = 2.0  # between two looks at studies that other processes search


def run_all(searches: Sequence[Search], workers: int) -> None:
    """Bring all studies to their number of trials, and return when they have them."""
    if not left(searches):
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


def left(searches: Sequence[Search]) -> list[Search]:
    """Return the studies that do not have all their trials."""
    storage = persistence.open_storage(searches[0].campaign.storage, create=True)
    found = []
    for search in searches:
        try:
            complete = persistence.is_complete(storage, search.name, search.trials)
        except StudyError:
            complete = False
        if not complete:
            found.append(search)
    return found


def _busy(searches: Sequence[Search]) -> bool:
    """Return whether another process is searching one of the studies."""
    if not searches:
        return False
    storage = persistence.open_storage(searches[0].campaign.storage, create=True)
    return any(persistence.writer_of(storage, search.name) is not None for search in searches)


def work(searches: Sequence[Search]) -> None:
    """Search the studies that no other process is searching, one after the other."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    todo = left(searches)
    if not todo:
        return
    with open_session(todo[0].recipe, todo[0].campaign.options()) as session:
        for search in todo:
            run_one(session, search)


def run_one(session: Session, search: Search) -> None:
    """Search one study, unless it is complete or another process is searching it."""
    if not left([search]):
        return
    start = time.perf_counter()
    try:
        run_search(session, search.recipe, search.campaign.options(search.name, search.trials))
    except StudyBusyError:
        return
    seconds = time.perf_counter() - start
    events.tell(events.StageProgress(f"{search.name}: {seconds:.0f} s"))


@dataclass(frozen=True)
class Trace:
    """A finished study.

    Attributes:
        search: the study.
        best: best KL after each distinct candidate.
        seconds: time of scoring and of the language model until then. Scores from the cache count
            with the time that they took when they were computed.
        winners: the best candidate's parameters after each distinct candidate.
        trials: number of trials.
        distinct: number of distinct candidates.
        shares: sources of the candidates of a study that a language model searched.
    """

    search: Search
    best: NDArray[np.float64]
    seconds: NDArray[np.float64]
    winners: list[dict[str, int]]
    trials: int
    distinct: int
    shares: SourceShares | None

    def at(self, evaluations: int) -> float:
        """Best KL after a number of evaluations."""
        return float(self.best[min(evaluations, len(self.best)) - 1])

    def after_seconds(self, seconds: float) -> float:
        """Best KL after a time."""
        within = int(np.searchsorted(self.seconds, seconds, side="right"))
        return float(self.best[max(within, 1) - 1])

    def winner(self, session: Session, evaluations: int) -> LayerSubset:
        """Best candidate after a number of evaluations."""
        params = self.winners[min(evaluations, len(self.winners)) - 1]
        return session.space_of(self.search.recipe.search).from_params(params)


def read(search: Search) -> Trace:
    """Read a finished study."""
    storage = persistence.open_storage(search.campaign.storage, create=True)
    study = persistence.load(storage, search.name)
    trials = study.get_trials(deepcopy=False)
    best: list[float] = []
    seconds: list[float] = []
    winners: list[dict[str, int]] = []
    seen: set[str] = set()
    spent = 0.0
    for trial in trials:
        spent += _seconds(trial)
        text = str(trial.user_attrs["dropped"])
        if trial.state != TrialState.COMPLETE or text in seen:
            continue
        seen.add(text)
        value = float((trial.values or [float("inf")])[0])
        if not best or value < best[-1]:
            best.append(value)
            winners.append(dict(trial.params))
        else:
            best.append(best[-1])
            winners.append(winners[-1])
        seconds.append(spent)
    return Trace(
        search,
        np.array(best),
        np.array(seconds),
        winners,
        len(trials),
        len(seen),
        source_shares(trials),
    )


def candidates_and_values(search: Search) -> list[tuple[str, float]]:
    """Return the candidate and the value of each trial, in order."""
    storage = persistence.open_storage(search.campaign.storage, create=True)
    found = []
    for trial in persistence.load(storage, search.name).get_trials(deepcopy=False):
        found.append((str(trial.user_attrs["dropped"]), float((trial.values or [math.nan])[0])))
    return found


def _seconds(trial: FrozenTrial) -> float:
    """Return the time of a trial's scoring, and of the replies that it needed."""
    spent = float(trial.user_attrs.get("saved_seconds", trial.user_attrs.get("seconds", 0.0)))
    if facts_of(trial) is not None:
        spent += replies_of(trial).seconds
    return spent
