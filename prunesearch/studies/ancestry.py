"""The ancestry of a candidate: the trials that it was derived from, one after the other.

A trial that stores its parents names them. For the others, the parents are the trials that a move
of the algorithm starts from (`algorithms.registry.AlgorithmEntry.origins`), as they were when the
generation was proposed. Of several parents, the closest one is followed: the one that drops the
most nearly equal units.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunesearch.algorithms.registry import REGISTRY, SINGLE, AlgorithmEntry
from prunesearch.studies.study_data import StudyData, TrialData

STORED = "parent"
"""Origin of a trial that names its parents."""
_ELITE = 2
"""The elite has as many candidates as this many generations."""


@dataclass(frozen=True)
class Ancestor:
    """A trial in an ancestry.

    Attributes:
        trial: the trial.
        origin: what the trial before it in the ancestry was to the move: one of
            `algorithms.registry.Origin`, or `STORED`. Empty for the first trial.
        added: units that it drops, or drops more of, than the trial before it.
        restored: units that it keeps, or keeps more of, than the trial before it.
    """

    trial: TrialData
    origin: str
    added: tuple[str, ...]
    restored: tuple[str, ...]


@dataclass(frozen=True)
class _Known:
    """The trials of a study that may be ancestors.

    Attributes:
        study: the study.
        trials: its trials whose loss is known.
        share_TU: how much each trial drops of each unit.
        loss_T: loss of each trial.
        full_T: whether a trial is a finished one, and no partial subset.
    """

    study: StudyData
    trials: tuple[TrialData, ...]
    share_TU: NDArray[np.float64]
    loss_T: NDArray[np.float64]
    full_T: NDArray[np.bool_]

    @property
    def number_T(self) -> NDArray[np.intp]:
        """Number of each trial."""
        return np.array([trial.number for trial in self.trials], dtype=np.intp)


def ancestry(study: StudyData, trial: TrialData) -> tuple[Ancestor, ...]:
    """Return the ancestry of a finished trial, the first trial first and the given one last.

    It has one entry if the trial was derived from no other one, or if that is not known.

    Args:
        study: the study.
        trial: a finished trial of the study.
    """
    known = _known(study)
    place = _place(known, trial.number)
    found: list[Ancestor] = []
    # Every parent has a smaller number, so this ends.
    while place is not None:
        parent, origin = _parent(known, place)
        found.append(_ancestor(known, place, parent, origin))
        place = parent
    return tuple(reversed(found))


def _known(study: StudyData) -> _Known:
    """Collect the trials whose loss is known: finished ones, and partial subsets."""
    trials, losses, full = [], [], []
    for trial in study.trials:
        if trial.state == "complete" and trial.is_finite:
            losses.append(study.losses(trial)[0])
        elif trial.state == "pruned" and (value := trial.figure(study.metric)) is not None:
            losses.append(-value if study.more_is_better else value)
        else:
            continue
        trials.append(trial)
        full.append(trial.state == "complete")
    return _Known(
        study,
        tuple(trials),
        study.dropped_shares(trials),
        np.array(losses, dtype=np.float64),
        np.array(full, dtype=np.bool_),
    )


def _place(known: _Known, number: int) -> int | None:
    """Return the position of a trial among the known ones; None if it is not among them."""
    places = np.flatnonzero(known.number_T == number)
    return int(places[0]) if places.size else None


def _parent(known: _Known, place: int) -> tuple[int | None, str]:
    """Return the position of a trial's closest parent, and what it was to the move."""
    # 1. Collect the parents, and what each was.
    trial = known.trials[place]
    origins: dict[int, str] = {}
    for number in trial.parents:
        stored = _place(known, number)
        if stored is not None and stored < place:
            origins[stored] = STORED
    if not trial.parents:
        origins = _by_algorithm(known, place, REGISTRY.get(known.study.sampler))
    if not origins:
        return None, ""

    # 2. Take the closest one. Of equally close ones the better is taken, then the earlier.
    def distance(parent: int) -> tuple[float, float, int]:
        changed = np.abs(known.share_TU[parent] - known.share_TU[place]).sum()
        return float(np.round(changed, 9)), float(known.loss_T[parent]), parent

    closest = min(origins, key=distance)
    return closest, origins[closest]


def _by_algorithm(known: _Known, place: int, entry: AlgorithmEntry) -> dict[int, str]:
    """Return the positions of the trials that an algorithm's move starts from.

    The value of each is the origin. A trial that has several has the one that the entry names
    first.
    """
    found: dict[int, str] = {}
    if "subset" in entry.origins:
        return _subset(known, place)
    # 1. The move was derived from the trials before its generation.
    population = known.study.recipe.search.population or entry.population
    number = known.trials[place].number
    end = number - number % population
    first = population * (_warmup(known, entry, population) + 1)
    if not entry.origins or end < first:
        return {}
    before = np.flatnonzero((known.number_T < end) & known.full_T)
    if not before.size:
        return {}
    # 2. Collect the origins of the entry.
    own = before[known.number_T[before] % population == number % population]
    sources: dict[str, Sequence[int]] = {
        "particle": own[-1:].tolist(),
        "own best": _best(known, own, 1),
        "leader": _leaders(known, before),
        "swarm": before[known.number_T[before] >= end - population].tolist(),
        "elite": _best(known, before, _ELITE * population),
    }
    for origin in entry.origins:
        for parent in sources[origin]:
            found.setdefault(parent, origin)
    return found


def _warmup(known: _Known, entry: AlgorithmEntry, population: int) -> int:
    """Return the number of generations that only measured single units."""
    ranking = known.study.recipe.search.ranking or entry.ranking
    if ranking != SINGLE:
        return 0
    return -(-len(known.study.units) // population)


def _best(known: _Known, places: NDArray[np.intp], count: int) -> list[int]:
    """Return the positions of the best trials among some, the best first."""
    order = np.argsort(known.loss_T[places], kind="stable")
    return [int(place) for place in places[order][:count]]


def _leaders(known: _Known, before: NDArray[np.intp]) -> list[int]:
    """Return the best of the earlier trials; for a Pareto study those that none dominates."""
    ranked = _best(known, before, len(before))
    if not known.study.is_pareto:
        return ranked[:1]
    leaders: list[int] = []
    least = np.inf
    for place in ranked:
        second = known.study.losses(known.trials[place])[1]
        if second < least:
            leaders.append(place)
            least = second
    return leaders


def _subset(known: _Known, place: int) -> dict[int, str]:
    """Return the best of the earlier candidates that lack one of a candidate's units.

    Without such a candidate, return the best earlier candidate of the full size: a step-by-step
    search varies its result once it is complete.
    """
    share_U, earlier_TU = known.share_TU[place], known.share_TU[:place]
    inside_T = (earlier_TU <= share_U).all(1)
    one_less_T = np.isclose(earlier_TU.sum(1), share_U.sum() - 1.0)
    parents = np.flatnonzero(inside_T & one_less_T)
    if parents.size:
        return dict.fromkeys(_best(known, parents, 1), "subset")
    complete = np.flatnonzero(known.full_T[:place])
    return dict.fromkeys(_best(known, complete, 1), "leader")


def _ancestor(known: _Known, place: int, parent: int | None, origin: str) -> Ancestor:
    """Build the entry of a trial with what it changed."""
    if parent is None:
        return Ancestor(known.trials[place], "", (), ())
    change_U = known.share_TU[place] - known.share_TU[parent]
    units = known.study.units
    added = [units[unit] for unit in np.flatnonzero(change_U > 1e-9)]
    restored = [units[unit] for unit in np.flatnonzero(change_U < -1e-9)]
    return Ancestor(known.trials[place], origin, tuple(added), tuple(restored))
