"""Runs of algorithms on synthetic landscapes. Each is written down, so that a long comparison can be
interrupted.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.landscapes import landscape
from benchmarks.search_quality_parts.baselines import BASELINES
from benchmarks.search_quality_parts.problem import Trace, of_landscape
from benchmarks.search_quality_parts.runners import on_synthetic, selected


@dataclass(frozen=True)
class SyntheticRun:
    """One run of one algorithm on one landscape.

    Attributes:
        landscape: name of the landscape.
        algorithm: name of the row.
        seed: seed of the landscape and of the algorithm.
        budget: unique evaluations that the run was given.
        seconds: CPU seconds that it took.
        best: true value of the best subset after each evaluation.
    """

    landscape: str
    algorithm: str
    seed: int
    budget: int
    seconds: float
    best: list[float] = field(repr=False)

    def at(self, budget: int) -> float:
        """Return the value within a budget."""
        return Trace(self.best).at(budget)


@dataclass
class RunFile:
    """The finished runs, one a line.

    Attributes:
        path: the file; None to keep the runs in memory only.
        runs: runs by landscape, algorithm and seed.
    """

    path: Path | None
    runs: dict[tuple[str, str, int], SyntheticRun] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is None or not self.path.exists():
            return
        for line in self.path.read_text().splitlines():
            # A process that was killed may have left a part of a line.
            if line.endswith("}"):
                self._keep(SyntheticRun(**json.loads(line)))

    def _keep(self, run: SyntheticRun) -> None:
        self.runs[run.landscape, run.algorithm, run.seed] = run

    def has(self, name: str, algorithm: str, seed: int, budget: int) -> bool:
        """Return whether a run with at least this budget is there."""
        run = self.runs.get((name, algorithm, seed))
        return run is not None and run.budget >= budget

    def complete(self, name: str, seeds: Sequence[int]) -> dict[str, list[SyntheticRun]]:
        """Return the runs on a landscape of each algorithm that has run with all these seeds.

        They are in the order of the seeds.
        """
        complete = {}
        for algorithm in dict.fromkeys(own for of, own, _ in self.runs if of == name):
            runs = [self.runs.get((name, algorithm, seed)) for seed in seeds]
            present = [run for run in runs if run is not None]
            if len(present) == len(seeds):
                complete[algorithm] = present
        return complete

    def add(self, run: SyntheticRun) -> None:
        """Keep a run and write it down."""
        self._keep(run)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(asdict(run)) + "\n")


def measure(
    names: Sequence[str],
    seeds: Sequence[int],
    budget: int,
    algorithms: str | None,
    file: RunFile,
) -> None:
    """Run every algorithm on every landscape with every seed, unless the file has the run.

    Args:
        names: names of the landscapes.
        seeds: seeds of landscapes and algorithms.
        budget: unique evaluations of each run.
        algorithms: names of the rows, separated by semicolons; None for all.
        file: the finished runs.
    """
    for name in names:
        for seed in seeds:
            problem = of_landscape(landscape(name, seed))
            rows = on_synthetic(problem, BASELINES)
            # A landscape without a ranking lacks the rows that start from it.
            for algorithm, run in selected(rows, algorithms, _is_ranked).items():
                if file.has(name, algorithm, seed, budget):
                    continue
                start = time.process_time()
                trace = run(problem, seed, budget)
                seconds = round(time.process_time() - start, 2)
                best = [round(value, 7) for value in trace.best]
                file.add(SyntheticRun(name, algorithm, seed, budget, seconds, best))
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)


def _is_ranked(name: str) -> bool:
    return name.endswith(" ranking")
