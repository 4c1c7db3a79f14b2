"""A ranking that the first trials of a study measure. Each of them drops a single unit."""

import numpy as np

from prunesearch.algorithms.operators import Mask
from prunesearch.algorithms.surrogate import Ranking, harm_of
from prunesearch.samplers.rankings import droppable_units
from prunesearch.space import Space
from prunesearch.studies.trial_log import ProposalInputs


class MeasuredRanking:
    """The losses of single units, as far as they are measured.

    Args:
        space: search space.
        population: number of trials of a generation.

    Raises:
        InputError: the space is of widths, whose units cannot be dropped alone.
    """

    def __init__(self, space: Space, population: int) -> None:
        self._units = droppable_units(space)
        self._n_units, self._population = space.n_units, population
        self.reset()

    def reset(self) -> None:
        """Forget what was measured in another study."""
        self._loss: dict[int, tuple[int, float]] = {}  # trial -> its only unit, and its loss

    @property
    def generations(self) -> int:
        """Number of generations that measure. The last of them need not be full."""
        return -(-len(self._units) // self._population)

    def unit_of(self, number: int) -> int | None:
        """Return the unit that a trial drops; None if all units come before it."""
        return self._units[number] if number < len(self._units) else None

    def read(self, number: int, X_D: Mask, loss: float) -> None:
        """Take the loss of a trial if it dropped a single unit."""
        if X_D.sum() == 1:
            self._loss[number] = int(np.flatnonzero(X_D)[0]), loss

    def ranking(self, proposal_inputs: ProposalInputs) -> Ranking | None:
        """Return the ranking by the trials that a proposal is derived from; None without any.

        A unit that was not measured counts as the median.
        """
        end = min(proposal_inputs.end, self.generations * self._population)
        loss_D = np.full(self._n_units, np.nan)
        for number, (unit, loss) in self._loss.items():
            if number < end and number not in proposal_inputs.open:
                loss_D[unit] = loss
        if np.isnan(loss_D).all():
            return None
        return Ranking(harm_of(np.where(np.isnan(loss_D), np.nanmedian(loss_D), loss_D)))
