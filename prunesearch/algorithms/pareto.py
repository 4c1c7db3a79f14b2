"""Multi-objective search: the archive of non-dominated trials, crowding distances, and weights for
each particle.

All losses are minimised; `loss_NO` has N trials and O objectives.
"""

import numpy as np

from prunesearch.algorithms.operators import Counts, Real

_AUGMENTED = 0.05  # rho of the augmented Chebyshev sum (ParEGO, eq. 2)


def archive(loss_NO: Real) -> Counts:
    """Return the rows that no other row dominates, in order of the first objective.

    Of equal rows, keep the first.
    """
    order = np.lexsort((np.arange(len(loss_NO)), *loss_NO.T[::-1]))
    kept: list[int] = []
    front_FO = np.empty((0, loss_NO.shape[1]))
    for row in order.tolist():
        # Rows come sorted, so only rows kept before can dominate this one.
        if not (front_FO <= loss_NO[row]).all(axis=1).any():
            kept.append(row)
            front_FO = loss_NO[kept]
    return np.array(kept, dtype=np.intp)


def crowding(loss_NO: Real) -> Real:
    """Return the crowding distance of each row, the size of the box between its neighbours
    (NSGA-II, sec. III-B).

    The distance of the first and the last row is inf.
    """
    distance_N = np.zeros(len(loss_NO))
    for column_N in loss_NO.T:
        # An infinite loss counts as the worst, or best, finite one.
        finite = column_N[np.isfinite(column_N)]
        loss_N = np.zeros_like(column_N)
        if finite.size:
            loss_N = np.clip(column_N, finite.min(), finite.max())
        # Add the distance between the two neighbours in this objective.
        order = np.argsort(column_N, kind="stable")
        span = float(loss_N[order[-1]] - loss_N[order[0]]) or 1.0
        distance_N[order[[0, -1]]] = np.inf
        distance_N[order[1:-1]] += (loss_N[order[2:]] - loss_N[order[:-2]]) / span
    return distance_N


def weights(particle: int, generation: int, population: int, objectives: int) -> Real:
    """Return the objectives' weights for one particle. They are spread evenly and shifted each
    generation.

    For two objectives this is the golden-ratio sequence, which fills [0, 1] evenly wherever it
    stops. For more it is the generalisation to higher dimensions by additive recurrence,
    normalised.
    """
    golden = (5**0.5 - 1.0) / 2.0
    index = generation * population + particle
    if objectives == 1:
        return np.ones(1)
    if objectives == 2:
        first = (0.5 + index * golden) % 1.0
        return np.array([first, 1.0 - first])
    steps = golden ** np.arange(1, objectives + 1)
    raw = -np.log((0.5 + index * steps) % 1.0 + 1e-9)
    return np.asarray(raw / raw.sum())


def scalar(loss_NO: Real, weight_O: Real) -> Real:
    """Return the augmented Chebyshev sum of the objectives' ranks, scaled to [0, 1].

    Ranks make it scale-free.
    """
    rank_NO = np.stack([np.unique(loss_N, return_inverse=True)[1] for loss_N in loss_NO.T], axis=1)
    return chebyshev(rank_NO / np.maximum(rank_NO.max(axis=0), 1), weight_O)


def chebyshev(share_NO: Real, weight_O: Real) -> Real:
    """Return the augmented Chebyshev sum of objectives that are scaled to [0, 1].

    ParEGO, eq. 2.
    """
    part_NO = weight_O * share_NO
    return np.asarray(part_NO.max(axis=1) + _AUGMENTED * part_NO.sum(axis=1))
