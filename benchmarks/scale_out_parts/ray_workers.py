"""1, 2 and 4 workers score generations of a stand-in of fixed cost: how much sooner are they done?

The workers are started before the clock is. Results are compared with the work that was asked for.
"""

import time
from pathlib import Path

from benchmarks.support.record import Record
from prunesearch.evaluation.worker_pool import WorkerPool
from tests.support.fixed_cost import generation, scored, stand_in, values


def measure(record: Record, scratch: Path) -> None:
    """Add the speed-up with 2 and with 4 workers."""
    candidates, chunks = record.by_size(24, 24, 8), record.by_size(4, 2, 1)
    seconds = record.by_size(0.25, 0.1, 0.02)
    generations = record.by_size(5, 3, 1)
    spent: dict[int, float] = {}
    for workers in record.by_size((1, 2, 4), (1, 2, 4), (1, 2)):
        spent[workers] = _seconds(workers, candidates, chunks, seconds, generations)
    for workers in spent.keys() - {1}:
        record.add(f"processes_{workers}_speedup", spent[1] / spent[workers])


def _seconds(workers: int, candidates: int, chunks: int, seconds: float, generations: int) -> float:
    """Return the seconds that workers take for some generations."""
    work = generation(candidates, chunks)
    build, content = stand_in(chunks, seconds)
    with WorkerPool(build, workers, content) as pool:
        list(pool.score(generation(workers, 1), lambda: False))
        start = time.perf_counter()
        for _ in range(generations):
            assert scored(list(pool.score(work, lambda: False))) == values(work)
        return time.perf_counter() - start
