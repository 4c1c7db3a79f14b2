"""Do processes share a generation through the leases of the cache, and is anything scored twice?

Each is a process of its own, on a folder with SQLite and on PostgreSQL: two equal searches at once,
a search with two helpers (`prunesearch work`), and three clients with different samplers. A stand-in
of fixed cost counts what is scored. The clock starts when all processes are ready.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import optuna

from benchmarks.support.record import Record
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.location import CacheLocation
from prunesearch.candidate import LayerSubset
from prunesearch.config.recipe import Recipe
from prunesearch.config.search import SearchSection
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.base import ChunkResult, Objective, Work
from prunesearch.pipeline.search_loop import search
from prunesearch.pipeline.session import Session
from prunesearch.pipeline.work import Helper
from prunesearch.samplers import build
from prunesearch.space import SearchSpace, Space
from prunesearch.studies import persistence
from tests.support import postgres
from tests.support.fixed_cost import FINGERPRINT, FixedCost
from tests.support.formula import FITNESS
from tests.support.processes import FORK

BLOCKS = 24
SAMPLERS = ("pso", "woa", "evolution")


@dataclass(frozen=True)
class Place:
    """Where the processes of a measurement meet.

    Attributes:
        folder: folder for caches, databases and logs.
        url: URL of the shared database. None: everything is in the folder.
        trials: trials of each study.
        seconds: cost of a candidate.
        drop: number of blocks that a candidate drops.
    """

    folder: Path
    url: str | None
    trials: int
    seconds: float
    drop: int = 6

    def location(self, process: int) -> CacheLocation:
        """Return the cache of a process. With a database, each has a folder of its own."""
        name = "cache" if self.url is None else f"cache{process}"
        return CacheLocation(self.folder / name, self.url)

    def storage(self, database: int) -> str:
        """Return the URL of the studies."""
        if self.url is not None and database == 0:
            return self.url
        return f"sqlite:///{self.folder}/study{database}.db"


class FixedCostScorer:
    """A scorer of this process with the fixed cost of the stand-in."""

    workers = 1

    def __init__(self, objective: FixedCost) -> None:
        self._objective = objective

    def score(self, work: Work, cancelled: Callable[[], bool]) -> Iterator[ChunkResult]:
        """Score candidates on chunks; see `Scorer.score`."""
        forward = SimpleNamespace(stopped=cancelled)
        yield from self._objective.score(work, cast(Forward, forward))


@contextmanager
def _session(place: Place, process: int) -> Iterator[Session]:
    """Open the stand-in as a session."""
    objective = FixedCost(1, place.seconds, place.folder / f"{process}.log")
    loaded = cast(LoadedModel, SimpleNamespace(fingerprint=FINGERPRINT, n_layers=BLOCKS))
    scored = cast(Objective, objective)
    with EvaluationCache(place.location(process)) as cache:
        engine = LocalEngine(loaded, scored, cache, FixedCostScorer(objective))
        spaces: dict[SearchSection, Space] = {
            _recipe(place).search: SearchSpace(BLOCKS, place.drop)
        }
        yield Session(loaded, scored, engine, cache, spaces)


def _recipe(place: Place) -> Recipe:
    return Recipe(model={"path": "stand-in"}, search={"drop": str(place.drop)})


def _search(
    place: Place, process: int, name: str, sampler: str, ready: Barrier, spent: "Queue[float]"
) -> None:
    """Search a study in this process, and report how long it took."""
    storage = persistence.open_storage(place.storage(process), create=True)
    with _session(place, process) as session, persistence.sole_writer(storage, name):
        study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
        study.set_user_attr(persistence.TRIALS_ATTR, place.trials)
        proposing = build(sampler, SearchSpace(BLOCKS, place.drop), seed=0)
        ready.wait()
        start = time.perf_counter()
        # As every search does, score the dense model first.
        session.engine.evaluate_now([LayerSubset.of(BLOCKS)])
        asyncio.run(search(study, proposing, session.engine, FITNESS, place.trials))
        spent.put(time.perf_counter() - start)


def _help(place: Place, process: int, name: str, ready: Barrier) -> None:
    """Help with a study in this process, as `prunesearch work` does."""
    storage = persistence.open_storage(place.storage(0), create=True)
    with _session(place, process) as session:
        ready.wait()
        study = optuna.load_study(study_name=name, storage=storage)
        Helper(session, _recipe(place), study, storage, idle_exit=10.0).run()


def _run(place: Place, samplers: Sequence[str], helpers: int = 0) -> float:
    """Run searches and helpers at once; return the seconds until the last search was done."""
    place.folder.mkdir()
    # Make the tables before, so that they are not made while the clock runs.
    for database in range(len(samplers)):
        persistence.open_storage(place.storage(database), create=True)
    ready = FORK.Barrier(len(samplers) + helpers)
    spent: Queue[float] = FORK.Queue()
    processes = []
    for number, sampler in enumerate(samplers):
        name = f"{sampler}-{place.folder.name}"
        words = (place, number, name, sampler, ready, spent)
        processes.append(FORK.Process(target=_search, args=words))
    for number in range(helpers):
        name = f"{samplers[0]}-{place.folder.name}"
        process_number = len(samplers) + number
        processes.append(FORK.Process(target=_help, args=(place, process_number, name, ready)))
    for process in processes:
        process.start()
    longest = max(spent.get(timeout=600) for _ in samplers)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return longest


def _scorings(place: Place) -> tuple[int, int]:
    """Return how often something was scored, and how many distinct results that makes."""
    lines: list[str] = []
    for log in place.folder.glob("*.log"):
        for line in log.read_text().splitlines():
            lines.append(line.rpartition(" ")[0])
    return len(lines), len(set(lines))


def measure(record: Record, scratch: Path) -> None:
    """Add the speed-ups, and the numbers of scorings, on each kind of database."""
    trials = record.by_size(120, 48, 6)
    seconds = record.by_size(1.0, 0.25, 0.01)
    _measure(record, Place(scratch / "folder", None, trials, seconds), "sqlite", lambda name: None)
    if postgres.AVAILABLE:
        with postgres.Server() as server:
            place = Place(scratch / "postgresql", None, trials, seconds)
            _measure(record, place, "postgresql", server.database)
            # Subsets of two blocks are few, so the samplers propose some of them alike.
            few = replace(place, folder=scratch / "clients", url=server.database("clients"), drop=2)
            few = replace(few, seconds=seconds / 5)
            _run(few, SAMPLERS)
            scored, distinct = _scorings(few)
            record.add("three_clients_scorings", scored, f"== {distinct}")


def _measure(
    record: Record, place: Place, kind: str, database: Callable[[str], str | None]
) -> None:
    """Add the figures of one kind of database."""

    def at(name: str) -> Place:
        folder = place.folder.with_name(f"{place.folder.name}-{name}")
        return replace(place, folder=folder, url=database(name))

    alone = _run(at("alone"), ["pso"])
    equal, helped = at("equal"), at("helped")
    record.add(f"{kind}_two_equal_searches_speedup", alone / _run(equal, ["pso", "pso"]), ">= 1.8")
    record.add(f"{kind}_two_helpers_speedup", alone / _run(helped, ["pso"], 2), ">= 2.6")
    for name, where in (("two_equal_searches", equal), ("two_helpers", helped)):
        scored, distinct = _scorings(where)
        record.add(f"{kind}_{name}_scorings", scored, f"== {distinct}")
