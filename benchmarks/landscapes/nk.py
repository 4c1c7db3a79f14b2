"""NK landscapes (S. A. Kauffman and S. Levin, "Towards a general theory of adaptive walks on rugged
landscapes", J. Theor. Biol. 128, 1987).
"""

from typing import Literal

import numpy as np

from benchmarks.landscapes.landscape import Landscape
from prunesearch.algorithms.operators import Mask, Real

Neighbours = Literal["adj", "rand"]


def nk(n: int, k: int, links: int, seed: int, neighbours: Neighbours) -> Landscape:
    """Return an NK landscape: the effect of each unit depends on K others in an arbitrary way.

    f(x) = 1/n sum_i T_i[x_i, x_{i1}, ..., x_{iK}], with T uniform in [0, 1].

    Args:
        n: number of units.
        k: number of chosen units.
        links: K, the number of other units that a unit depends on.
        seed: seed of the landscape.
        neighbours: ``adj`` if a unit depends on the next K, ``rand`` if on K random ones.
    """
    rng = np.random.default_rng(3000 + seed)
    near_DK = np.empty((n, links + 1), dtype=np.intp)
    for i in range(n):
        if neighbours == "adj":
            near_DK[i] = np.arange(i, i + links + 1) % n
        else:
            others = rng.choice(np.delete(np.arange(n), i), links, replace=False)
            near_DK[i] = [i, *others]
    table_DT = rng.random((n, 2 ** (links + 1)))
    bit_K = 2 ** np.arange(links + 1)

    def loss(X_MD: Mask) -> Real:
        # The states of a unit and its neighbours are the number of an entry of its table.
        entry_MD = (X_MD[:, near_DK].astype(int) * bit_K).sum(2)
        return np.asarray(table_DT[np.arange(n)[None], entry_MD].mean(1))

    return Landscape(f"nk{n}-k{k}-{neighbours}{links}", n, k, k, loss)
