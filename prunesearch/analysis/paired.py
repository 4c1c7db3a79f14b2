"""Paired tests: whether two models differ on the same documents.

Losses of the same documents are strongly correlated, so the difference of two means is known far
better than either mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from prunesearch.analysis.intervals import Real, half_width, standard_error

MOST_EXACT = 14
"""Largest number of documents for which all sign flips are tried."""
_FLIPS = 9_999  # random sign flips with more documents; with the data themselves 10,000
_AT_ONCE = 1_000


@dataclass(frozen=True)
class PairedTest:
    """The difference of two models on the same documents.

    Attributes:
        n: number of documents.
        difference: mean of second - first.
        stderr: its standard error.
        low, high: its 95 % interval.
        p: two-sided probability of such a difference if the models were equal, by sign flips.
        p_t: the same by the paired t-test.
        exact: whether all sign flips were tried.
    """

    n: int
    difference: float
    stderr: float
    low: float
    high: float
    p: float
    p_t: float
    exact: bool


def paired_test(first: Sequence[float] | Real, second: Sequence[float] | Real) -> PairedTest:
    """Compare two models on the same documents.

    The interval and `p_t` are those of the paired t-test (Student, "The probable error of a mean",
    Biometrika 6, 1908). `p` is that of a permutation test: if the models were equal, each
    difference could as well have the other sign (R. A. Fisher, "The design of experiments", 1935).
    With more than 14 documents, 9,999 random flips of seed 0 are tried, and p = (1 + number of
    flips that are at least as extreme) / 10,000 (B. Phipson and G. K. Smyth, "Permutation p-values
    should never be zero", Stat. Appl. Genet. Mol. Biol. 9, 2010).

    Args:
        first, second: values of the documents, in the same order.

    Raises:
        ValueError: they are not of equal length, or there are fewer than two documents.
    """
    first_N, second_N = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if len(first_N) != len(second_N):
        raise ValueError(f"{len(first_N)} and {len(second_N)} documents cannot be paired")
    if len(first_N) < 2:
        raise ValueError("a paired test needs at least two documents")
    difference_N = second_N - first_N
    # 1. The interval of the mean difference, by Student's distribution.
    count, mean = len(difference_N), float(difference_N.mean())
    error = standard_error(difference_N)
    reach = half_width(count) * error
    # Equal differences have no spread: the t-test has no value for them.
    p_t = 1.0 if mean == 0 else 0.0
    if error > 0:
        p_t = float(2 * stats.t.sf(abs(mean) / error, count - 1))
    # 2. The permutation test makes no assumption about the distribution.
    p = _sign_flips(difference_N)
    return PairedTest(count, mean, error, mean - reach, mean + reach, p, p_t, count <= MOST_EXACT)


def _sign_flips(difference_N: Real) -> float:
    """Return the share of sign flips whose mean is at least as far from 0."""
    count = len(difference_N)
    # Sums of the same numbers in another order differ by rounding.
    least = abs(float(difference_N.sum())) * (1 - 1e-12)
    if count <= MOST_EXACT:
        # Few documents: try every combination of signs. Bit i of a number is the sign of i.
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float(np.mean(np.abs(signs @ difference_N) >= least))
    # Many documents: draw signs. The data themselves count as one draw.
    rng = np.random.default_rng(0)
    extreme, left = 1, _FLIPS
    while left:
        turn = min(left, _AT_ONCE)
        flips = rng.integers(0, 2, (turn, count), dtype=np.int8)
        sums = difference_N.sum() - 2 * (flips @ difference_N)
        extreme += int(np.count_nonzero(np.abs(sums) >= least))
        left -= turn
    return extreme / (_FLIPS + 1)


def holm(probabilities: Sequence[float]) -> tuple[float, ...]:
    """Correct the probabilities of several comparisons, in their order.

    The chance that any of them is below a level by accident is at most that level. S. Holm, "A
    simple sequentially rejective multiple test procedure", Scand. J. Stat. 6, 1979: the k-th
    smallest of m is multiplied by m - k + 1, and none is smaller than the one before it.
    """
    count = len(probabilities)
    corrected = [0.0] * count
    largest = 0.0
    for rank, place in enumerate(sorted(range(count), key=lambda i: probabilities[i])):
        # The smallest probability is multiplied by the number of tests, the next by one less.
        largest = max(largest, min(1.0, (count - rank) * probabilities[place]))
        corrected[place] = largest
    return tuple(corrected)


def equal_candidates(loss_KD: Real) -> float:
    """Return the probability of such a scatter of the means if all candidates were equal.

    Q = D sum_k (mean of k - mean of all)^2 / v has a chi-squared distribution with K - 1 degrees
    of freedom, where v is the variance over the candidates of the losses of one document, averaged
    over the D documents. For answers that are right or wrong it is the test of W. G. Cochran, "The
    comparison of percentages in matched samples", Biometrika 37, 1950.

    Args:
        loss_KD: losses of at least two candidates on the same documents.
    """
    candidates, documents = loss_KD.shape
    within = float(loss_KD.var(axis=0, ddof=1).mean())
    if within == 0.0:
        return 1.0
    between = float(((loss_KD.mean(1) - loss_KD.mean()) ** 2).sum())
    return float(stats.chi2.sf(documents * between / within, candidates - 1))


@dataclass(frozen=True)
class McNemarTest:
    """The comparison of two models on the same documents, each right or wrong.

    Attributes:
        only_first, only_second: documents that one of the models got right.
        p: two-sided exact probability.
    """

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Sequence[float] | Real, second: Sequence[float] | Real) -> McNemarTest:
    """Compare two models by the documents that only one of them got right.

    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12, 1947; exact by the binomial distribution.

    Args:
        first, second: 1 where a model is right and 0 where it is wrong, in the same order.

    Raises:
        ValueError: another value, or the numbers of documents differ.
    """
    first_N, second_N = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first_N.shape != second_N.shape:
        raise ValueError(f"{len(first_N)} and {len(second_N)} documents cannot be paired")
    if not (is_binary(first_N) and is_binary(second_N)):
        raise ValueError("McNemar's test needs values 0 and 1")
    # Documents on which both are right, or both wrong, decide nothing.
    only_first = int(np.sum((first_N == 1) & (second_N == 0)))
    only_second = int(np.sum((first_N == 0) & (second_N == 1)))
    decided = only_first + only_second
    p = 1.0 if decided == 0 else float(stats.binomtest(only_first, decided).pvalue)
    return McNemarTest(only_first, only_second, p)


def is_binary(values: Sequence[float] | Real) -> bool:
    """Return whether all values are 0 or 1."""
    return bool(np.isin(np.asarray(values, dtype=float), (0.0, 1.0)).all())
