"""What a study knows from another study of the same model, read once and stored in the study.

So a resumed study needs no other study, and continues with the same trials.
"""

from typing import TypedDict

import numpy as np

from prunesearch.algorithms.warm_start import FEWEST, Effects, StoredEffects, WarmStart, estimate
from prunesearch.candidate import LayerSubset
from prunesearch.config.recipe import Recipe
from prunesearch.errors import StudyError
from prunesearch.space import SearchSpace
from prunesearch.studies.study_data import StudyData, read_study
from prunesearch.units import noun_for


class StoredWarmStart(TypedDict):
    """Prior knowledge as a study stores it.

    Attributes:
        study: name of the study that it comes from.
        trials: number of trials that it was estimated from.
        effects: the estimated effects.
    """

    study: str
    trials: int
    effects: StoredEffects


def check_warm_start(url: str, name: str, recipe: Recipe) -> None:
    """Refuse a study that cannot inform a search, as far as this is known without the model.

    Args:
        url: URL of the database of the other study.
        name: name of the other study.
        recipe: recipe of the search.

    Raises:
        UnknownNameError: the other study does not exist.
        StudyError: see `read_warm_start`.
    """
    _check(read_study(url, name), recipe)


def read_warm_start(
    url: str, name: str, recipe: Recipe, space: SearchSpace, content: str
) -> StoredWarmStart:
    """Estimate what another study knows.

    Args:
        url: URL of the database of the other study.
        name: name of the other study.
        recipe: recipe of the search.
        space: space of the search.
        content: fingerprint of the search's model.

    Raises:
        UnknownNameError: the other study does not exist.
        StudyError: the study is of another model or other units, or has too few trials.
    """
    data = read_study(url, name)
    _check(data, recipe)
    if data.model_content != content:
        raise StudyError(
            f"`warm_start` {name} searched another model ({data.model_name}, content "
            f"{data.model_content[:12]}, this is {content[:12]}): give a study of the same model"
        )
    trials = data.complete()
    X_ND = np.zeros((len(trials), space.n_units), dtype=np.bool_)
    losses = []
    for X_D, trial in zip(X_ND, trials, strict=True):
        candidate = LayerSubset.parse(trial.dropped, space.n_layers)
        X_D[list(space.units_of(candidate))] = True
        losses.append(data.losses(trial)[0])
    effects = estimate(X_ND, np.array(losses))
    return {"study": name, "trials": len(trials), "effects": effects.stored()}


def of_stored(stored: StoredWarmStart) -> WarmStart:
    """Return the prior knowledge that a study has stored."""
    return WarmStart.of(Effects.of_stored(stored["effects"]))


def _check(data: StudyData, recipe: Recipe) -> None:
    """Refuse a study of other units, or with too few trials.

    Raises:
        StudyError: see above.
    """
    theirs, ours = data.recipe.search, recipe.search
    if theirs.narrows:
        raise StudyError(
            f"`warm_start` {data.name} searched widths: give a study that drops layers"
        )
    if (theirs.units, theirs.keep_pattern) != (ours.units, ours.keep_pattern):
        raise StudyError(
            f"`warm_start` {data.name} searched {_units(data.recipe)}, and this search drops "
            f"{_units(recipe)}: give a study of the same units"
        )
    count = len(data.complete())
    if count < FEWEST:
        raise StudyError(
            f"`warm_start` {data.name} has {count} {noun_for(count, 'finished trial')}: it takes "
            f"{FEWEST} to learn from it"
        )


def _units(recipe: Recipe) -> str:
    """Return what a search drops, in words."""
    if recipe.search.keep_pattern:
        return "periods of blocks"
    return recipe.search.units
