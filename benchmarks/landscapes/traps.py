"""Deceptive traps (K. Deb and D. E. Goldberg, "Analyzing deception in trap functions", FOGA 2,
1993): a group of units is cheap only if all of it is chosen.
"""

import numpy as np

from benchmarks.landscapes.landscape import Landscape
from prunesearch.algorithms.operators import Mask, Real

_WHOLE = 0.02  # loss of a group that is chosen completely


def traps(groups: int, size: int, k: int, seed: int, scattered: bool = False) -> Landscape:
    """Return a landscape of traps.

    f(x) = sum_g (1 + t_g) h(u_g), where u_g units of group g are chosen, t_g is uniform in
    [0, .1], and h(u) = (u / size)^2 if u < size, else .02.

    Args:
        groups, size: number of groups, and of units in each.
        k: number of chosen units.
        seed: seed of the landscape.
        scattered: whether the units of a group lie anywhere instead of side by side.
    """
    n = groups * size
    rng = np.random.default_rng(4000 + seed)
    place_D = np.arange(n)
    if scattered:
        place_D = rng.permutation(n)
    tilt_G = rng.random(groups) * 0.1

    def loss(X_MD: Mask) -> Real:
        chosen_MG = X_MD[:, place_D].reshape(len(X_MD), groups, size).sum(2)
        partly_MG = (chosen_MG / size) ** 2 * (1 + tilt_G) * (chosen_MG < size)
        whole_MG = _WHOLE * (chosen_MG == size) * (1 + tilt_G)
        return np.asarray((partly_MG + whole_MG).sum(1))

    # The best subset consists of the cheapest groups.
    optimum = float(np.sort(_WHOLE * (1 + tilt_G))[: k // size].sum())
    suffix = "-scat" if scattered else ""
    return Landscape(f"trap{groups}x{size}-k{k}{suffix}", n, k, k, loss, optimum=optimum)
