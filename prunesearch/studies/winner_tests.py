"""Tests whether the winners of studies differ, on the same documents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import ClassVar

from prunesearch.analysis import paired
from prunesearch.cache.backend import Readable
from prunesearch.studies.compared_study import budget_difference, metric_difference
from prunesearch.studies.document_losses import (
    DocumentLosses,
    Source,
    best_pair,
    cached_losses,
    measured_losses,
    test_of,
)
from prunesearch.studies.measurements import Badge, Measurement
from prunesearch.studies.study_data import StudyData

MOST_PAIRED = 6
"""Largest number of studies whose winners are compared each with each."""


@dataclass(frozen=True)
class WinnerTest:
    """The comparison of two winners on the same documents.

    Attributes:
        first, second: names of the studies; the first has the better best value.
        metric: metric whose losses are compared.
        data: short name of the documents.
        badge: whether the search has seen them. On data that were searched on, both winners look
            better than they are.
        source: whether the losses were measured after the search, or are those of the cache.
        documents: number of documents or sequences.
        difference: mean loss of the second winner - that of the first. Positive: the second is
            worse.
        stderr, low, high: its standard error and 95 % interval.
        p: probability of such a difference if the winners were equal, by sign flips.
        p_t: the same by the paired t-test.
        p_corrected: `p`, corrected for the number of tests by Holm's method.
    """

    json_properties: ClassVar[tuple[str, ...]] = ("differ",)

    first: str
    second: str
    metric: str
    data: str
    badge: Badge
    source: Source
    documents: int
    difference: float
    stderr: float
    low: float
    high: float
    p: float
    p_t: float
    p_corrected: float

    @property
    def differ(self) -> bool:
        """True if the winners differ at a level of 5 % after the correction."""
        return self.p_corrected < 0.05


@dataclass(frozen=True)
class NotTested:
    """Two studies whose winners were not compared, and the reason."""

    first: str
    second: str
    reason: str


def winner_tests(
    studies: Sequence[StudyData],
    measured: Mapping[str, Sequence[Measurement]],
    backends: Sequence[Readable],
) -> tuple[tuple[WinnerTest, ...], tuple[NotTested, ...]]:
    """Compare the winners pair by pair."""
    known = _Losses(measured, backends)
    found: list[WinnerTest] = []
    untested: list[NotTested] = []
    for first, second in _pairs(studies):
        # 1. Look up the losses of both winners on the same documents.
        reason = _not_comparable(first, second)
        pair = None if reason else known.pair(first, second)
        if pair is None:
            untested.append(NotTested(first.name, second.name, reason or _no_losses(first, second)))
            continue
        # 2. Test their difference.
        test = test_of(pair)
        found.append(
            WinnerTest(
                first.name,
                second.name,
                pair[0].metric,
                pair[0].data,
                pair[0].badge,
                pair[0].source,
                test.n,
                test.difference,
                test.stderr,
                test.low,
                test.high,
                test.p,
                test.p_t,
                test.p,
            )
        )
    # 3. Correct for the number of tests, once all are known.
    corrected = paired.holm([test.p for test in found])
    tests = [replace(test, p_corrected=p) for test, p in zip(found, corrected, strict=True)]
    return tuple(tests), tuple(untested)


def _pairs(studies: Sequence[StudyData]) -> list[tuple[StudyData, StudyData]]:
    """Return the pairs of studies to compare, the better one first.

    Many studies are compared with the best one only.
    """

    def loss(study: StudyData) -> float:
        best = study.best()
        return float("inf") if best is None else study.losses(best)[0]

    ranked = sorted((study for study in studies if study.complete()), key=loss)
    if len(ranked) > MOST_PAIRED:
        return [(ranked[0], other) for other in ranked[1:]]
    return list(combinations(ranked, 2))


def _not_comparable(first: StudyData, second: StudyData) -> str | None:
    """Return why two winners are not compared; None if they can be."""
    for study in (first, second):
        if study.is_pareto:
            return f"{study.name} has a front and no single winner"
    if first.model_content != second.model_content:
        return "they prune different models"
    reason = metric_difference(first, second) or budget_difference(first, second)
    if reason is not None:
        return reason
    best, other = first.best(), second.best()
    if best is not None and other is not None and best.dropped == other.dropped:
        return "both found the same candidate"
    return None


def _no_losses(first: StudyData, second: StudyData) -> str:
    if first.data_content != second.data_content:
        return (
            "they were searched on different data, and were not measured on the same: run report "
            "--score"
        )
    return (
        "there are no losses of each document of both winners, measured or in the cache: resume "
        "the searches with the cache, which scores what is missing, or run report --score"
    )


class _Losses:
    """The losses of winners, each looked up once."""

    def __init__(
        self, measured: Mapping[str, Sequence[Measurement]], backends: Sequence[Readable]
    ) -> None:
        self._measured, self._backends = measured, backends
        self._cached: dict[str, DocumentLosses | None] = {}

    def pair(
        self, first: StudyData, second: StudyData
    ) -> tuple[DocumentLosses, DocumentLosses] | None:
        """Return losses of two winners on the same documents; None if there are none."""
        pair = best_pair(self._of(first), self._of(second))
        # Look through the cache only if nothing was measured.
        if pair is None and first.data_content == second.data_content:
            one, other = self._from_cache(first), self._from_cache(second)
            if one is not None and other is not None:
                pair = best_pair([one], [other])
        return pair

    def _of(self, study: StudyData) -> tuple[DocumentLosses, ...]:
        best = study.best()
        return () if best is None else measured_losses(self._measured[study.name], best.dropped)

    def _from_cache(self, study: StudyData) -> DocumentLosses | None:
        best = study.best()
        if study.name not in self._cached:
            found = None if best is None else cached_losses(study, best, self._backends)
            self._cached[study.name] = found
        return self._cached[study.name]
