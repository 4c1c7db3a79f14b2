"""HellaSwag on SmolLM2: the accuracy of each search's winner on documents that no search has read.

Everything that is scored lies in a folder, so a benchmark that was stopped goes on there.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunesearch import events
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.candidate import LayerSubset
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import CONFIRM, RunOptions
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.pipeline.run import run_stages
from prunesearch.pipeline.session import load_for, objective_for
from prunesearch.pipeline.state import Request
from prunesearch.studies import persistence, selection
from prunesearch.studies.study_data import read_study

TRIALS, KL_TRIALS = 60, 200


@dataclass(frozen=True)
class RealSettings:
    """What is searched, and where its results are kept.

    Attributes:
        model: folder of the model.
        data: documents of HellaSwag.
        folder: folder of the study databases and of the cache.
        drop: number of blocks to drop.
        limit: documents that a candidate is scored on.
        trials: cost of a search in candidates scored on `limit` documents, confirmation included.
        kl_trials: trials of a search by KL.
        unseen: number of the last documents, which no search reads.
        total: number of documents.
        dtype: precision of the model.
        threads: threads of torch.
    """

    model: Path
    data: Path
    folder: Path
    drop: int
    limit: int
    trials: int
    kl_trials: int
    unseen: int
    total: int
    dtype: str = "auto"
    threads: int = 1

    def recipe(self, seed: int, task: bool) -> Recipe:
        """Return the recipe of a search, on the task or by KL."""
        values: dict[str, object] = {"model": str(self.model), "dtype": self.dtype}
        values |= {"drop": str(self.drop), "seed": seed}
        if task:
            values |= {
                "task": "hellaswag", "metric": "acc", "task_data": str(self.data),
                "limit": self.limit,
            }  # fmt: skip
        return Recipe(**values)

    @property
    def storage(self) -> str:
        """URL of the studies."""
        return f"sqlite:///{self.folder / 'study.db'}"

    def options(self, study: str, trials: int, confirm: float) -> RunOptions:
        """Return the options of a search that keeps its results in the folder."""
        return RunOptions(
            storage=self.storage,
            cache=str(self.folder / "cache"),
            study=study,
            trials=trials,
            confirm=confirm,
            threads=self.threads,
        )


@dataclass(frozen=True)
class Winners:
    """The winners of the searches of one seed.

    Attributes:
        naive: the best measured candidate of a search that spends all on trials.
        recommended: the best by the posterior after the trials that confirmation leaves.
        confirmed: the winner of the confirmation that follows.
        kl: the winner of a search by KL.
    """

    naive: LayerSubset
    recommended: LayerSubset
    confirmed: LayerSubset
    kl: LayerSubset


def winners(settings: RealSettings, seed: int) -> Winners:
    """Search with one seed. What was searched before is only read, also if another machine did it."""
    found = _finished_winners(settings, seed)
    if found is None:
        trials = round(settings.trials * (1.0 - CONFIRM))
        _search(settings, f"confirmed-{seed}", seed, trials, CONFIRM)
        _search(settings, f"recommended-{seed}", seed, trials, 0.0)
        # The trials of a seed are the same, so the longer search finds the first ones in the cache.
        _search(settings, f"naive-{seed}", seed, settings.trials, 0.0)
        _search(settings, f"kl-{seed}", seed, settings.kl_trials, 0.0, task=False)
        found = _finished_winners(settings, seed)
        assert found is not None, f"the searches of seed {seed} have no result"
    return found


def _finished_winners(settings: RealSettings, seed: int) -> Winners | None:
    """Return the winners of finished studies; None if one of the studies is not finished."""
    storage = persistence.open_storage(settings.storage, create=True)
    trials = round(settings.trials * (1.0 - CONFIRM))
    wanted = {"naive": settings.trials, "recommended": trials, "confirmed": trials}
    found = {}
    for name, count in (wanted | {"kl": settings.kl_trials}).items():
        study = f"{name}-{seed}"
        if not persistence.exists(storage, study):
            return None
        if not persistence.is_complete(storage, study, count):
            return None
        made = selection.recommendation_of(persistence.load(storage, study))
        if name != "kl" and made is None:
            return None
        data = read_study(settings.storage, study)
        best = data.best()
        assert best is not None, f"study {study} has no result"
        dropped = best.dropped
        if name == "naive" and made is not None:
            dropped = made.naive_best.dropped
        found[name] = _candidate(dropped, data.n_layers)
    return Winners(**found)


def _search(
    settings: RealSettings, study: str, seed: int, trials: int, confirm: float, task: bool = True
) -> None:
    """Search, and decide which candidate is the best. All is kept in the study."""
    options = settings.options(study, trials, confirm)
    run_stages("search", Request(options, (settings.recipe(seed, task),)))


def _candidate(dropped: str, n_layers: int) -> LayerSubset:
    return LayerSubset(n_layers, tuple(int(block) for block in dropped.split(",")))


def losses_on_unseen(
    settings: RealSettings, candidates: list[LayerSubset]
) -> dict[LayerSubset, np.ndarray]:
    """Return the losses of candidates, and of the dense model, on the documents at the end."""
    recipe, options = settings.recipe(0, task=True), settings.options("unseen", 1, 0.0)
    loaded = load_for(recipe.model, options)
    data = recipe.data.model_copy(update={"limit": settings.unseen})
    first = settings.total - settings.unseen
    objective = objective_for(recipe.objective, data, loaded, options, first=first)
    asked = [LayerSubset.of(loaded.n_layers), *candidates]
    found: dict[LayerSubset, np.ndarray] = {}
    with EvaluationCache(options.cache) as cache:
        engine = LocalEngine(loaded, objective, cache)
        # Together, so that they share blocks. Each chunk is kept as soon as all have read it.
        distinct = list(dict.fromkeys(asked))
        events.tell(events.Message(f"unseen documents: {len(distinct)} candidates"))
        for candidate, losses in zip(distinct, engine.losses(distinct), strict=True):
            found[candidate] = np.array(losses)
    return found


def in_errors(difference_D: np.ndarray) -> float:
    """Return a mean difference over documents in standard errors; 0 without a difference."""
    error = float(difference_D.std(ddof=1)) / math.sqrt(len(difference_D))
    return 0.0 if error == 0 else float(difference_D.mean()) / error


def further_documents(settings: RealSettings, seed: int) -> int:
    """Return how many further documents the confirmation of a seed took."""
    storage = persistence.open_storage(settings.storage, create=False)
    made = selection.recommendation_of(persistence.load(storage, f"confirmed-{seed}"))
    return 0 if made is None else made.further
