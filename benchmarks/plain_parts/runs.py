"""Runs of samplers on test functions, kept in a folder so that a killed benchmark goes on."""

import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalChoiceType
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from benchmarks.support.plain_problems import FRONTS, problem
from prunesearch import PSOSampler, WOASampler

RULES = 1
"""Number of the rules by which our samplers propose; a new one makes their runs new."""
Real = NDArray[np.float64]
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed),
    "cmaes": lambda seed: CmaEsSampler(seed=seed),
    "nsga2": lambda seed: NSGAIISampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
    "pso": lambda seed: PSOSampler(seed=seed),
    "woa": lambda seed: WOASampler(seed=seed),
    "pso-textbook": lambda seed: PSOSampler(seed=seed, preselect=False),
    "woa-textbook": lambda seed: WOASampler(seed=seed, preselect=False),
}
"""Samplers with their defaults."""


@dataclass(frozen=True)
class Runs:
    """Finished runs in a folder.

    Attributes:
        folder: folder of the runs; it is made if it does not exist.
    """

    folder: Path

    def losses(self, name: str, sampler: str, seed: int, trials: int) -> Real:
        """Return the loss of each trial of a run with one objective."""

        def run() -> list[float]:
            task = problem(name, seed)
            study = optuna.create_study(sampler=SAMPLERS[sampler](seed))
            losses = []
            for _ in range(trials):
                trial = study.ask(task.space)
                losses.append(task.loss(trial.params))
                study.tell(trial, losses[-1])
            return losses

        return np.array(self._kept(f"{name}-{sampler}-{seed}", trials, run))

    def hypervolume(self, name: str, sampler: str, seed: int, trials: int) -> float:
        """Return the share of the box below the reference point that a run with two objectives
        dominates.
        """

        def run() -> list[float]:
            front = FRONTS[name]
            study = optuna.create_study(
                directions=["minimize", "minimize"], sampler=SAMPLERS[sampler](seed)
            )
            for _ in range(trials):
                trial = study.ask(front.space)
                study.tell(trial, front.losses(trial.params, seed))
            return [dominated_share(np.array([t.values for t in study.trials]), front.reference)]

        return self._kept(f"{name}-{sampler}-{seed}", trials, run)[0]

    def feasible(self, sampler: str, seed: int, trials: int, last: int) -> int:
        """Return how many of the last trials keep a constraint, whose border the optimum lies on."""

        def run() -> list[float]:
            study = optuna.create_study(sampler=SAMPLERS[sampler](seed))
            study.optimize(_constrained, n_trials=trials)
            kept = [max(trial.constraints.values()) <= 0.0 for trial in study.trials]
            return [float(sum(kept[-last:]))]

        return int(self._kept(f"constraints-{sampler}-{seed}-{last}", trials, run)[0])

    def _kept(self, key: str, trials: int, run: Callable[[], list[float]]) -> list[float]:
        """Return the result of a run: the stored one, or run it and store it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{key}-{trials}-rules{RULES}-optuna{optuna.__version__}.json"
        if path.is_file():
            stored: list[float] = json.loads(path.read_text())
            return stored
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            result = run()
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(result))
        part.replace(path)
        return result


def dominated_share(loss_NO: Real, reference: tuple[float, float]) -> float:
    """Return the share of the box from the origin to the reference that two objectives dominate."""
    inside_NO = loss_NO[(loss_NO < reference).all(axis=1)]
    area, lowest = 0.0, reference[1]
    for first, second in inside_NO[np.lexsort(inside_NO.T[::-1])]:
        if second < lowest:
            area += (reference[0] - first) * (lowest - second)
            lowest = second
    return float(area / (reference[0] * reference[1]))


def _constrained(trial: Trial) -> float:
    """A bowl whose least is where nothing is feasible: the feasible share of the box is a third."""
    x = [trial.suggest_float(f"x{index}", 0.0, 5.0) for index in range(4)]
    trial.set_constraint("sum", 11.0 - sum(x))
    return float(sum((value - 1.0) ** 2 for value in x))


class Timed(BaseSampler):
    """Measures the CPU seconds that another sampler takes to propose."""

    def __init__(self, inner: BaseSampler) -> None:
        self.inner, self.spent = inner, 0.0

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Delegate."""
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Delegate, and measure."""
        start = time.process_time()
        space = self.inner.infer_relative_search_space(study, trial)
        self.spent += time.process_time() - start
        return space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Delegate, and measure."""
        start = time.process_time()
        params = self.inner.sample_relative(study, trial, search_space)
        self.spent += time.process_time() - start
        return params

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> CategoricalChoiceType:
        """Delegate, and measure."""
        start = time.process_time()
        value: CategoricalChoiceType = self.inner.sample_independent(
            study, trial, param_name, param_distribution
        )
        self.spent += time.process_time() - start
        return value


def ask_ms(sampler: str, trials: int, storage: str | None) -> float:
    """Return the CPU milliseconds per trial of a sampler's own work, in a study with many trials.

    The mean is over two generations of 10, after one that reads the study.

    Args:
        sampler: name of the sampler.
        trials: number of trials before.
        storage: URL of the storage; None for one in memory.
    """
    task, timed = problem("rastrigin-10", 0), Timed(SAMPLERS[sampler](0))
    study = optuna.create_study(storage=storage, sampler=timed)
    rng = np.random.default_rng(0)
    templates = []
    for _ in range(trials):
        params = {name: rng.uniform(-5.12, 5.12) for name in task.space}
        templates.append(
            optuna.create_trial(params=params, distributions=task.space, value=task.loss(params))
        )
    study.add_trials(templates)

    def objective(trial: Trial) -> float:
        return task.loss({name: trial.suggest_float(name, -5.12, 5.12) for name in task.space})

    study.optimize(objective, n_trials=10)
    before = timed.spent
    study.optimize(objective, n_trials=20)
    return 1000.0 * (timed.spent - before) / 20
