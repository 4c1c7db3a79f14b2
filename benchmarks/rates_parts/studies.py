"""Reads the studies of a campaign (see `benchmarks.support.searches` for how they are searched)."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from benchmarks.rates_parts.campaign import Search
from prunesearch.candidate import LayerSubset
from prunesearch.pipeline.session import Session
from prunesearch.studies import persistence
from prunesearch.studies.sources import SourceShares, facts_of, replies_of, source_shares


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
