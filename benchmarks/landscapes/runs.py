"""A landscape where runs of dropped layers decide: the hidden state jumps over each of them."""

import numpy as np

from benchmarks.landscapes.landscape import Landscape
from prunesearch.algorithms.operators import Mask, Real

_WIDTH = 24  # dimensions of the hidden state
_CUT = 0.6  # cost of each run


def runs(n: int, k: int, seed: int) -> Landscape:
    """Return a landscape of runs.

    The hidden state walks, h_{i+1} = h_i + r_i v_i / sqrt(24), with a velocity v that changes
    slowly and a speed r that is larger at both ends. A run of dropped layers i to j - 1 skips the
    distance from h_i to h_j:

        f(x) = sum over runs (.6 + ||h_j - h_i||)
    """
    rng = np.random.default_rng(2000 + seed)
    ends_D = np.abs(np.linspace(-1, 1, n)) ** 2
    speed_D = np.exp(rng.normal(0, 0.35, n)) * (0.4 + 1.6 * ends_D)
    velocity = rng.normal(size=_WIDTH)
    states = [np.zeros(_WIDTH)]
    for i in range(n):
        velocity = 0.75 * velocity + 0.66 * rng.normal(size=_WIDTH)
        states.append(states[-1] + speed_D[i] * velocity / np.sqrt(_WIDTH))
    state_EH = np.array(states)
    distance_EE = np.linalg.norm(state_EH[:, None] - state_EH[None], axis=2)

    def loss(X_MD: Mask) -> Real:
        return np.array([_skipped(X_D, distance_EE) for X_D in X_MD])

    rankings = {"good": distance_EE[np.arange(n), np.arange(1, n + 1)] + 0.01}
    return Landscape(f"runs{n}-k{k}", n, k, k, loss, rankings=rankings)


def _skipped(X_D: Mask, distance_EE: Real) -> float:
    """Return the cost of the runs of one subset."""
    # A run starts where a dropped layer follows a kept one, and ends where a kept one follows.
    edges = np.diff(np.concatenate([[False], X_D, [False]]).astype(np.int8))
    total = 0.0
    for start, end in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
        total += _CUT + float(distance_EE[start, end])
    return total
