"""Paired tests."""

import numpy as np
import pytest
from scipy import stats

from prunesearch.analysis.paired import (
    equal_candidates,
    holm,
    is_binary,
    mcnemar,
    paired_test,
)

RNG = np.random.default_rng(5)


def test_few_documents_are_tested_exactly() -> None:
    first, second = [1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 3.5, 6.0]
    found = paired_test(first, second)
    expected = stats.ttest_rel(second, first)
    interval = expected.confidence_interval()
    assert found.difference == pytest.approx(1.375)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_t == pytest.approx(expected.pvalue)
    # All differences are positive: 2 of 16 flips are as extreme.
    assert found.p == 2 / 16 and found.exact and found.n == 4


def test_many_documents_agree_with_scipy() -> None:
    first = RNG.normal(size=200)
    second = first + 0.02 + 0.2 * RNG.normal(size=200)
    found = paired_test(first, second)
    assert found.p_t == pytest.approx(stats.ttest_rel(second, first).pvalue)
    assert found.p == pytest.approx(found.p_t, abs=0.02) and not found.exact
    assert paired_test(second, first).difference == pytest.approx(-found.difference)


def test_a_clear_difference_has_the_smallest_probability() -> None:
    first = RNG.normal(size=50)
    found = paired_test(first, first + 1 + 0.1 * RNG.normal(size=50))
    assert found.p == 1 / 10_000 and found.p_t < 1e-20


def test_equal_models_do_not_differ() -> None:
    found = paired_test([1.0, 2.0], [1.0, 2.0])
    assert (found.difference, found.p, found.p_t) == (0.0, 1.0, 1.0)
    assert paired_test([1.0, 2.0], [2.0, 3.0]).p == 0.5


def test_documents_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 3 documents"):
        paired_test([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="at least two"):
        paired_test([1.0], [1.0])


def test_holms_correction_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.9, 0.6]) == (1.0, 1.0) and holm([]) == ()


def test_mcnemars_test_counts_what_one_got_right() -> None:
    first, second = [1, 1, 1, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 1, 0, 1]
    found = mcnemar(first, second)
    # Of 6 documents, 5 or more or 1 or fewer: 2 * (1 + 6) / 64.
    assert (found.only_first, found.only_second) == (5, 1) and found.p == pytest.approx(14 / 64)
    assert mcnemar([1, 0], [1, 0]).p == 1.0
    with pytest.raises(ValueError, match="0 and 1"):
        mcnemar([0.5, 1.0], [1.0, 1.0])
    assert is_binary([0.0, 1.0]) and not is_binary([0.5])


def test_candidates_that_differ_by_noise_alone_are_equal() -> None:
    """Cochran's Q of right and wrong answers: rejected as often as the level says."""
    rng = np.random.default_rng(0)
    probabilities = []
    for _ in range(200):
        hardness = rng.uniform(0.1, 0.9, 150)
        probabilities.append(equal_candidates((rng.random((24, 150)) < hardness).astype(float)))
    assert 0.01 < np.mean(np.array(probabilities) < 0.05) < 0.1
    better = rng.random((24, 150)) < np.linspace(0.3, 0.6, 24)[:, None]
    assert equal_candidates(better.astype(float)) < 1e-4
    assert equal_candidates(np.ones((3, 5))) == 1.0


def test_two_candidates_have_the_test_of_mcnemar() -> None:
    """Without a correction: (b - c)^2 / (b + c)."""
    losses = np.array([[1, 1, 1, 1, 1, 0, 0, 1], [0, 0, 0, 0, 1, 0, 1, 1]], dtype=float)
    assert equal_candidates(losses) == pytest.approx(float(stats.chi2.sf((4 - 1) ** 2 / 5, 1)))
