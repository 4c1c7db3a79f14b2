"""Searches of a formula in this process, and their trials."""

import asyncio
from pathlib import Path
from typing import Any

import optuna

from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.location import CacheLocation
from prunesearch.pipeline.search_loop import search
from prunesearch.samplers import build
from prunesearch.studies import persistence
from tests.support.formula import FITNESS, SPACE, Log, engine_for


def search_in(url: str, folder: Path, sampler: str, trials: int, name: str = "s") -> None:
    """Bring a study in a database to a number of trials."""
    location = CacheLocation(folder / "cache")
    with EvaluationCache(location) as cache:
        engine = engine_for(cache, location, Log(folder / "log"), 1, 0.0)
        storage = persistence.open_storage(url, create=True)
        with persistence.database_failures(name, storage), persistence.sole_writer(storage, name):
            study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
            asyncio.run(search(study, build(sampler, SPACE, seed=3), engine, FITNESS, trials))
        storage.engine.dispose()


def trials_of(url: str, name: str = "s") -> list[dict[str, Any]]:
    """Everything of a study's trials that does not depend on time."""
    found = []
    for trial in optuna.load_study(storage=url, study_name=name).trials:
        attributes = {
            key: value
            for key, value in trial.user_attrs.items()
            if key not in ("seconds", "saved_seconds", "cache")
        }
        found.append(
            {
                "number": trial.number,
                "state": trial.state,
                "values": trial.values,
                "params": trial.params,
                "user": attributes,
                "system": trial.system_attrs,
                "steps": trial.intermediate_values,
            }
        )
    return found
