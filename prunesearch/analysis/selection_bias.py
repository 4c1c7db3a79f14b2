"""How much of a winner's score is luck: the bias of the best of many noisy scores.

A search keeps the candidate whose score on the search data is best. Part of that score is noise of
these data, so the winner does worse on fresh data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy import integrate, stats

from prunesearch.analysis.intervals import NORMAL_REACH, Real, half_width, standard_error


@dataclass(frozen=True)
class SelectionBias:
    """A score on the search data beside the score on fresh data. Less is better.

    Attributes:
        search, fresh: loss on the search data and on fresh data.
        bias: fresh - search. Positive if the search data flatter the candidate.
        stderr: its standard error; nan if one of the scores has none.
        low, high: its interval, by the normal distribution.
    """

    search: float
    fresh: float
    bias: float
    stderr: float
    low: float
    high: float


def selection_bias(
    search: float, search_stderr: float | None, fresh: float, fresh_stderr: float | None
) -> SelectionBias:
    """Compare a loss on the search data with that on fresh data.

    The data are independent, so the variances add. Fresh data may be harder or easier as a whole:
    give losses relative to the dense model's on the same data (KL is such a loss).

    Args:
        search, fresh: losses on both data; less is better.
        search_stderr, fresh_stderr: their standard errors; None if they are not known.
    """
    # Errors of independent data add as squares.
    bias, error = fresh - search, float("nan")
    if search_stderr is not None and fresh_stderr is not None:
        error = sqrt(search_stderr**2 + fresh_stderr**2)
    reach = NORMAL_REACH * error
    return SelectionBias(search, fresh, bias, error, bias - reach, bias + reach)


@dataclass(frozen=True)
class MeanBias:
    """The mean bias of several searches.

    Attributes:
        searches: number of searches.
        mean: mean bias.
        stderr: its standard error; nan with one search.
        low, high: its 95 % interval by Student's distribution.
    """

    searches: int
    mean: float
    stderr: float
    low: float
    high: float


def mean_bias(biases: Sequence[float]) -> MeanBias:
    """Return the mean bias of several searches, such as those of one sampler; at least one."""
    count, mean, error = len(biases), float(np.mean(biases)), standard_error(biases)
    reach = half_width(count) * error
    return MeanBias(count, mean, error, mean - reach, mean + reach)


def expected_maximum(count: int) -> float:
    """Return the mean of the largest of `count` independent standard normal numbers.

    It is the integral of x * count * pdf(x) * cdf(x)^(count - 1): H. A. David and H. N. Nagaraja,
    "Order Statistics", 3rd ed., 2003, section 3.1.

    Args:
        count: number of numbers, at least 1.
    """
    if count == 1:
        return 0.0

    def part(x: float) -> float:
        # Logarithms keep the power of a small number exact.
        log = stats.norm.logpdf(x) + (count - 1) * stats.norm.logcdf(x)
        return float(x * count * np.exp(log))

    # The largest of any practical number of normal numbers lies in this range.
    value, _ = integrate.quad(part, -8.0, 12.0, points=[0.0, sqrt(2 * np.log(count))], limit=200)
    return float(value)


def expected_bias(count: int, noise: float, spread: float = 0.0) -> float:
    """Return the mean bias of the best of `count` scores.

    A score is a true value plus noise, both normal. The best of n scores lies E(n) standard
    deviations of the scores from their mean, and noise^2 / (noise^2 + spread^2) of that distance is
    noise. This is the regression to the mean of J. E. Smith and R. L. Winkler, "The optimizer's
    curse", Manage. Sci. 52, 2006.

    Args:
        count: number of different candidates that were scored.
        noise: standard deviation of a score over samples of the data. What all candidates share
            does not count: use the standard error of a paired difference, divided by sqrt(2).
        spread: standard deviation of the true values of the candidates.
    """
    total = sqrt(noise**2 + spread**2)
    if total == 0 or count < 1:
        return 0.0
    return expected_maximum(count) * noise**2 / total


def true_spread(scores: Sequence[float] | Real, noise: float) -> float:
    """Return the standard deviation of the true values of noisy scores.

    The variance of the scores is the sum of both variances. It is 0 if the noise explains all.

    Args:
        scores: scores of the candidates, at least two.
        noise: standard deviation of the noise of a score.
    """
    variance = float(np.var(np.asarray(scores, dtype=float), ddof=1)) - noise**2
    return sqrt(max(0.0, variance))
