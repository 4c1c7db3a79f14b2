"""How often units are dropped, and how far searches agree."""

import math

import numpy as np
import pytest
from scipy import stats

from prunesearch.analysis.drops import agreement, drop_shares, expected_jaccard, shares_of, wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (3, 10), (50, 50), (1, 2000)])
def test_wilsons_interval_is_scipys(successes: int, trials: int) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_without_trials_nothing_is_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert shares_of(np.zeros((0, 2))).share == (0.0, 0.0)


def test_shares_of_the_best_and_the_worst_tenth() -> None:
    # Trial t drops unit 0 if t is even, and unit 1 if it is among the first half.
    dropped = np.array([[t % 2 == 0, t < 50] for t in range(100)], dtype=float)
    found = drop_shares(dropped, np.arange(100.0))
    assert found.all.share == (0.5, 0.5) and found.all.trials == 100
    assert found.best.share == (0.5, 1.0) and found.best.trials == 10
    assert found.worst.share == (0.5, 0.0)
    assert found.best.low[1] == pytest.approx(wilson(10, 10)[0])
    # Few trials: the tenth has five, but not more than half.
    assert drop_shares(dropped[:20], np.arange(20.0)).best.trials == 5
    assert drop_shares(dropped[:4], np.arange(4.0)).worst.trials == 2
    assert drop_shares(dropped[:1], [0.5]).best.trials == 1


def test_agreement_of_two_searches() -> None:
    units = ("0", "1", "2", "3")
    found = agreement(units, {"1", "2"}, {"2", "3"}, (0.0, 0.5, 0.9, 0.6), (0.1, 0.2, 0.8, 0.9))
    assert (found.common, found.only_first, found.only_second) == (("2",), ("1",), ("3",))
    assert found.jaccard == pytest.approx(1 / 3)
    # Ranks 1, 2, 4, 3 and 1, 2, 3, 4: 1 - 6 * 2 / (4 * 15).
    assert found.rank_correlation == pytest.approx(0.8)
    # Two random pairs of four share 0, 1 or 2 units with probabilities 1/6, 4/6 and 1/6.
    assert found.expected == pytest.approx(4 / 6 / 3 + 1 / 6)
    flat = agreement(units, set(), set(), (0.5,) * 4, (0.1, 0.2, 0.3, 0.4))
    assert flat.jaccard == 1.0 and math.isnan(flat.rank_correlation)
    assert math.isnan(expected_jaccard(4, 0, 2))
