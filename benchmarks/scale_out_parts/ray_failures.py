"""Workers of Ray are killed, and nodes are removed: is anything lost, and is the study the same?

In each round a study is searched with an empty cache by four workers, two of them on a second node.
After a random number of results a random worker is killed with SIGKILL, or the second node is
removed with all its processes. All trials are compared with those of one process. Then the study
is searched once more on the same cache, in one process: what it has to score was lost. The workers
write a line for each scoring, so that results that were scored twice are counted.
"""

import functools
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna

from benchmarks.support.record import Record
from prunesearch.evaluation.ray_pool import RayPool
from tests.support.disturbed_studies import CHUNKS, Disturbed, InProcess, lost, trials_of
from tests.support.fixed_cost import stand_in
from tests.support.paths import REPOSITORY
from tests.support.ray_nodes import Nodes, nodes

_START_SECONDS = 120.0
_WORKERS = 4


@dataclass
class _Rounds:
    """What the rounds of one kind have found.

    Attributes:
        name: name of the rounds in the record.
        count: number of rounds.
        identical: rounds whose trials are those of one process.
        lost: results that are not in the cache after a round.
        again: results that were scored twice.
        pause: longest time without a result after a loss, seconds.
    """

    name: str
    count: int = 0
    identical: int = 0
    lost: int = 0
    again: int = 0
    pause: float = 0.0

    def add_to(self, record: Record) -> None:
        """Add the figures to the record."""
        record.add(self.name, self.count)
        record.add(f"{self.name}_lost", self.lost, "== 0")
        record.add(f"{self.name}_identical", self.identical, f"== {self.count}")
        record.add(f"{self.name}_scored_again", self.again)
        record.add(f"{self.name}_longest_pause_seconds", self.pause)


@dataclass(frozen=True)
class _Search:
    """The search of every round.

    Attributes:
        folder: folder for caches and logs.
        trials: number of trials.
        seconds: seconds of one scoring.
        reference: trials of one process.
        results: number of results that it needs.
    """

    folder: Path
    trials: int
    seconds: float
    reference: str
    results: int

    def run(
        self, rounds: _Rounds, pool: RayPool, chance: random.Random, act: Callable[[], None]
    ) -> None:
        """Search once while something happens, and add what was found to the rounds."""
        cache = self.folder / f"{rounds.name}-{rounds.count}"
        scorer = Disturbed(pool, chance.randrange(1, self.results * 3 // 4), act)
        self.log.write_text("")
        trials = trials_of(scorer, cache, self.trials)
        lines = [line.rpartition(" ")[0] for line in self.log.read_text().splitlines()]
        rounds.count += 1
        rounds.identical += trials == self.reference
        rounds.again += len(lines) - len(set(lines))
        rounds.pause = max(rounds.pause, scorer.pause)
        rounds.lost += lost(cache, self.trials)

    @property
    def log(self) -> Path:
        """File to which the workers write."""
        return self.folder / "scorings.log"


def measure(record: Record, scratch: Path) -> None:
    """Add what is lost when workers are killed, and when nodes are removed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials, seconds = record.by_size(48, 24, 12), record.by_size(0.05, 0.02, 0.02)
    kills, removals = record.by_size((20, 5), (5, 2), (1, 1))
    alone = InProcess()
    reference = trials_of(alone, scratch / "alone", trials)
    search = _Search(scratch, trials, seconds, reference, alone.count)
    # Workers import the stand-in, also on nodes that are started here.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), before or ""])
    try:
        with nodes(_WORKERS // 2) as cluster:
            _kill_workers(search, cluster, kills).add_to(record)
            _remove_nodes(search, cluster, removals).add_to(record)
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _kill_workers(search: _Search, cluster: Nodes, count: int) -> _Rounds:
    """Kill a random worker in each round. Ray starts it again for the next one."""
    chance, rounds = random.Random(0), _Rounds("workers_killed")
    node = cluster.add(_WORKERS // 2)
    build, content = stand_in(CHUNKS, search.seconds, search.log)
    with RayPool(build, _WORKERS, content) as pool:

        def kill() -> None:
            os.kill(chance.choice(pool.places).pid, signal.SIGKILL)

        for _ in range(count):
            assert pool.wait_for_all(_START_SECONDS)
            search.run(rounds, pool, chance, kill)
    cluster.remove(node)
    return rounds


def _remove(cluster: Nodes, node: object, pool: RayPool) -> None:
    """Remove the second node, and wait until its workers have ended."""
    cluster.remove(node, [place.pid for place in pool.places if place.node != cluster.head])


def _remove_nodes(search: _Search, cluster: Nodes, count: int) -> _Rounds:
    """Remove the second node in each round. The next round gets another one."""
    chance, rounds = random.Random(1), _Rounds("nodes_removed")
    for _ in range(count):
        node = cluster.add(_WORKERS // 2)
        build, content = stand_in(CHUNKS, search.seconds, search.log)
        with RayPool(build, _WORKERS, content) as pool:
            assert pool.wait_for_all(_START_SECONDS)
            assert len({place.node for place in pool.places}) == 2, "workers on both nodes"
            search.run(rounds, pool, chance, functools.partial(_remove, cluster, node, pool))
    return rounds
