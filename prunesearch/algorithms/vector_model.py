"""Surrogates of an objective on real vectors, of its constraints, and of where trials fail."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prunesearch.algorithms.operators import Real
from prunesearch.algorithms.vector_surrogate import AdditiveTrend, VectorSurrogate, squashed

EXACT = 1e-6
"""Smoothing of a surrogate that follows the values."""
_FAILURE_SMOOTHING = 8.0
_MARGIN = 1e-3  # distance to the limit of a constraint, in standard deviations of its values
BROKEN = 1e3
"""Value from which on a position is predicted to violate a constraint, or to fail."""


@dataclass(frozen=True)
class Evaluated:
    """Trials that the surrogates are fitted to.

    Attributes:
        x_ND: their positions, as they were evaluated.
        value_N: values of the objective, to be minimised.
        limit_NC: values of the constraints, feasible if not above 0; C may be 0.
        failed_FD: positions of trials that failed; F may be 0.
    """

    x_ND: Real
    value_N: Real
    limit_NC: Real
    failed_FD: Real


class VectorModel:
    """Surrogates of the objective and the constraints, in coordinates around [-1, 1].

    Args:
        evaluated: trials to fit.
        centre_D, scale_D: a position x has the coordinates (x - centre) * scale.
        waves, smoothing, trend: see `VectorSurrogate`.
        failure: function of positions that is above 0 where trials probably fail.
    """

    def __init__(
        self,
        evaluated: Evaluated,
        centre_D: Real,
        scale_D: Real,
        waves: int,
        smoothing: float,
        trend: AdditiveTrend | None = None,
        failure: Callable[[Real], Real] | None = None,
    ) -> None:
        self.evaluated, self._centre_D, self._scale_D = evaluated, centre_D, scale_D
        self._failure = failure
        u_ND = (evaluated.x_ND - centre_D) * scale_D
        value_N = squashed(evaluated.value_N)
        self.value = VectorSurrogate(u_ND, value_N, waves=waves, smoothing=smoothing, trend=trend)
        # One surrogate per constraint that differs between trials.
        self._limits: list[tuple[VectorSurrogate, float]] = []
        for limit_N in evaluated.limit_NC.T:
            scaled_N = _scaled_limit(limit_N)
            if scaled_N is None:
                continue
            surrogate = VectorSurrogate(u_ND, scaled_N, waves=waves, smoothing=EXACT)
            # Stay a little inside, unless trials reach the limit exactly: that is feasible, and a
            # constraint on whole numbers may have its optimum there.
            self._limits.append((surrogate, -_MARGIN if (limit_N == 0.0).any() else _MARGIN))

    def __call__(self, x_MD: Real) -> Real:
        """Return the predicted values. Those of infeasible positions come after all others."""
        u_MD = (x_MD - self._centre_D) * self._scale_D
        value_M = self.value(u_MD)
        violation_M = np.zeros(len(u_MD))
        for limit, margin in self._limits:
            violation_M += np.maximum(limit(u_MD) + margin, 0.0)
        if self._failure is not None:
            violation_M += np.maximum(self._failure(x_MD), 0.0)
        return np.where(violation_M > 0.0, BROKEN * (1.0 + violation_M), value_M)


def _scaled_limit(limit_N: Real) -> Real | None:
    """Return a constraint of the trials in units of its spread; None if all trials are alike.

    A constraint that is never below 0, such as ``max(0, x - 1)``, does not say how far inside a
    feasible trial is. Such trials count as one standard deviation inside, so that the surrogate
    does not take what is exactly 0 for broken.
    """
    largest = float(np.abs(limit_N).max())
    if largest == 0.0:
        return None
    scaled_N = limit_N / largest  # so that squares do not overflow
    spread = float(scaled_N.std())
    if np.ptp(scaled_N) == 0.0 or spread == 0.0:
        return None
    scaled_N /= spread
    if scaled_N.min() == 0.0:
        scaled_N[scaled_N == 0.0] = -1.0
    return np.asarray(scaled_N)


def failure_of(evaluated: Evaluated) -> Callable[[Real], Real] | None:
    """Return a function that is above 0 where trials probably fail; None if none has failed.

    It is smooth, so that a failure by chance among successes has little influence.
    """
    failed_FD, worked_ND = evaluated.failed_FD, evaluated.x_ND
    if not len(failed_FD):
        return None
    x_ND = np.concatenate([worked_ND, failed_FD])
    label_N = np.append(np.full(len(worked_ND), -1.0), np.ones(len(failed_FD)))
    surrogate = VectorSurrogate(2.0 * x_ND - 1.0, label_N, waves=2, smoothing=_FAILURE_SMOOTHING)
    return lambda x_MD: surrogate(2.0 * x_MD - 1.0)
