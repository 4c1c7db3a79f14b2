"""1, 2 and 4 workers of Ray score generations of a stand-in of fixed cost: how much sooner are they
done?

The workers are started before the clock is. Results are compared with the work that was asked for.
"""

import time
from pathlib import Path

from benchmarks.support.record import Record
from prunesearch.evaluation.ray_cluster import connected
from prunesearch.evaluation.ray_pool import RayPool
from tests.support.fixed_cost import generation, scored, stand_in, values

_START_SECONDS = 120.0


def measure(record: Record, scratch: Path) -> None:
    """Add the speed-up with 2 and with 4 workers."""
    candidates, chunks = record.by_size(24, 24, 8), record.by_size(4, 2, 1)
    seconds = record.by_size(0.25, 0.25, 0.05)
    generations = record.by_size(5, 2, 1)
    numbers = record.by_size((1, 2, 4), (1, 2, 4), (1, 2))
    bounds = {2: ">= 1.8", 4: ">= 3.5"}
    spent: dict[int, float] = {}
    with connected(None, max(numbers)):
        for workers in numbers:
            spent[workers] = _seconds(workers, candidates, chunks, seconds, generations)
            record.add(f"ray_{workers}_seconds", spent[workers])
    for workers in numbers[1:]:
        record.add(f"ray_{workers}_speedup", spent[1] / spent[workers], bounds[workers])
    # What Ray and the engine add to the scoring of one worker.
    scored_seconds = candidates * chunks * seconds * generations
    record.add("ray_1_added_share", spent[1] / scored_seconds - 1)


def _seconds(workers: int, candidates: int, chunks: int, seconds: float, generations: int) -> float:
    """Return the seconds that workers take for some generations."""
    work = generation(candidates, chunks)
    build, content = stand_in(chunks, seconds)
    with RayPool(build, workers, content) as pool:
        assert pool.wait_for_all(_START_SECONDS)
        start = time.perf_counter()
        for _ in range(generations):
            assert scored(list(pool.score(work, lambda: False))) == values(work)
        return time.perf_counter() - start
