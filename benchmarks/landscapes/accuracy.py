"""Accuracy on a sample of documents: what a search sees is noisy, and what counts is not."""

import numpy as np

from benchmarks.landscapes.landscape import Landscape
from benchmarks.landscapes.layered import layered
from benchmarks.landscapes.noise import share_of_documents
from prunesearch.algorithms.operators import Mask, Real

_CHANCE, _RANGE = 0.25, 0.35  # accuracy by guessing, and what the best subsets add to it
_SAMPLE = 4000  # random subsets that set the scale of the landscape


def accuracy(n: int, k: int, documents: int, seed: int, floor: bool = False) -> Landscape:
    """Return a landscape of accuracies, negated.

        p(x) = .25 + .35 / (1 + exp(a (z(x) - b)))
        z(x) = (log g(x) - q_.02) / (q_.5 - q_.02)

    with g the layered landscape with far = .06, and q its quantiles over random subsets. A search
    sees -B / documents with B ~ Binomial(documents, p), drawn once per subset. The true loss is -p.

    Args:
        n: number of layers.
        k: number of dropped layers.
        documents: number of documents that are scored.
        seed: seed of the landscape.
        floor: whether most subsets only guess (a = 6, b = -.15 instead of a = 2.5,
            b = .3).
    """
    base = layered(n, k, seed, far=0.06)
    rng = np.random.default_rng(6000 + seed)
    R_MD = np.zeros((_SAMPLE, n), dtype=np.bool_)
    for R_D in R_MD:
        R_D[rng.choice(n, k, replace=False)] = True
    low, middle = np.quantile(np.log(base.loss(R_MD)), [0.02, 0.5])
    slope, shift = (6.0, -0.15) if floor else (2.5, 0.3)

    def chance(X_MD: Mask) -> Real:
        z_M = (np.log(base.loss(X_MD)) - low) / (middle - low)
        return np.asarray(_CHANCE + _RANGE / (1 + np.exp(slope * (z_M - shift))))

    def seen(X_MD: Mask) -> Real:
        return -share_of_documents(X_MD, chance(X_MD), documents, seed)

    def true(X_MD: Mask) -> Real:
        return -chance(X_MD)

    return Landscape(
        f"acc{documents}-n{n}-k{k}{'-floor' if floor else ''}",
        n,
        k,
        k,
        seen,
        true,
        rankings={"good": base.rankings["good"]},
    )
