"""Landscapes like those of a transformer: costs of layers, and effects of pairs of layers."""

import numpy as np

from benchmarks.landscapes.landscape import Landscape, linear_and_pairs
from benchmarks.landscapes.noise import roughness
from prunesearch.algorithms.operators import Mask, Real

NEAR = {1: 0.28, 2: 0.16, 3: 0.18, 4: 0.15}
"""Standard deviation of the effect of a pair by its distance, about as on SmolLM2-135M."""
SAME_KIND = {0: 0.35, 1: 0.28, 2: 0.20, 3: 0.18, 4: 0.15}
"""The same for two attentions, or two MLPs, by the distance of their blocks. Distance 0: the
attention and the MLP of a block."""
OTHER_KIND = {1: 0.15, 2: 0.10}
"""The same for an attention and an MLP of different blocks."""


def layered(n: int, k: int, seed: int, far: float = 0.0, rough: float = 0.03) -> Landscape:
    """Return a landscape whose log loss is a sum over layers and pairs of layers.

        log f(x) = s(k) (sum_i c_i x_i + sum_{i<j} W_ij x_i x_j) + e(x) - 1
        W_ij = sqrt(3 / k) w_ij,   w_ij ~ N(m_d, sd_d^2),   d = j - i

    with s(k) = min(1, 8 / k), e(x) ~ N(0, rough^2) drawn once per subset, m_1 = -.03 (neighbours
    are cheaper together) and m_d = 0 otherwise.

    Args:
        n: number of layers.
        k: number of dropped layers.
        seed: seed of the landscape.
        far: standard deviation of w_ij for pairs farther apart than four layers.
        rough: standard deviation of e.
    """
    rng = np.random.default_rng(1000 + seed)
    cost_D = layer_costs(n, rng)
    pair_DD = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1, n):
            sd = NEAR.get(j - i, far)
            mean = -0.03 if j - i == 1 else 0.0
            if sd:
                pair_DD[i, j] = rng.normal(mean, sd) * (3.0 / k) ** 0.5
    pair_DD = pair_DD + pair_DD.T

    def loss(X_MD: Mask) -> Real:
        total_M = linear_and_pairs(X_MD, cost_D, pair_DD) * min(1.0, 8 / k)
        return np.asarray(np.exp(total_M + roughness(X_MD, seed, rough) - 1.0))

    good_D = np.exp(cost_D + rng.normal(0, 0.15, n))
    rankings = {
        "good": good_D,
        "anti": 1 / good_D,
        "random": np.exp(rng.normal(size=n)),
    }
    suffix = "-far" if far else ""
    return Landscape(f"layer{n}-k{k}{suffix}", n, k, k, loss, rankings=rankings)


def up_to(n: int, k: int, seed: int) -> Landscape:
    """Return a layered landscape of up to k layers, where each dropped layer is worth something.

    f(x) = log(1 + g(x)) - .06 sum_i x_i, with g the layered landscape of k layers and far = .1.
    """
    base = layered(n, k, seed, far=0.10)

    def loss(X_MD: Mask) -> Real:
        return np.asarray(np.log1p(base.loss(X_MD)) * 1.0 - 0.06 * X_MD.sum(1))

    return Landscape(f"upto{n}-k{k}", n, 1, k, loss)


def sublayers(n: int, k: int, seed: int) -> Landscape:
    """Return a layered landscape of n sublayers: the attention and the MLP of n / 2 blocks.

    The log loss is that of `layered`, without the mean of neighbours. Attention costs .6 of what a
    layer costs. Sublayers of one kind, and those of one block, have stronger effects on each other.
    """
    blocks = n // 2
    rng = np.random.default_rng(7000 + seed)
    cost_D = np.empty(n)
    cost_D[0::2] = 0.6 * layer_costs(blocks, rng)
    cost_D[1::2] = 1.0 * layer_costs(blocks, rng)
    pair_DD = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1, n):
            pair_DD[i, j] = rng.normal(0, _spread_of_sublayers(i, j)) * (3 / k) ** 0.5
    pair_DD = pair_DD + pair_DD.T

    def loss(X_MD: Mask) -> Real:
        total_M = linear_and_pairs(X_MD, cost_D, pair_DD) * min(1.0, 8 / k)
        return np.asarray(np.exp(total_M + roughness(X_MD, seed, 0.03) - 1))

    rankings = {"good": np.exp(cost_D + rng.normal(0, 0.15, n))}
    return Landscape(f"sub{n}-k{k}", n, k, k, loss, rankings=rankings, units="sublayers")


def layer_costs(n: int, rng: np.random.Generator) -> Real:
    """Draw the cost c of each layer, shape (D,), about as measured on small models.

    c(t) = .3 (1 - t) + .15 |t - .55| + N(0, .1^2) at the relative depth t. The first two and the
    last two layers cost much more, and so does one layer in fifteen.
    """
    depth_D = np.arange(n) / (n - 1)
    cost_D = 0.30 * (1 - depth_D) + 0.15 * np.abs(depth_D - 0.55) + rng.normal(0, 0.10, n)
    # The ends of the model.
    cost_D[0] += 2.0
    cost_D[1] += 1.2
    cost_D[-1] += 1.2
    cost_D[-2] += 0.7
    # A few key layers.
    for i in rng.choice(np.arange(2, n - 2), max(1, n // 15), replace=False):
        cost_D[i] += rng.gamma(2, 0.5)
    return cost_D


def _spread_of_sublayers(i: int, j: int) -> float:
    """Return the standard deviation of the effect of two sublayers."""
    distance = j // 2 - i // 2
    if distance == 0 or i % 2 == j % 2:
        return SAME_KIND.get(distance, 0.08)
    return OTHER_KIND.get(distance, 0.05)
