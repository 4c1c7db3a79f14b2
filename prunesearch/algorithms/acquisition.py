"""Which proposal is worth an evaluation: bounds on the losses of candidates, and a local search for
the lowest bound.

The bound is the lower confidence bound of the surrogate. The local search starts from the best of a
particle's moves and takes the best exchange of one unit again and again, while the bound falls.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from prunesearch.algorithms import pareto
from prunesearch.algorithms.constraints import Constraints
from prunesearch.algorithms.gaussian_process import GaussianProcess
from prunesearch.algorithms.operators import Counts, Mask, Real

_SHORTLIST = 8  # exchanges of a scan whose bounds are computed exactly
_LONGLIST = 64  # exchanges among which they are the best new ones
_DIGITS = 9  # decimals of a bound, so that equal ones are equal on any machine


@dataclass(frozen=True)
class ParticleGoal:
    """Goal of a particle: the subsets that it chooses among, and its weights of the objectives."""

    constraints: Constraints
    weight_O: Real


class SurrogateEnsemble:
    """One surrogate per objective, and the value of a proposal under them.

    Args:
        surrogates: the surrogate of each objective.
        exploration: number of standard deviations that are subtracted from the mean.
    """

    def __init__(self, surrogates: Sequence[GaussianProcess], exploration: float) -> None:
        self._surrogates, self._exploration = surrogates, exploration

    @property
    def correlation(self) -> float:
        """Smallest leave-one-out correlation of the surrogates."""
        return min(surrogate.correlation for surrogate in self._surrogates)

    def lower_confidence_bound(self, X_MD: Mask, weight_O: Real) -> Real:
        """Return lower confidence bounds; smaller is better. For several objectives, return their
        Chebyshev sum.
        """
        bounds = []
        for surrogate in self._surrogates:
            mean_M, sd_M = surrogate.predict(X_MD)
            bounds.append(mean_M - self._exploration * sd_M)
        return _combined(np.stack(bounds, 1), weight_O)

    def exchange_bounds(self, X_D: Mask, out_R: Counts, into_S: Counts, weight_O: Real) -> Real:
        """Return approximate bounds of the candidates that exchange one unit of `X_D`.

        Args:
            X_D: the candidate.
            out_R: units that may leave it.
            into_S: units that may join it.
            weight_O: weights of the objectives.

        Returns:
            The bounds, shape (R + 1, S + 1). In the last row no unit leaves; in the last column
            none joins.
        """
        bounds = []
        for surrogate in self._surrogates:
            mean_RS, sd_RS = surrogate.predict_exchanges(X_D, out_R, into_S)
            bounds.append((mean_RS - self._exploration * sd_RS).ravel())
        bound_M = _combined(np.stack(bounds, 1), weight_O)
        return bound_M.reshape(out_R.size + 1, into_S.size + 1)

    def condition_on_pending(self, X_D: Mask) -> None:
        """Condition the surrogates on a subset that is under way."""
        for surrogate in self._surrogates:
            surrogate.condition_on_pending(X_D)


@dataclass(frozen=True)
class Acquisition:
    """The choice of one particle's proposal.

    Attributes:
        model: the surrogates.
        goal: goal of the particle.
        proposals: number of random neighbours where no single units can be exchanged.
        rounds: most exchanges of the local search.
        seen: subsets that are not proposed again.
    """

    model: SurrogateEnsemble
    goal: ParticleGoal
    proposals: int
    rounds: int
    seen: Collection[bytes]

    def select(self, X_MD: Mask, rng: np.random.Generator) -> tuple[Mask, int]:
        """Return the best of the new moves after a local search, and the row that it started
        from.
        """
        # The best of the moves.
        fresh = self._new_among(X_MD) or [0]
        bound_M = self._bounds(X_MD[fresh])
        start = int(np.argmin(bound_M))
        best_D, best = X_MD[fresh[start]], float(bound_M[start])
        # Local search around it, while the surrogate predicts a gain.
        for _ in range(self.rounds):
            around_MD = self._around(best_D, rng)
            if not len(around_MD):
                break
            bound_M = self._bounds(around_MD)
            nearest = int(np.argmin(bound_M))
            if bound_M[nearest] >= best:
                break
            best_D, best = around_MD[nearest], float(bound_M[nearest])
        return np.ascontiguousarray(best_D), fresh[start]

    def _bounds(self, X_MD: Mask) -> Real:
        return self.model.lower_confidence_bound(X_MD, self.goal.weight_O)

    def _around(self, X_D: Mask, rng: np.random.Generator) -> Mask:
        """Return the new neighbours of a candidate that are worth an exact bound.

        They are the best of all exchanges of a unit by approximate bounds, or random ones where no
        single units can be exchanged.
        """
        constraints = self.goal.constraints
        exchangeable = constraints.exchangeable(X_D)
        if exchangeable is None:
            around_MD = constraints.neighbours(X_D, self.proposals, rng)
            return around_MD[self._new_among(around_MD)]
        out_R, into_S = exchangeable
        bound_RS = self.model.exchange_bounds(X_D, out_R, into_S, self.goal.weight_O)
        # Leave out the candidate itself, and sizes that are not allowed.
        size = int(X_D.sum())
        bound_RS[-1, -1] = np.inf
        if size <= constraints.k_min:
            bound_RS[:, -1] = np.inf
        if size >= constraints.k_max:
            bound_RS[-1, :] = np.inf
        # The best exchanges; ties go to the lower index.
        flat_M = bound_RS.ravel()
        best_M = np.argsort(flat_M, kind="stable")[:_LONGLIST]
        best_M = best_M[np.isfinite(flat_M[best_M])]
        leaving_M, joining_M = np.divmod(best_M, into_S.size + 1)
        Y_MD = np.repeat(X_D[None], best_M.size, axis=0)
        left = np.flatnonzero(leaving_M < out_R.size)
        Y_MD[left, out_R[leaving_M[left]]] = False
        joined = np.flatnonzero(joining_M < into_S.size)
        Y_MD[joined, into_S[joining_M[joined]]] = True
        return Y_MD[self._new_among(Y_MD)[:_SHORTLIST]]

    def _new_among(self, X_MD: Mask) -> list[int]:
        """Return the rows that were not proposed before."""
        return [m for m, X_D in enumerate(X_MD) if X_D.tobytes() not in self.seen]


def _combined(bound_MO: Real, weight_O: Real) -> Real:
    """Return one rounded bound for each candidate."""
    if bound_MO.shape[1] == 1:
        return np.round(bound_MO[:, 0], _DIGITS)
    return np.round(pareto.chebyshev(_quantile(bound_MO), weight_O), _DIGITS)


def _quantile(score_MO: Real) -> Real:
    """Return the share of trials that a score beats, by the logistic approximation of the normal
    distribution.
    """
    return np.asarray(1.0 / (1.0 + np.exp(-1.702 * score_MO)))
