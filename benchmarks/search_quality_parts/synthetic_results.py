"""What the runs on synthetic landscapes say: excess over the best known value, and paired tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.landscapes import best_known
from benchmarks.search_quality_parts.synthetic_runs import RunFile, SyntheticRun
from benchmarks.support.record import Record
from prunesearch.algorithms.operators import Real
from prunesearch.analysis.intervals import standard_error
from prunesearch.analysis.paired import PairedTest, holm, paired_test

REFERENCE = "pso"
"""The algorithm that all others are compared with."""
SIGNIFICANT = 0.05
"""Level of the tests, after Holm's correction within a landscape and budget."""
TARGETS = {
    ("layer80-k40", "pso", 200): "<= 0.03",
    ("qubo60-k15", "pso", 200): "<= 0.45",
}
"""Largest mean excess, by landscape, algorithm and budget."""
NOTHING_FOUND = {"acc200-n32-k8-floor": 0.5}
"""Landscapes with a plateau: share of the distance from the best known value to that of guessing at
which a run counts as stuck."""
_GUESSING = -0.25  # loss of a subset that only guesses


@dataclass(frozen=True)
class Cell:
    """One algorithm at one budget of one landscape.

    Attributes:
        excess_S: excess over the best known value for each seed.
        test: its difference to the reference; None for the reference itself, or if there is no
            whole subset yet.
        p: probability of such a difference by accident, corrected for all algorithms.
    """

    excess_S: Real
    test: PairedTest | None = None
    p: float | None = None

    @property
    def mean(self) -> float | None:
        """Mean excess; None if a run has no whole subset yet."""
        if not np.isfinite(self.excess_S).all():
            return None
        return float(self.excess_S.mean())

    @property
    def stderr(self) -> float | None:
        """Standard error of the mean."""
        if self.mean is None or len(self.excess_S) < 2:
            return None
        return standard_error(self.excess_S)

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` than the reference, or nothing."""
        if self.p is None or self.test is None or self.p >= SIGNIFICANT:
            return ""
        return "better" if self.test.difference < 0 else "worse"


Table = Mapping[str, Mapping[int, Cell]]
"""The cells of one landscape by algorithm and budget."""


def table_of(name: str, seeds: Sequence[int], budgets: Sequence[int], file: RunFile) -> Table:
    """Return the cells of one landscape, the best algorithm first.

    Args:
        name: name of the landscape.
        seeds: seeds that every algorithm has run.
        budgets: budgets.
        file: the runs.
    """
    complete = file.complete(name, seeds)
    known_S = known_values(name, seeds, complete)
    cells: dict[str, dict[int, Cell]] = {algorithm: {} for algorithm in complete}
    for budget in budgets:
        column = {}
        for algorithm, own in complete.items():
            column[algorithm] = np.array([run.at(budget) for run in own]) - known_S
        for algorithm, cell in compared(column).items():
            cells[algorithm][budget] = cell
    last = budgets[-1]
    order = sorted(cells, key=lambda algorithm: float(cells[algorithm][last].excess_S.mean()))
    return {algorithm: cells[algorithm] for algorithm in order}


def known_values(
    name: str, seeds: Sequence[int], runs: Mapping[str, Sequence[SyntheticRun]]
) -> Real:
    """Return the best known value for each seed: by restarted descent, or by any of the runs."""
    known_S = np.array([best_known(name, seed) for seed in seeds])
    for own in runs.values():
        for place, run in enumerate(own):
            known_S[place] = min(known_S[place], min(run.best))
    return known_S


def compared(column: Mapping[str, Real]) -> dict[str, Cell]:
    """Compare the algorithms of one column with the reference, seed by seed.

    Args:
        column: excess for each seed, by algorithm.
    """
    tests = {}
    for algorithm, excess_S in column.items():
        paired = algorithm != REFERENCE and REFERENCE in column and len(excess_S) > 1
        if paired and np.isfinite(excess_S).all() and np.isfinite(column[REFERENCE]).all():
            tests[algorithm] = paired_test(column[REFERENCE], excess_S)
    corrected = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))
    cells = {}
    for algorithm, excess_S in column.items():
        cells[algorithm] = Cell(excess_S, tests.get(algorithm), corrected.get(algorithm))
    return cells


def stuck_runs(name: str, cell: Cell, seeds: Sequence[int]) -> int | None:
    """Return how many runs have found nothing; None if the landscape has no plateau."""
    if name not in NOTHING_FOUND:
        return None
    limit_S = NOTHING_FOUND[name] * (_GUESSING - np.array([best_known(name, s) for s in seeds]))
    return int(np.count_nonzero(cell.excess_S > limit_S))


def add_figures(
    record: Record, tables: Mapping[str, Table], seeds: Sequence[int], budgets: Sequence[int]
) -> None:
    """Add the figures of all landscapes to the record, and their tables to its notes."""
    notes: dict[str, dict[str, dict[str, dict[str, float | str | None]]]] = {}
    for name, table in tables.items():
        notes[name] = {}
        for algorithm, cells in table.items():
            notes[name][algorithm] = _noted(name, cells, seeds)
            for budget, cell in cells.items():
                if algorithm in ("pso", "woa", "hill-climbing") and cell.mean is not None:
                    figure = f"{name}_{algorithm}_excess_at_{budget}"
                    record.add(figure, cell.mean, TARGETS.get((name, algorithm, budget)))
                stuck = stuck_runs(name, cell, seeds)
                if stuck is not None and algorithm in ("pso", "woa"):
                    bound = "== 0" if budget >= 200 else None
                    record.add(f"{name}_{algorithm}_stuck_at_{budget}", stuck, bound)
    for budget in budgets:
        wins = hill_climbing_wins(tables, budget)
        record.add(f"landscapes_where_hill_climbing_beats_evolution_at_{budget}", wins)
    record.add("landscapes", len(tables))
    record.notes["landscapes"] = notes


def hill_climbing_wins(tables: Mapping[str, Table], budget: int) -> int:
    """Return the number of landscapes on which hill climbing has a smaller mean excess."""
    wins = 0
    for table in tables.values():
        if "hill-climbing" in table and "evolution" in table:
            first, second = table["hill-climbing"][budget].mean, table["evolution"][budget].mean
            wins += first is not None and second is not None and first < second
    return wins


def _noted(
    name: str, cells: Mapping[int, Cell], seeds: Sequence[int]
) -> dict[str, dict[str, float | str | None]]:
    """Return the cells of one algorithm as JSON values."""
    noted: dict[str, dict[str, float | str | None]] = {}
    for budget, cell in cells.items():
        own: dict[str, float | str | None] = {"mean": cell.mean, "stderr": cell.stderr}
        if cell.test is not None:
            own["difference"] = cell.test.difference
            own["difference_stderr"] = cell.test.stderr
            own["p"] = cell.p
            own["verdict"] = cell.verdict
        stuck = stuck_runs(name, cell, seeds)
        if stuck is not None:
            own["stuck"] = stuck
        noted[str(budget)] = own
    return noted
