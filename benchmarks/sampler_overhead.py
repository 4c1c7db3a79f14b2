"""What a sampler costs beside the evaluation: time per ask, commits, and how fast a long study
opens.

    python -m benchmarks.sampler_overhead --json FILE

80 blocks, 20 of them dropped, 20 particles, studies of 0 to 10,000 finished trials in SQLite. The
sampler's time is the time inside `propose`, generations and their surrogate included, averaged over
whole generations; storage comes on top and is listed apart. Commits are counted where the database
driver makes them.

The median, the 99th percentile and the longest of single proposals are measured apart, on studies
in memory of 80 and of 160 units with 1,000 to 10,000 trials.
"""

import itertools
import json
import shutil
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna
import sqlalchemy
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from benchmarks.support.record import Record, arguments
from prunesearch.algorithms.registry import names_with
from prunesearch.samplers import SubsetSampler, annotate, build
from prunesearch.space import SearchSpace
from prunesearch.studies.persistence import open_storage

SPACE = SearchSpace(80, 20)
POPULATION = 20
HARM = np.random.default_rng(0).gamma(0.5, size=80)
LARGEST = 10_000


def loss(dropped: tuple[int, ...]) -> float:
    """An additive loss with cheaper neighbours, so that the surrogate has something to do."""
    near = sum(b - a == 1 for a, b in itertools.pairwise(dropped))
    return float(np.exp((HARM[list(dropped)].sum() - 0.2 * near) / 5))


def fill(study: Study, trials: int) -> None:
    """Add finished random trials, as a week of searching leaves them."""
    rng = np.random.default_rng(1)
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.IntDistribution(0, 1) for name in SPACE.param_names
    }
    for _ in range(trials):
        candidate = SPACE.candidate(sorted(rng.choice(80, 20, replace=False).tolist()))
        value = loss(candidate.dropped)
        study.add_trial(
            create_trial(
                value=value,
                params=SPACE.to_params(candidate),
                distributions=distributions,
                user_attrs={
                    "dropped": candidate.text,
                    "cache": "computed",
                    "kl": value,
                    "seconds": 1.0,
                },
                system_attrs={
                    "ps:s": json.dumps({"by": "pso", "m": {"v": {"n": 80, "3": 0.25, "7": 0.5}}})
                },
            )
        )


class Commits:
    """Counts the transactions of a database engine that wrote something;
    those that only read cost no fsync.
    """

    def __init__(self, engine: sqlalchemy.Engine) -> None:
        self.count = 0
        self._wrote = False
        sqlalchemy.event.listen(engine, "before_cursor_execute", self._execute)
        sqlalchemy.event.listen(engine, "commit", self._commit)

    def _execute(self, connection: object, cursor: object, statement: str, *_: object) -> None:
        self._wrote |= statement.lstrip()[:6].upper() in ("INSERT", "UPDATE", "DELETE")

    def _commit(self, connection: object) -> None:
        self.count += self._wrote
        self._wrote = False


def steps(study: Study, sampler: SubsetSampler, generations: int) -> tuple[float, float, float]:
    """Ask and tell whole generations: mean milliseconds of `propose`, of the whole ask, and of the
    tell.
    """
    spent: list[float] = []
    original = sampler.propose

    def timed(study: Study, number: int) -> object:
        start = time.perf_counter()
        proposal = original(study, number)
        spent.append(time.perf_counter() - start)
        return proposal

    sampler.propose = timed  # type: ignore[assignment,method-assign]
    asks, tells = [], []
    for _ in range(generations):
        asked = []
        for _ in range(POPULATION):
            start = time.perf_counter()
            asked.append(
                sampler.ask(study, lambda candidate: {"bytes": 1, "params": 1, "latency_ms": 1.0})
            )
            asks.append(time.perf_counter() - start)
        for proposal in asked:
            value = loss(proposal.candidate.dropped)
            start = time.perf_counter()
            annotate(study, proposal.number, {"cache": "computed", "seconds": 1.0, "kl": value})
            study.tell(proposal.number, value)
            tells.append(time.perf_counter() - start)
    return (
        1000 * statistics.mean(spent),
        1000 * statistics.mean(asks),
        1000 * statistics.mean(tells),
    )


def single_proposals(
    name: str, units: int, trials: int, generations: int
) -> tuple[list[float], float]:
    """Time every proposal of some generations after random trials, in a study in memory.

    Args:
        name: name of the sampler.
        units: number of units, of which a quarter is dropped.
        trials: number of finished trials.
        generations: number of generations.

    Returns:
        The milliseconds of each proposal, and the seconds until the first one of a process, which
        reads all trials.
    """
    space = SearchSpace(units, units // 4)
    harm_D = np.random.default_rng(0).gamma(0.5, size=units)

    def value_of(dropped: tuple[int, ...]) -> float:
        near = sum(b - a == 1 for a, b in itertools.pairwise(dropped))
        return float(np.exp((harm_D[list(dropped)].sum() - 0.2 * near) / 5))

    # Fill a study in memory, so that nothing but the sampler is timed.
    study = optuna.create_study()
    rng = np.random.default_rng(1)
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        parameter: optuna.distributions.IntDistribution(0, 1) for parameter in space.param_names
    }
    stored = json.dumps({"by": name, "m": {"v": {"n": units, "3": 0.25, "7": 0.5}}})
    for _ in range(trials):
        dropped = sorted(rng.choice(units, units // 4, replace=False).tolist())
        candidate = space.candidate(dropped)
        study.add_trial(
            create_trial(
                value=value_of(candidate.dropped),
                params=space.to_params(candidate),
                distributions=distributions,
                system_attrs={"ps:s": stored},
            )
        )
    # The first proposal opens the study.
    sampler = build(name, space, population=POPULATION)
    start = time.perf_counter()
    sampler.propose(study, trials)
    opened = time.perf_counter() - start
    spent = []
    for generation in range(generations):
        first = trials + generation * POPULATION
        for number in range(first, first + POPULATION):
            start = time.perf_counter()
            sampler.propose(study, number)
            spent.append(1000 * (time.perf_counter() - start))
            sampler.ask(study)
        for number in range(first, first + POPULATION):
            trial = study.get_trials(deepcopy=False)[number]
            study.tell(number, value_of(space.from_params(trial.params).dropped))
    return spent, opened


def bursts(record: Record) -> None:
    """Record the median, the 99th percentile and the longest of single proposals."""
    sizes = record.by_size((1000, 5000, LARGEST), (1000,), (60,))
    for name in ("pso", "woa"):
        for units in record.by_size((80, 160), (80, 160), (40,)):
            for trials in sizes:
                spent, opened = single_proposals(name, units, trials, record.by_size(10, 5, 1))
                case = f"{name}_{units}_units_{trials}_trials"
                record.add(f"{case}_p50_ms", float(np.median(spent)), "<= 3")
                record.add(f"{case}_p99_ms", float(np.percentile(spent, 99)), "<= 15")
                record.add(f"{case}_longest_ms", max(spent))
                record.add(f"{case}_first_proposal_s", opened)


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    record = Record("sampler_overhead", options.size)
    sizes = record.by_size((0, 1000, LARGEST), (0, 1000), (0, 60))
    with tempfile.TemporaryDirectory() as folder:
        filled = {size: Path(folder) / f"{size}.db" for size in sizes}
        for size, path in filled.items():
            study = optuna.create_study(
                storage=open_storage(f"sqlite:///{path}", create=True), study_name="s"
            )
            fill(study, size)
        for size, path in filled.items():
            for name in names_with("surrogate"):
                copy = Path(folder) / f"{name}-{size}.db"
                shutil.copy(path, copy)
                storage = open_storage(f"sqlite:///{copy}", create=False)
                study = optuna.load_study(storage=storage, study_name="s")
                sampler = build(name, SPACE, population=POPULATION)
                start = time.perf_counter()
                sampler.propose(study, sampler.trial_log(study).count())
                opened = time.perf_counter() - start
                if name == "pso" and size == max(sizes):
                    record.add(f"open_s_{size}_trials", opened, "<= 5")
                commits = Commits(storage.engine)
                propose, ask, tell = steps(study, sampler, record.by_size(5, 5, 1))
                record.add(f"{name}_propose_ms_{size}_trials", propose, "<= 3")
                record.add(f"{name}_ask_with_storage_ms_{size}_trials", ask)
                record.add(f"{name}_tell_with_storage_ms_{size}_trials", tell)
                if size == sizes[0]:
                    before = commits.count
                    sampler.ask(study)
                    record.add(f"{name}_commits_per_ask", commits.count - before, "<= 2")
                    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))[0]
                    before = commits.count
                    annotate(
                        study, running.number, {"cache": "computed", "seconds": 1.0, "kl": 1.0}
                    )
                    study.tell(running.number, 1.0)
                    record.add(f"{name}_commits_per_tell", commits.count - before, "<= 1")
        if LARGEST in sizes:
            record.add("open_s_10000_trials_optuna", _plain_open(filled[LARGEST]))
    bursts(record)
    record.notes["sqlite"] = sqlite3.sqlite_version
    record.finish(options.json)


def _plain_open(path: Path) -> float:
    """Seconds that Optuna's own storage takes to read the same study."""
    start = time.perf_counter()
    optuna.load_study(storage=f"sqlite:///{path}", study_name="s").get_trials(deepcopy=False)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
