"""Races: a candidate that is known to be worse is not scored on the rest of the data.

A candidate races against a baseline: the best trial before its generation. The two are compared
on growing parts of the data. They are compared item by item (sequences, or documents of a task), so
that the difficulty of an item cancels. The candidate drops out when a one-sided t-test says that it
is worse on all data.

Five things make the test sharper than a plain paired t-test:

1. The data are finite. The more of them are scored, the less the rest can change the mean. So the
   squared standard error shrinks with the share that is left (W. G. Cochran, "Sampling Techniques",
   3rd ed., 1977, eq. 2.20).
2. Other candidates are known on all data. The mean of their losses and the baseline's says how hard
   an item is, better than the baseline alone does. It is a control variate, whose mean over all
   data is known (R. M. Royall, "On finite population sampling theory under certain linear
   regression models", Biometrika 57, 1970).
3. These candidates also show how much the losses of two candidates scatter. This prior estimate is
   combined with the candidate's own few items (G. K. Smyth, "Linear models and empirical Bayes
   methods for assessing differential expression in microarray experiments", Stat. Appl. Genet.
   Mol. Biol. 3, 2004, eq. 3).
4. An answer of a task is right or wrong, which tells little. Its margin tells more: how far the
   log-likelihood of the right choice is above the best wrong one. The margins of the known
   candidates and the candidate's own first ones predict its other answers, see
   `_is_less_often_right`.
5. After the first chunks the test is made after each chunk, see `rungs`.

Each test has the confidence `CONFIDENCE`. A race has several tests, so a candidate that is exactly
as good as its baseline drops out more often than in one of twenty races. The quality of the winner
depends on candidates that are better. `benchmarks/results/races.md` has the rates, and
`tests/objectives/test_race.py` holds them: a candidate that is better than its baseline by one
standard error of their difference on all data drops out in less than one of twenty races.

O. Maron and A. W. Moore, "Hoeffding races", NIPS 6, 1993, with the t-test of M. Birattari et al.,
"A racing algorithm for configuring metaheuristics", GECCO 2002.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from prunesearch.candidate import LayerSubset
from prunesearch.objectives.base import HasMargins, Objective, Row

CONFIDENCE = 0.95
"""Confidence of the test at each rung, at which a candidate counts as worse."""
MIN_ITEMS = 4
"""Smallest number of items on which a candidate can drop out."""
CONTROLS = 3
"""Largest number of control candidates of a race."""
_PRIOR_WEIGHT = 4  # degrees of freedom that the scatter of known candidates counts for
_FINEST = 4  # a rung is larger than the one before by 1 / (this many) of it, rounded down

Real = NDArray[np.float64]


@dataclass(frozen=True)
class Race:
    """The candidates that others race against.

    Attributes:
        baseline: candidate that others must not be worse than.
        controls: further candidates that were scored on all data. They and the baseline show how
            hard each item is. Empty: the baseline need not be scored on all data either.
    """

    baseline: LayerSubset
    controls: tuple[LayerSubset, ...] = ()


def rungs(chunks: int) -> list[int]:
    """Return the numbers of scored chunks at which candidates are compared.

    These are 1, 2, ... up to 8, then 10, 12, 15 and so on, each a quarter more than the one before,
    and at last all chunks.
    """
    steps = []
    step = 1
    while step < chunks:
        steps.append(step)
        step += max(1, step // _FINEST)
    return [*steps, chunks]


@dataclass(frozen=True)
class ItemLosses:
    """What a race compares of a candidate.

    Attributes:
        losses: loss on each of the first items, or on all. A smaller loss is better.
        margins: by how much each answer is right, see `HasMargins`. None: items without answers.
    """

    losses: tuple[float, ...]
    margins: tuple[float, ...] | None = None

    def first(self, items: int) -> "ItemLosses":
        """Return the losses on the first items."""
        if self.margins is None:
            return ItemLosses(self.losses[:items])
        return ItemLosses(self.losses[:items], self.margins[:items])


def items_of(objective: Objective, results: Sequence[Sequence[Row]]) -> ItemLosses:
    """Return what a race compares of a candidate.

    Args:
        objective: objective of the race.
        results: the candidate's results on the leading chunks.

    Raises:
        InputError: the metric is not defined for single items.
    """
    if isinstance(objective, HasMargins):
        margins = objective.margins(results)
        if margins is not None:
            losses = tuple(-1.0 if margin > 0 else 0.0 for margin in margins)
            return ItemLosses(losses, tuple(margins))
    return ItemLosses(tuple(objective.losses(results)))


def is_worse(
    candidate: ItemLosses,
    baseline: ItemLosses,
    controls: Sequence[ItemLosses] = (),
    share: float = 0.0,
    confidence: float = CONFIDENCE,
) -> bool:
    """Return True if a candidate is worse than its baseline on all data, by a one-sided t-test.

    Args:
        candidate: the candidate's losses on the first items.
        baseline: the baseline's losses on the same items, and possibly on more. With controls, on
            all items.
        controls: losses of each control candidate on all items.
        share: share of the data that the candidate was scored on, from 0 to 1.
        confidence: confidence of the test.
    """
    n = len(candidate.losses)
    if n < MIN_ITEMS:
        return False
    known = [baseline, *controls]
    if controls and candidate.margins and all(one.margins for one in known):
        return _is_less_often_right(candidate, known, confidence)
    known_KN = np.array([one.losses for one in known])
    expected_N = known_KN.mean(0)
    difference_n = np.asarray(candidate.losses) - expected_N[:n]
    # The difference to the control variate, and the variate's own difference to the baseline.
    difference = float(difference_n.mean())
    variance, freedom = float(difference_n.var(ddof=1)), n - 1
    if controls:
        difference += float(expected_N.mean() - known_KN[0].mean())
        variance = _PRIOR_WEIGHT * _scatter(known_KN) + freedom * variance
        freedom += _PRIOR_WEIGHT
        variance /= freedom
    error = math.sqrt(variance * (1.0 - share) / n)
    return difference > error * float(stdtrit(freedom, confidence))


def _is_less_often_right(
    candidate: ItemLosses, known: Sequence[ItemLosses], confidence: float
) -> bool:
    """Return True if a candidate's answers are right less often than its baseline's on all items.

    The margin of its answer to an item is a linear function of the mean margin of the known
    candidates, plus a normal rest. The function is fitted to the first items. It gives the
    probability that each other answer is right. Their sum, and the right answers so far, predict
    the number of right answers. Its variance has two parts: each answer is a matter of chance, and
    the function is not known exactly.

    Args:
        candidate: answers to the first items.
        known: answers of the baseline and of the controls to all items.
        confidence: confidence of the test.
    """
    margins_KN = np.array([one.margins for one in known])
    margins_n = np.array(candidate.margins)
    n, items = len(margins_n), margins_KN.shape[1]
    # 1. Fit the line, and the scatter around it, to the first items.
    mean_N = margins_KN.mean(0)
    inputs_N2 = np.column_stack([np.ones(items), mean_N - mean_N.mean()])
    inverse_22 = np.linalg.pinv(inputs_N2[:n].T @ inputs_N2[:n])
    line_2 = inverse_22 @ (inputs_N2[:n].T @ margins_n)
    rest_n = margins_n - inputs_N2[:n] @ line_2
    freedom = n - 2 + _PRIOR_WEIGHT
    variance = (float(rest_n @ rest_n) + _PRIOR_WEIGHT * _scatter(margins_KN)) / freedom
    if variance == 0.0:
        return False
    # 2. Predict the other answers.
    scaled_M = inputs_N2[n:] @ line_2 / math.sqrt(variance)
    right_M = ndtr(scaled_M)
    fewer = int((np.array(known[0].margins) > 0).sum()) - int((margins_n > 0).sum())
    difference = fewer - float(right_M.sum())
    # 3. Compare with the standard error of the prediction.
    density_M = np.exp(-(scaled_M**2) / 2) / math.sqrt(2 * math.pi)
    slope_2 = density_M @ inputs_N2[n:]
    chance = float((right_M * (1 - right_M)).sum())
    error = math.sqrt(chance + float(slope_2 @ inverse_22 @ slope_2))
    return difference > error * float(stdtrit(freedom, confidence))


def _scatter(known_KN: Real) -> float:
    """Return the expected variance, over items, of a new candidate's loss minus the mean of K known
    ones.

    The losses of a candidate are its mean, plus the hardness of each item, plus a rest. The rest's
    variance is estimated from the known candidates. The mean of K rests has 1 / K of it.
    """
    candidates, items = len(known_KN), len(known_KN[0])
    rest_KN = known_KN - known_KN.mean(0) - known_KN.mean(1, keepdims=True) + known_KN.mean()
    variance = float((rest_KN**2).sum()) / ((candidates - 1) * (items - 1))
    return variance * (1.0 + 1.0 / float(candidates))
