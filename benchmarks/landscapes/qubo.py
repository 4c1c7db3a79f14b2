"""Dense random pairs: quadratic unconstrained binary optimization, with a fixed number of units."""

import numpy as np

from benchmarks.landscapes.landscape import Landscape, linear_and_pairs
from prunesearch.algorithms.operators import Mask, Real


def qubo(n: int, k: int, seed: int) -> Landscape:
    """Return f(x) = sum_i c_i x_i + sum_{i<j} W_ij x_i x_j, with c_i ~ N(0, 1) and
    W_ij ~ N(0, 2 / k): pairs at any distance matter as much as single units.
    """
    rng = np.random.default_rng(5000 + seed)
    cost_D = rng.normal(size=n)
    pair_DD = np.triu(rng.normal(size=(n, n)) * np.sqrt(2 / k), 1)
    pair_DD = pair_DD + pair_DD.T

    def loss(X_MD: Mask) -> Real:
        return linear_and_pairs(X_MD, cost_D, pair_DD)

    return Landscape(f"qubo{n}-k{k}", n, k, k, loss)
