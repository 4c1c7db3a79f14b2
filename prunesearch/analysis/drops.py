"""How often searches drop each unit, and how far two searches agree.

Shapes: T trials, U units.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy import stats

from prunesearch.analysis.intervals import LEVEL, Real

TENTH = 0.1
_LEAST = 5  # number of trials that count as the best or the worst at least


@dataclass(frozen=True)
class Shares:
    """How often some trials drop each unit.

    Attributes:
        trials: number of trials.
        share: for each unit the share of the trials that drop it. For widths, the mean share of it
            that they remove.
        low, high: interval of the share.
    """

    trials: int
    share: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class DropShares:
    """How often a search drops each unit.

    Attributes:
        all: shares among all trials.
        best, worst: shares among the best and the worst tenth.
    """

    all: Shares
    best: Shares
    worst: Shares


def wilson(successes: float, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the interval of a share.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", J. Am.
    Stat. Assoc. 22, 1927: the shares p with |p - successes/trials| <= z * sqrt(p(1 - p)/trials).

    Args:
        successes: number of trials with the property; for mean shares it need not be whole.
        trials: number of trials. Without any, the interval is from 0 to 1.
        level: probability of the interval.
    """
    if trials == 0:
        return 0.0, 1.0
    # The interval is the solution of a quadratic equation in p.
    z = float(stats.norm.ppf(0.5 + level / 2))
    share, spread = successes / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    reach = z * sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def shares_of(dropped_TU: Real) -> Shares:
    """Return how often trials drop each unit.

    Args:
        dropped_TU: how much of each unit each trial drops, from 0 to 1.
    """
    trials, units = dropped_TU.shape
    share_U = dropped_TU.mean(axis=0) if trials else np.zeros(units)
    intervals = [wilson(float(share) * trials, trials) for share in share_U]
    return Shares(
        trials,
        tuple(share_U.tolist()),
        tuple(low for low, _ in intervals),
        tuple(high for _, high in intervals),
    )


def drop_shares(dropped_TU: Real, losses: Sequence[float] | Real) -> DropShares:
    """Return how often all trials, the best tenth and the worst tenth drop each unit.

    A tenth has at least 5 trials, and at most half of all. Of equal trials the earlier is better.

    Args:
        dropped_TU: how much of each unit each trial drops, from 0 to 1.
        losses: losses of the trials; less is better.
    """
    # Of few trials the tenths are larger, but never overlap.
    order = np.argsort(np.asarray(losses, dtype=float), kind="stable")
    count = min(max(_LEAST, round(TENTH * len(order))), max(1, len(order) // 2))
    return DropShares(
        shares_of(dropped_TU),
        shares_of(dropped_TU[order[:count]]),
        shares_of(dropped_TU[order[len(order) - count :]]),
    )


@dataclass(frozen=True)
class Agreement:
    """How far two searches agree.

    Attributes:
        common: units that both best candidates drop, in the order of the model.
        only_first, only_second: units that one of them drops.
        jaccard: number of common units, divided by the number that either drops. 1 if neither
            drops any. P. Jaccard, "The distribution of the flora in the alpine zone", New Phytol.
            11, 1912.
        expected: mean of `jaccard` of two random subsets with as many units; nan if it is not
            defined.
        rank_correlation: correlation of the ranks of the units by how often the best trials of each
            search drop them. C. Spearman, "The proof and measurement of association between two
            things", Am. J. Psychol. 15, 1904. nan if all units of one search have equal shares.
        p: probability of such a correlation without any agreement.
    """

    common: tuple[str, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    jaccard: float
    expected: float
    rank_correlation: float
    p: float


def agreement(
    units: Sequence[str],
    first: Collection[str],
    second: Collection[str],
    share_first: Sequence[float],
    share_second: Sequence[float],
) -> Agreement:
    """Return how far two searches agree.

    Args:
        units: units of the model.
        first, second: units that the best candidate of each search drops.
        share_first, share_second: for each unit its share among the best trials of each search.
    """
    # 1. Compare the best candidates unit by unit.
    common = tuple(unit for unit in units if unit in first and unit in second)
    only_first = tuple(unit for unit in units if unit in first and unit not in second)
    only_second = tuple(unit for unit in units if unit in second and unit not in first)
    either = len(common) + len(only_first) + len(only_second)
    # 2. Compare the ranks of the units. Equal shares have no ranks.
    rank, p = float("nan"), float("nan")
    if len(set(share_first)) > 1 and len(set(share_second)) > 1:
        found = stats.spearmanr(share_first, share_second)
        rank, p = float(found.statistic), float(found.pvalue)
    return Agreement(
        common,
        only_first,
        only_second,
        len(common) / either if either else 1.0,
        expected_jaccard(len(units), len(common) + len(only_first), len(common) + len(only_second)),
        rank,
        p,
    )


def expected_jaccard(units: int, first: int, second: int) -> float:
    """Return the mean Jaccard index of two random subsets of `units` units.

    The number of common units has a hypergeometric distribution.

    Args:
        units: number of units.
        first, second: number of units in each subset.
    """
    if not 0 < first <= units or not 0 < second <= units:
        return float("nan")
    # Sum over all possible numbers of common units.
    common = np.arange(max(0, first + second - units), min(first, second) + 1)
    weights = stats.hypergeom(units, first, second).pmf(common)
    return float(np.sum(weights * common / (first + second - common)))
