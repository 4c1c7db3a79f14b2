"""Which proposal is worth an evaluation: bounds on the losses of candidates, and a local search for
the lowest bound.

The bound is the lower confidence bound of the surrogate. The local search starts from the best of a
particle's moves. Each scan bounds all exchanges of one unit, and takes the best one, or several of
the best at once.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from prunesearch.algorithms import pareto
from prunesearch.algorithms.constraints import Constraints
from prunesearch.algorithms.gaussian_process import GaussianProcess
from prunesearch.algorithms.operators import Counts, Mask, Real

_SHORTLIST = 8  # exchanges of a scan whose bounds are computed exactly
_SCANS = 3  # most scans; more of them lead where the surrogate knows nothing
_LONGLIST = 64  # exchanges among which they are the best new ones
_CHAIN = 6  # most exchanges of one scan that are tried at once
_WORST = 1e300  # larger bounds stand for what is not allowed
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
        rounds: most rounds of the local search. There are at most three scans of all exchanges.
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
        scanned = self.goal.constraints.exchangeable(best_D) is not None
        for _ in range(min(self.rounds, _SCANS) if scanned else self.rounds):
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
        most = min(_LONGLIST, flat_M.size) - 1
        few_M = np.flatnonzero(flat_M <= min(np.partition(flat_M, most)[most], _WORST))
        best_M = few_M[np.argsort(flat_M[few_M], kind="stable")][:_LONGLIST]
        leaving_M, joining_M = np.divmod(best_M, into_S.size + 1)
        # Where no unit leaves or joins, the place is that of no unit.
        out_M, into_M = (
            np.append(out_R, X_D.size)[leaving_M],
            np.append(into_S, X_D.size)[joining_M],
        )
        Y_MD = np.zeros((best_M.size, X_D.size + 1), dtype=np.bool_)
        Y_MD[:, :-1] = X_D
        Y_MD[np.arange(best_M.size), out_M] = False
        Y_MD[np.arange(best_M.size), into_M] = True
        chain_MD = _chained(X_D, out_M, into_M)
        both_MD = np.concatenate([chain_MD, Y_MD[:, :-1]])
        return both_MD[self._new_among(both_MD)[: len(chain_MD) + _SHORTLIST]]

    def _new_among(self, X_MD: Mask) -> list[int]:
        """Return the rows that were not proposed before."""
        return [m for m, X_D in enumerate(X_MD) if X_D.tobytes() not in self.seen]


def _chained(X_D: Mask, out_M: Counts, into_M: Counts) -> Mask:
    """Return what several of the exchanges make of a subset at once: the first two that share no
    unit, then three, and so on.

    Args:
        X_D: the subset.
        out_M, into_M: units that leave and join, the best exchange first; the number of units D
            where none does.
    """
    made, Y_D = [], X_D.copy()
    for out, into in zip(out_M.tolist(), into_M.tolist(), strict=True):
        if max(out, into) < X_D.size and Y_D[out] and not Y_D[into]:
            Y_D = Y_D.copy()
            Y_D[out], Y_D[into] = False, True
            made.append(Y_D)
        if len(made) == _CHAIN:
            break
    return np.array(made[1:], dtype=np.bool_).reshape(-1, X_D.size)


def _combined(bound_MO: Real, weight_O: Real) -> Real:
    """Return one rounded bound for each candidate."""
    if bound_MO.shape[1] == 1:
        return np.round(bound_MO[:, 0], _DIGITS)
    return np.round(pareto.chebyshev(_quantile(bound_MO), weight_O), _DIGITS)


def _quantile(score_MO: Real) -> Real:
    """Return the share of trials that a score beats, by the logistic approximation of the normal
    distribution.
    """
    return np.asarray(expit(1.702 * score_MO))
