"""Studies of the stand-in of fixed cost, whose workers are disturbed while they score."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import optuna

from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.evaluation.cached_scorer import Scorer
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.objectives.base import ChunkResult, Work
from prunesearch.pipeline.search_loop import search
from prunesearch.samplers import build
from tests.support.fixed_cost import FINGERPRINT, FixedCost
from tests.support.formula import FITNESS, SPACE

CHUNKS = 2


class InProcess:
    """A scorer of this process, without the cost.

    Attributes:
        count: number of results that were scored.
    """

    workers = 1

    def __init__(self) -> None:
        self.count = 0

    def score(self, work: Work, cancelled: Callable[[], bool]) -> Iterator[ChunkResult]:
        """Score in this process."""
        forward = SimpleNamespace(stopped=lambda: False)
        for result in FixedCost(CHUNKS, 0).score(work, forward):  # type: ignore[arg-type]
            self.count += 1
            yield result


class Disturbed:
    """A scorer to which something happens after some results.

    Args:
        scorer: the scorer.
        after: number of results.
        act: what happens.

    Attributes:
        pause: longest time between two results of one generation after that, seconds.
    """

    def __init__(self, scorer: Scorer, after: int, act: Callable[[], None]) -> None:
        self.workers = scorer.workers
        self.pause = 0.0
        self._scorer, self._left, self._act = scorer, after, act

    def score(self, work: Work, cancelled: Callable[[], bool]) -> Iterator[ChunkResult]:
        """Score with the scorer."""
        last = time.monotonic()
        for result in self._scorer.score(work, cancelled):
            if self._left <= 0:
                self.pause = max(self.pause, time.monotonic() - last)
            self._left -= 1
            if self._left == 0:
                self._act()
            last = time.monotonic()
            yield result


def trials_of(scorer: Scorer, cache_folder: Path, trials: int) -> str:
    """Search anew, and return all that is stored of the trials, but for times."""
    with EvaluationCache(cache_folder) as cache:
        loaded = SimpleNamespace(fingerprint=FINGERPRINT)
        engine = LocalEngine(loaded, FixedCost(CHUNKS, 0), cache, scorer)  # type: ignore[arg-type]
        study = optuna.create_study()
        asyncio.run(search(study, build("pso", SPACE, seed=3), engine, FITNESS, trials))
    rows = []
    for trial in study.trials:
        attrs = {name: each for name, each in trial.user_attrs.items() if name != "seconds"}
        state, system = trial.state.name, trial.system_attrs
        rows.append([trial.number, state, trial.params, trial.values, attrs, system])
    return json.dumps(rows, sort_keys=True, default=str)


def lost(cache_folder: Path, trials: int) -> int:
    """Return how many results of a search are not in its cache."""
    scorer = InProcess()
    trials_of(scorer, cache_folder, trials)
    return scorer.count
