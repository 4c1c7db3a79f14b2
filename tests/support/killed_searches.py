"""Searches whose processes and database are killed, and what is left of them."""

import itertools
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path

import sqlalchemy

from prunesearch.cache import maintenance
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.keys import Key, evaluation_key
from prunesearch.cache.location import CacheLocation
from prunesearch.runtime import failpoints
from tests.support import postgres
from tests.support.formula import (
    FINGERPRINT,
    Log,
    acknowledging,
    engine_for,
    expected,
    run_searches,
    subsets,
)
from tests.support.processes import FORK

WORKERS = 4

TRIALS = 60
FUSES = (
    "after_acquire",
    "after_score",
    "before_commit",
    "after_commit",
    "before_tell",
    "after_tell",
)


@dataclass(frozen=True)
class Ground:
    """Where a run happens.

    Attributes:
        folder: for logs and caches.
        url: of the shared database; None for folders alone.
    """

    folder: Path
    url: str | None

    def location(self, worker: int) -> CacheLocation:
        """A worker's cache: with a database, two machines' worth of folders."""
        return CacheLocation(self.folder / f"cache{worker % 2 if self.url else ''}", self.url)

    @property
    def storage(self) -> str:
        """Where studies are: beside the evaluations, if these are in a database."""
        return self.url or f"sqlite:///{self.folder}/study.db"

    def log(self, name: str) -> Log:
        """A process's log."""
        return Log(self.folder / f"{name}.log")

    def lines(self) -> list[list[str]]:
        """All lines of all logs."""
        return [
            line.split()
            for file in sorted(self.folder.glob("*.log"))
            for line in file.read_text().splitlines()
        ]


@contextmanager
def ground(backend: str) -> Iterator[tuple[Ground, postgres.Server | None]]:
    """A fresh folder and, for PostgreSQL, a server of its own."""
    with tempfile.TemporaryDirectory(prefix="durability-") as folder:
        if backend == "sqlite":
            yield Ground(Path(folder), None), None
            return
        with postgres.Server(fsync=True) as server:
            yield Ground(Path(folder), server.url), server


def start(target: Callable[..., None], *args: object) -> ForkProcess:
    """A process of its own."""
    process = FORK.Process(target=target, args=args)
    process.start()
    return process


class Searchers:
    """Processes that search, are killed, and are started again.

    Args:
        pace: the longest time between two kills, seconds.

    Attributes:
        died: how often one was killed.
    """

    def __init__(self, place: Ground, studies: int, trials: int, pace: float, seed: int) -> None:
        self.died = 0
        self._place, self._trials, self._cost_meter = place, trials, pace
        self._chance = random.Random(seed)
        self._serial = itertools.count()
        # Workers 0 and 1 search the same subsets, as do 2 and 3: they want the same keys at the
        # same time.
        self._studies = [
            [(f"w{w}-{n}", "pso" if w < 2 else "woa", n) for n in range(studies)]
            for w in range(WORKERS)
        ]
        self._running = {
            worker: self._spawn(worker, studies, self._fuse()) for worker in range(WORKERS)
        }

    def _spawn(self, worker: int, studies: int, fuse: dict[str, int]) -> ForkProcess:
        place, log = self._place, self._place.log(f"w{worker}-{next(self._serial)}")
        names = self._studies[worker][:studies]
        return start(
            run_searches, place.location(worker), place.storage, log, names, self._trials, fuse
        )

    def _fuse(self) -> dict[str, int]:
        """Where a new process shall die: half of them at a failpoint."""
        return (
            {self._chance.choice(FUSES): self._chance.randint(1, 30)}
            if self._chance.random() < 0.5
            else {}
        )

    def kill_one(self) -> None:
        """Wait a while for one to die by its fuse, else kill one; start the dead ones again."""
        moment = time.monotonic() + self._chance.uniform(0.2, self._cost_meter)
        while time.monotonic() < moment and all(
            process.is_alive() for process in self._running.values()
        ):
            time.sleep(0.01)
        if all(process.is_alive() for process in self._running.values()):
            self._chance.choice(list(self._running.values())).kill()
        for worker, process in self._running.items():
            process.join(0.1)
            if not process.is_alive():
                assert process.exitcode == -signal.SIGKILL, (
                    f"worker {worker} failed: {process.exitcode}"
                )
                self.died += 1
                self._running[worker] = self._spawn(
                    worker, len(self._studies[worker]), self._fuse()
                )

    def finish(self, studies: int) -> None:
        """Kill all once more, and let others bring the first studies to their end, unharmed."""
        for process in self._running.values():
            process.kill()
            process.join()
        self.died += len(self._running)
        last = [self._spawn(worker, studies, {}) for worker in self._running]
        for worker, process in enumerate(last):
            process.join()
            assert process.exitcode == 0, f"worker {worker} failed: {process.exitcode}"


def kill_searches(
    place: Ground, kills: int, trials: int = TRIALS, pace: float = 1.5, seed: int = 0
) -> int:
    """Kill searching processes until `kills` have died, then let some studies finish;
    returns the deaths.
    """
    # More studies than a quick machine finishes between the kills.
    searchers = Searchers(place, 40 + kills // 4, trials, pace, seed)
    while searchers.died < kills:
        searchers.kill_one()
    searchers.finish(2)
    return searchers.died


def check(place: Ground, result: Path) -> None:
    """Compare the logs with what is stored; runs in a process of its own."""
    lines = place.lines()
    acknowledged = {line[1] for line in lines if line[0] == "acknowledged"}
    starts = Counter(line[1] for line in lines if line[0] == "start")
    with maintenance.reading(place.location(0)) as backends:
        stored = dict(backends[0].scan())  # the shared backend, where there is one
        incidents = sum(len(backend.read_incidents()) for backend in backends)
    lost = sum(
        (entry := stored.get(digest)) is None or entry.value != expected(entry.key.preimage)
        for digest in acknowledged
    )
    result.write_text(
        json.dumps(
            {
                "acknowledged": len(acknowledged),
                "lost": lost,
                "starts": starts.total(),
                "repeated": sum(line[0] == "start" and line[2] == "1" for line in lines),
                "extra": starts.total() - len(starts),
                "stored": len(stored),
                "incidents": incidents,
            }
        )
    )


def checked(place: Ground) -> dict[str, int]:
    """What the checking process found."""
    result = place.folder / "check.json"
    process = start(check, place, result)
    process.join()
    assert process.exitcode == 0
    found: dict[str, int] = json.loads(result.read_text())
    return found


def single_flight(place: Ground, processes: int, keys: int) -> int:
    """Several processes ask for the same keys at once; returns how many scorings were started."""
    barrier = FORK.Barrier(processes)

    def ask(worker: int) -> None:
        location, log = place.location(worker), place.log(f"single-flight-{worker}")
        with EvaluationCache(location) as cache:
            engine = engine_for(cache, location, log, 1, 0.002)
            barrier.wait()
            found = engine.evaluate_now(subsets(keys))
            assert all(evaluation.failure is None for evaluation in found)

    running = [start(ask, worker) for worker in range(processes)]
    for process in running:
        process.join()
        assert process.exitcode == 0, process.exitcode
    return sum(
        line.startswith("start")
        for file in place.folder.glob("single-flight-*.log")
        for line in file.read_text().splitlines()
    )


def _fencing_key(number: int) -> Key:
    return evaluation_key(FINGERPRINT, f"fencing {number}", {"kind": "formula", "part": 0})


def fencing(place: Ground, owners: int, ttl: float = 1.0) -> tuple[int, int]:
    """Owners are stopped before they commit, others take over, the owners continue;
    (stale accepted, refused).
    """

    def stale(number: int) -> None:
        def stop(point: str, _: str) -> None:
            if point == "before_commit":
                os.kill(os.getpid(), signal.SIGSTOP)

        with (
            EvaluationCache(place.location(0), ttl) as cache,
            cache.single_flight() as single_flight,
        ):
            single_flight.acquire([_fencing_key(number)])
            failpoints.enable(stop)
            single_flight.commit(_fencing_key(number), "stale")
            place.log(f"fencing-{number}").add("refused", cache.refused)

    def fresh() -> None:
        keys = [_fencing_key(number) for number in range(owners)]
        with (
            EvaluationCache(place.location(1), ttl) as cache,
            cache.single_flight() as single_flight,
        ):
            while len(single_flight.owned) < owners:
                single_flight.acquire(keys)
                time.sleep(0.05)
            for key in keys:
                single_flight.commit(key, "fresh")

    stopped = [start(stale, number) for number in range(owners)]
    for process in stopped:
        assert process.pid is not None
        os.waitpid(process.pid, os.WUNTRACED)
    successor = start(fresh)
    successor.join()
    assert successor.exitcode == 0, successor.exitcode
    for process in stopped:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGCONT)
    for process in stopped:
        process.join()
        assert process.exitcode == 0, process.exitcode
    with maintenance.reading(place.location(1)) as backends:
        values = {digest: entry.value for digest, entry in backends[0].scan() if entry is not None}
    accepted = sum(values[_fencing_key(number).digest] != "fresh" for number in range(owners))
    refused = sum(int(file.read_text().split()[1]) for file in place.folder.glob("fencing-*.log"))
    return accepted, refused


def outages(
    place: Ground, server: postgres.Server, crashes: int, down_seconds: float
) -> dict[str, float]:
    """PostgreSQL is crashed and stopped under load.

    Returns:
        Workers that gave up, and the longest time from the server's answering to the first commit
        in it, seconds.
    """
    end = FORK.Event()

    def work(worker: int) -> None:
        location, log = place.location(worker), place.log(f"load-{worker}")
        failpoints.enable(acknowledging(log))
        chance = random.Random(worker // 2)  # two and two ask for the same
        with EvaluationCache(location, 5.0) as cache:
            engine = engine_for(cache, location, log, 1, 0.02)
            pool = subsets(100_000)
            while not end.is_set():
                found = engine.evaluate_now(chance.sample(pool, 6))
                assert all(evaluation.failure is None for evaluation in found)

    running = [start(work, worker) for worker in range(8)]
    time.sleep(2)
    recoveries = []
    for pause in [*[0.0] * crashes, down_seconds]:
        time.sleep(1)
        server.stop("immediate" if not pause else "fast")
        time.sleep(pause)
        server.start()
        recoveries.append(_until_it_grows(place))
    end.set()
    for process in running:
        process.join()
    return {
        "gave_up": sum(process.exitcode != 0 for process in running),
        "recovery": max(recoveries),
    }


def _until_it_grows(place: Ground) -> float:
    """Seconds until another evaluation is committed to the database."""
    assert place.url is not None
    engine = sqlalchemy.create_engine(place.url)
    began, first = time.perf_counter(), None
    with engine.connect() as connection:
        while True:
            count = connection.execute(
                sqlalchemy.text("SELECT COUNT(*) FROM prunesearch_evaluations")
            ).scalar_one()
            connection.rollback()
            first = count if first is None else first
            if count > first or time.perf_counter() - began > 60:
                break
            time.sleep(0.05)
    engine.dispose()
    return time.perf_counter() - began
