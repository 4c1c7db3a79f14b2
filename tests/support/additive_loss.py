"""A loss that is a sum over dropped blocks, and a study that minimises it."""

from collections.abc import Callable

import numpy as np
import optuna

from prunesearch.candidate import LayerSubset
from prunesearch.samplers import PSOSampler, SubsetSampler, WOASampler
from prunesearch.space import SearchSpace

SPACE = SearchSpace(12, 4, frozenset({0}))
COST = np.random.default_rng(1).random(12)


def loss(candidate: LayerSubset) -> float:
    pairs = sum(b - a == 1 for a, b in zip(candidate.dropped, candidate.dropped[1:], strict=False))
    return float(COST[list(candidate.dropped)].sum() - 0.2 * pairs)


def drive(
    study: optuna.Study,
    sampler: PSOSampler | WOASampler | SubsetSampler,
    trials: int,
    value: Callable[[LayerSubset], float] = loss,
) -> list[tuple[str, float | None]]:
    for _ in range(trials - len(study.trials)):
        proposal = sampler.ask(study)
        study.tell(proposal.number, value(proposal.candidate))
    return [(t.user_attrs["dropped"], t.value) for t in study.trials]
