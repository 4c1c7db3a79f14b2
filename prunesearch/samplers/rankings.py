"""Prior rankings of the units: what a user may give, and what a study stores of them."""

from collections.abc import Sequence

import numpy as np

from prunesearch.algorithms.surrogate import Ranking, harm_of
from prunesearch.errors import InputError
from prunesearch.objectives.digests import content_digest
from prunesearch.space import SearchSpace, Space
from prunesearch.units import noun_for


def droppable_units(space: Space) -> tuple[int, ...]:
    """Return the units that can be measured one by one.

    Raises:
        InputError: the space is of widths, whose units cannot be dropped alone.
    """
    if not isinstance(space, SearchSpace):
        raise InputError(
            "the ranking 'single' drops one layer at a time, and a search over widths narrows "
            "them: give scores of the units, or leave the ranking out"
        )
    return space.droppable


def stored_ranking(ranking: Ranking, space: Space) -> str | list[float]:
    """Return a ranking as a study stores it: its numbers, or for widths their digest, because
    there are hundreds.
    """
    harms = [round(harm, 9) for harm in ranking.harm_D.tolist()]
    if isinstance(space, SearchSpace):
        return harms
    return content_digest(harms)


def checked_ranking(ranking: Sequence[float], units: int) -> Ranking:
    """Check a ranking of `units` units.

    Raises:
        InputError: the ranking is not a list of numbers, has another length, or has a number that
            is not finite.
    """
    try:
        harm_D = np.asarray(ranking, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"ranking = {ranking!r:.60}: give a list with the harm of dropping each unit"
        ) from None
    if harm_D.shape != (units,):
        raise InputError(
            f"the ranking has {harm_D.size} {noun_for(harm_D.size, 'number')} for {units} units: "
            f"give one a unit"
        )
    if not np.isfinite(harm_D).all():
        raise InputError(
            "the ranking has a number that is not finite: give the harm of dropping each unit"
        )
    return Ranking(harm_of(harm_D))
