"""A search whose model is a formula, in processes that can be killed: real engine, store, sampler
and study.
"""

import asyncio
import hashlib
import itertools
import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import optuna
import sqlalchemy

from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.keys import evaluation_key
from prunesearch.cache.location import CacheLocation
from prunesearch.cache.repair import FILE
from prunesearch.candidate import LayerSubset
from prunesearch.config.objective import ScoreWeights
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.evaluation.scalarization import TrialScalarizer
from prunesearch.execution.latency import LatencyModel
from prunesearch.models.sizes import Sizes
from prunesearch.objectives.base import Chunk, ChunkResult, Metrics, Work
from prunesearch.pipeline.search_loop import search
from prunesearch.runtime import failpoints
from prunesearch.samplers import build
from prunesearch.space import SearchSpace
from prunesearch.studies.persistence import open_storage, sole_writer

SPACE = SearchSpace(24, 6)
FINGERPRINT = "f" * 64
FITNESS = TrialScalarizer(
    "kl",
    False,
    ScoreWeights(),
    Sizes((10,) * 24, (4,) * 24, 100, 2),
    LatencyModel((1.0,) * 24, (0.4,) * 24, 2.0),
)


def value(candidate: str, part: int) -> list[list[float]]:
    """What a candidate scores on a chunk: what a hash of both says."""
    digest = hashlib.sha256(f"{candidate} {part}".encode()).digest()
    return [[digest[0] / 255, digest[1] / 255, 16]]


def expected(preimage: str) -> list[list[float]]:
    """The value that belongs to a key."""
    fields = json.loads(preimage)
    return value(fields["candidate"], fields["chunk"]["part"])


class Formula:
    """An objective without data."""

    metric, maximize, digest = "kl", False, "formula"
    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, chunks: int) -> None:
        self.chunks = [Chunk(i, {"kind": "formula", "part": i}, 16) for i in range(chunks)]

    def score(self, work: Work, forward: object) -> Iterator[ChunkResult]:
        """Nobody asks: a `LoggedScorer` does it."""
        raise NotImplementedError

    def metrics(self, results: Sequence[list[Any]]) -> Metrics:
        """Their mean."""
        return Metrics({"kl": sum(rows[0][0] for rows in results) / len(results)})

    def losses(self, results: Sequence[list[Any]]) -> Sequence[float]:
        """Of each chunk."""
        return [rows[0][0] for rows in results]


@dataclass
class Log:
    """Lines of one process, each synced to disk before the process goes on."""

    path: Path

    def add(self, *words: object) -> None:
        """Write a line."""
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(handle, (" ".join(map(str, words)) + "\n").encode())
        os.fsync(handle)
        os.close(handle)


class LoggedScorer:
    """Sleeps instead of scoring;
    notes what it starts, and whether a committed result was there already.
    """

    workers = 1

    def __init__(self, location: CacheLocation, log: Log, seconds: float) -> None:
        self._log, self._seconds = log, seconds
        self._committed = _lookup(location)

    def score(self, work: Work, cancelled: Callable[[], bool]) -> Iterator[ChunkResult]:
        """Score candidates on chunks, one by one."""
        for piece in work:
            chunk = piece.chunk
            for candidate in piece.candidates:
                digest = evaluation_key(FINGERPRINT, candidate.canonical, chunk.identity).digest
                self._log.add("start", digest, int(self._committed(digest)))
                time.sleep(self._seconds)
                yield ChunkResult(chunk, candidate, value(candidate.canonical, chunk.index))


def _lookup(location: CacheLocation) -> Callable[[str], bool]:
    """Asks the cache's database itself whether a key was committed, past the code under test."""
    if location.url is None:
        file = location.folder / FILE

        def on_disk(digest: str) -> bool:
            with closing(sqlite3.connect(file, timeout=60)) as connection:
                return bool(
                    connection.execute("SELECT 1 FROM Cache WHERE key = ?", (digest,)).fetchone()
                )

        return on_disk
    engine = sqlalchemy.create_engine(location.url, pool_pre_ping=True)
    query = sqlalchemy.text("SELECT 1 FROM prunesearch_evaluations WHERE key = :key")

    def in_database(digest: str) -> bool:
        try:
            with engine.connect() as connection:
                return bool(connection.execute(query, {"key": digest}).first())
        except sqlalchemy.exc.DBAPIError:  # it is down: nobody can know
            return False

    return in_database


def engine_for(
    cache: EvaluationCache, location: CacheLocation, log: Log, chunks: int, seconds: float
) -> LocalEngine:
    """A real engine around the formula."""
    scorer = LoggedScorer(location, log, seconds)
    return LocalEngine(SimpleNamespace(fingerprint=FINGERPRINT), Formula(chunks), cache, scorer)  # type: ignore[arg-type]


def acknowledging(log: Log, fuse: Mapping[str, int] | None = None) -> Callable[[str, str], None]:
    """What a worker does at failpoints: after a commit it acknowledges;
    where its fuse says so, it dies.
    """
    left = dict(fuse or {})

    def reached(point: str, subject: str) -> None:
        if point in left:
            left[point] -= 1
            if left[point] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        if point == "after_commit":
            log.add("acknowledged", subject)

    return reached


def run_searches(
    location: CacheLocation,
    storage: str,
    log: Log,
    names: Sequence[tuple[str, str, int]],
    trials: int,
    fuse: Mapping[str, int],
) -> None:
    """Bring studies (name, sampler, seed) to their end, one after the other."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    failpoints.enable(acknowledging(log, fuse))
    with EvaluationCache(location) as cache:
        database = open_storage(storage, create=True)
        engine = engine_for(cache, location, log, 2, 0.005)
        for name, sampler, seed in names:
            with sole_writer(database, name):
                study = optuna.create_study(storage=database, study_name=name, load_if_exists=True)
                asyncio.run(
                    search(study, build(sampler, SPACE, seed=seed), engine, FITNESS, trials)
                )


def subsets(count: int) -> list[LayerSubset]:
    """The first subsets of the space."""
    found = itertools.islice(itertools.combinations(range(SPACE.n_layers), 6), count)
    return [LayerSubset.of(SPACE.n_layers, dropped) for dropped in found]
