"""Searches whose database of studies is crashed, stopped, or cut off, and what became of them."""

import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path

import optuna

from tests.support import postgres
from tests.support.killed_searches import start
from tests.support.processes import FORK
from tests.support.proxy import Proxy
from tests.support.searches import search_in, trials_of

SAMPLERS = ("pso", "woa", "gwo")
TRIALS = 40


@dataclass(frozen=True)
class StudyOutages:
    """What became of the searches.

    Attributes:
        outages: number of crashes and stops, or of cuts.
        studies: number of studies that were searched to their end.
        gave_up: number of processes that ended with an error.
        changed: number of studies whose trials differ from those of an unbroken search.
    """

    outages: int
    studies: int
    gave_up: int
    changed: int


def crash_server(server: postgres.Server, crashes: int, down_seconds: float) -> StudyOutages:
    """Crash a server several times, and stop it once for a while, under three searches."""

    def disturb() -> int:
        for pause in [*[0.0] * crashes, down_seconds]:
            time.sleep(1.0)
            server.stop("fast" if pause else "immediate")
            time.sleep(pause)
            server.start()
        return crashes + 1

    return _searched(server.database("crashes"), lambda url: url, disturb)


def cut_connections(server: postgres.Server, cuts: int, seed: int = 0) -> StudyOutages:
    """Cut connections under three searches, most of them at commits."""
    with Proxy(server.port, seed, most=cuts) as proxy:

        def disturb() -> int:
            proxy.at_commit, proxy.elsewhere = 0.1, 0.005
            while proxy.cuts.total() < cuts:
                time.sleep(0.05)
            return proxy.cuts.total()

        return _searched(server.database("cuts"), proxy.url, disturb)


def _searched(url: str, through: Callable[[str], str], disturb: Callable[[], int]) -> StudyOutages:
    """Search in three processes while the database is disturbed, and compare the studies."""
    with tempfile.TemporaryDirectory(prefix="outages-") as folder:
        place = Path(folder)
        # The first search makes the tables.
        search_in(url, place, "pso", 1, "first")
        end, ready = FORK.Event(), FORK.Barrier(len(SAMPLERS) + 1)

        def work(sampler: str) -> None:
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            own = place / sampler
            own.mkdir()
            # An open database that goes away is waited for.
            search_in(through(url), own, sampler, 1, f"{sampler}-0")
            ready.wait()
            for number in itertools.count():
                search_in(through(url), own, sampler, TRIALS, f"{sampler}-{number}")
                if end.is_set():
                    return

        running: list[ForkProcess] = [start(work, sampler) for sampler in SAMPLERS]
        ready.wait()
        outages = disturb()
        end.set()
        for process in running:
            process.join()
        gave_up = sum(process.exitcode != 0 for process in running)
        # Unbroken searches give the trials that are expected of every study of a sampler.
        expected = {}
        for sampler in SAMPLERS:
            file = f"sqlite:///{place}/unbroken-{sampler}.db"
            search_in(file, place, sampler, TRIALS)
            expected[sampler] = trials_of(file)
        names = [name for name in optuna.get_all_study_names(url) if name != "first"]
        changed = 0
        for name in names:
            if trials_of(url, name) != expected[name.partition("-")[0]]:
                changed += 1
        return StudyOutages(outages, len(names), gave_up, changed)
