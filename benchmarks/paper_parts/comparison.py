"""Rows of the tables: each method at each k, with errors over seeds and paired tests."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper_parts.experiment import Experiment
from benchmarks.paper_parts.measuring import Job, Measured
from benchmarks.paper_parts.methods import METHODS
from benchmarks.paper_parts.winners import Trace, Winner
from prunesearch.analysis.paired import PairedTest, holm, paired_test

TESTED = ("pso", "woa", "pso-slots", "woa-slots", "pso-kl", "woa-kl")
"""The paper's algorithms, with accuracy or KL as fitness. They are tested against all others."""


@dataclass(frozen=True)
class Spread:
    """Mean of several seeds, with its standard error; the error of one seed is NaN."""

    mean: float
    stderr: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of values."""
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(mean, math.nan)
        return cls(mean, statistics.stdev(values) / math.sqrt(len(values)))


@dataclass(frozen=True)
class Row:
    """One method at one k.

    Attributes:
        method: name of the method.
        k: number of dropped blocks.
        winners: candidates that it chose, one for each seed.
        searched_on: accuracies on the documents of the search; KL on its text if that is the fitness.
        pruned, healed: measurements on held-out documents, one for each seed; `healed` may be
            empty.
        evaluations: most evaluations of a search.
        seconds: time of scoring of each search.
    """

    method: str
    k: int
    winners: tuple[Winner, ...]
    pruned: tuple[Measured, ...]
    healed: tuple[Measured, ...]
    evaluations: int
    seconds: tuple[float, ...]

    @property
    def by_kl(self) -> bool:
        """Whether the fitness of the search is KL."""
        return self.method in METHODS and METHODS[self.method].by_kl

    @property
    def searched_on(self) -> list[float]:
        """Fitness of the winners on the data of the search."""
        return [each.searched_on for each in self.winners if each.searched_on is not None]

    def measured(self, healed: bool) -> tuple[Measured, ...]:
        """The measurements before or after healing."""
        return self.healed if healed else self.pruned

    def accuracy(self, healed: bool) -> Spread:
        """Mean accuracy over seeds."""
        return Spread.of([each.acc_norm for each in self.measured(healed)])

    def by_document(self, healed: bool) -> NDArray[np.float64]:
        """Share of the seeds that answer each document rightly."""
        rows = [each.right for each in self.measured(healed)]
        right_SN = np.asarray(rows, dtype=np.float64)
        return np.asarray(right_SN.mean(axis=0))


def rows_of(
    experiment: Experiment,
    winners: Sequence[Winner],
    traces: Sequence[Trace],
    measured: Mapping[Job, Measured],
) -> list[Row]:
    """Group the winners by method and k, in the order of the experiment."""
    grouped: dict[tuple[int, str], list[Winner]] = {}
    for winner in winners:
        grouped.setdefault((winner.k, winner.method), []).append(winner)
    rows = []
    for (k, method), chosen in sorted(grouped.items(), key=lambda item: item[0][0]):
        own = [trace for trace in traces if (trace.study.k, trace.study.method) == (k, method)]
        states: dict[bool, tuple[Measured, ...]] = {}
        for healed in (False, True):
            found = []
            if healed and not experiment.heal_steps:
                states[healed] = ()
                continue
            for winner in chosen:
                job = Job(winner.candidate.text, healed)
                if job in measured:
                    found.append(measured[job])
            # Another method may have had one of the candidates healed.
            states[healed] = tuple(found) if len(found) == len(chosen) else ()
        evaluations = max((len(trace.evaluations) for trace in own), default=0)
        seconds = tuple(trace.seconds for trace in own)
        rows.append(
            Row(method, k, tuple(chosen), states[False], states[True], evaluations, seconds)
        )
    return rows


@dataclass(frozen=True)
class Comparison:
    """A method of the paper against another method, on the same held-out documents.

    Attributes:
        first, second: names of the methods. The difference is first - second.
        k: number of dropped blocks.
        healed: whether both were healed.
        test: the paired test. The value of a document is the share of seeds that answer it rightly.
        corrected: probability after Holm's correction over all comparisons.
    """

    first: str
    second: str
    k: int
    healed: bool
    test: PairedTest
    corrected: float

    @property
    def verdict(self) -> str:
        """What the test says at 5 %."""
        if self.corrected >= 0.05:
            return "not told apart"
        return "better" if self.test.difference > 0 else "worse"


def compare(rows: Sequence[Row]) -> list[Comparison]:
    """Test the paper's algorithms against all other methods, at each k, before and after healing."""
    asked: list[tuple[Row, Row, bool]] = []
    for first in rows:
        for second in rows:
            if first.method not in TESTED or second.k != first.k or second is first:
                continue
            # PSO against WOA is the same test as WOA against PSO.
            if second.method in TESTED and TESTED.index(second.method) < TESTED.index(first.method):
                continue
            for healed in (False, True):
                if first.measured(healed) and second.measured(healed):
                    asked.append((first, second, healed))
    tests = []
    for first, second, healed in asked:
        tests.append(paired_test(second.by_document(healed), first.by_document(healed)))
    corrected = holm([test.p for test in tests])
    found = []
    for (first, second, healed), test, probability in zip(asked, tests, corrected, strict=True):
        found.append(Comparison(first.method, second.method, first.k, healed, test, probability))
    return found
