"""A killed and resumed study has the trials of an unbroken one, byte for byte; so have three
workers together.

    python -m benchmarks.resume_identity --json FILE

Twenty studies (PSO and WOA, ten seeds each) are searched through `search_loop.search` in SQLite by
a process that kills itself with SIGKILL before a random statement to the database, ten times, and
is started again each time. Then the same studies are sampled by three synchronous worker processes
under ``study.optimize``. Dumps of all trials (numbers, parameters, values, states, attributes, the
sampler's state; no times) are compared with those of one unbroken run.
"""

import asyncio
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Sequence

import optuna
import sqlalchemy
from optuna.study import MaxTrialsCallback

from benchmarks.support.record import Record, arguments
from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.config.objective import ScoreWeights
from prunesearch.evaluation.scalarization import TrialScalarizer
from prunesearch.execution.latency import LatencyModel
from prunesearch.models.sizes import Sizes
from prunesearch.objectives.race import Race
from prunesearch.pipeline.search_loop import search
from prunesearch.samplers import PSOSampler, WOASampler, build
from prunesearch.space import SearchSpace
from prunesearch.studies.persistence import open_storage

SPACE = SearchSpace(24, 6)
TRIALS = 48
KILLS = 10
FORK = multiprocessing.get_context("fork")  # a worker starts in milliseconds, and dies alone
FITNESS = TrialScalarizer(
    "kl",
    False,
    ScoreWeights(),
    Sizes((10,) * 24, (4,) * 24, 100, 2),
    LatencyModel((1.0,) * 24, (0.4,) * 24, 2.0),
)


class Formula:
    """An engine whose model is a formula."""

    workers = 1

    async def evaluate(
        self, candidates: Sequence[LayerSubset], race: Race | None = None
    ) -> AsyncIterator[Evaluation]:
        """Evaluate at once."""
        for candidate in candidates:
            yield Evaluation(candidate, {"kl": loss(candidate)}, seconds=1.0)


def loss(candidate: LayerSubset) -> float:
    """Blocks cost what a hash of their number says; neighbours are cheaper together."""
    cost = [hashlib.sha256(str(i).encode()).digest()[0] / 255 for i in candidate.dropped]
    return sum(cost) - 0.2 * sum(b - a == 1 for a, b in itertools.pairwise(candidate.dropped))


def run_search(url: str, name: str, seed: int, trials: int, die_before: int | None) -> None:
    """Bring a study to its end, or die before a statement to the database."""
    storage = open_storage(url, create=True)
    if die_before is not None:
        count = itertools.count(1)

        def die(*_: object) -> None:
            if next(count) == die_before:
                os.kill(os.getpid(), signal.SIGKILL)

        sqlalchemy.event.listen(storage.engine, "before_cursor_execute", die)
    study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
    asyncio.run(search(study, build(name, SPACE, seed=seed), Formula(), FITNESS, trials))


def run_worker(url: str, name: str, seed: int, trials: int) -> None:
    """One of several workers under ``study.optimize``."""
    sampler = (PSOSampler if name == "pso" else WOASampler)(SPACE, seed=seed)
    study = optuna.load_study(
        storage=open_storage(url, create=False), study_name="s", sampler=sampler
    )

    def objective(trial: optuna.Trial) -> float:
        candidate = SPACE.from_params({n: trial.suggest_int(n, 0, 1) for n in SPACE.param_names})
        time.sleep(random.random() / 50)  # so that trials finish out of order
        return loss(candidate)

    study.optimize(objective, callbacks=[MaxTrialsCallback(trials, states=None)])


def in_process(target: object, *args: object) -> int:
    """Run in a process of its own and return how it ended."""
    process = FORK.Process(target=target, args=args)  # type: ignore[arg-type]
    process.start()
    process.join()
    return int(process.exitcode or 0)


def dump(url: str, trials: int, *, whole: bool) -> bytes:
    """The study's trials as canonical bytes;
    `whole` with attributes, which ``study.optimize`` writes otherwise.
    """
    study = optuna.load_study(storage=open_storage(url, create=False), study_name="s")
    rows = [
        [
            t.number,
            t.state.name,
            t.params,
            t.values,
            *([t.user_attrs, t.system_attrs] if whole else []),
        ]
        for t in study.trials[:trials]
    ]
    return json.dumps(rows, sort_keys=True).encode()


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    record = Record("resume_identity", options.size)
    seeds = range(record.by_size(10, 2, 1))
    wanted, trials = record.by_size((KILLS, TRIALS), (KILLS, TRIALS), (1, 14))
    identical = shared = kills = 0
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        for name, seed in itertools.product(("pso", "woa"), seeds):
            unbroken, killed, many = (
                f"sqlite:///{folder}/{name}-{seed}-{kind}.db" for kind in "ukm"
            )
            in_process(run_search, unbroken, name, seed, trials, None)
            reference = dump(unbroken, trials, whole=True)
            died = 0
            while died < wanted:
                # Long enough to get somewhere, short enough that the study is not over before the
                # tenth kill.
                died += (
                    in_process(
                        run_search, killed, name, seed, trials, chance.randint(1, 5 * trials)
                    )
                    == -signal.SIGKILL
                )
            assert in_process(run_search, killed, name, seed, trials, None) == 0
            kills += died
            identical += dump(killed, trials, whole=True) == reference
            optuna.create_study(storage=open_storage(many, create=True), study_name="s")
            workers = [
                FORK.Process(target=run_worker, args=(many, name, seed, trials)) for _ in range(3)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            shared += dump(many, trials, whole=False) == dump(unbroken, trials, whole=False)
    record.add("studies", 2 * len(seeds))
    record.add("kills", kills)
    record.add("identical_after_kills", identical, f"== {2 * len(seeds)}")
    record.add("identical_with_three_workers", shared, f"== {2 * len(seeds)}")
    record.finish(options.json)


if __name__ == "__main__":
    main()
