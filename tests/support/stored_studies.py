"""Studies in a database, written without a search."""

import json

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from prunesearch.config.recipe import Recipe
from prunesearch.studies import persistence
from prunesearch.studies.recommendation import (
    Recommendation,
    ScoredFinalist,
    store_recommendation,
)

CHOICE = CategoricalDistribution((False, True))


def trial(
    number: int, *values: float, state: TrialState = TrialState.COMPLETE, **attributes: object
) -> FrozenTrial:
    """A trial that drops two of four layers."""
    drops = {number % 4, (number + 1 + number // 4 % 3) % 4}
    params = {f"drop_{layer:02}": layer in drops for layer in range(4)}
    dropped = ",".join(str(layer) for layer in sorted(drops))
    return create_trial(
        state=state,
        values=values or None,
        params=params,
        distributions=dict.fromkeys(params, CHOICE),
        user_attrs={"dropped": dropped, "cache": "computed", **attributes},
    )


def store_study(
    storage: str | RDBStorage,
    name: str,
    trials: list[FrozenTrial],
    *,
    maximize: tuple[bool, ...] = (False,),
) -> None:
    """Write a study with a recipe."""
    database = storage
    if isinstance(storage, str):
        database = persistence.open_storage(storage, create=True)
    directions = [StudyDirection.MAXIMIZE if more else StudyDirection.MINIMIZE for more in maximize]
    study = optuna.create_study(storage=database, study_name=name, directions=directions)
    drop = "2" if len(maximize) == 1 else "pareto:50%"
    recipe = Recipe(model="/secret/folder/tiny", search={"drop": drop})
    study.set_user_attr("identity", json.dumps(recipe.identity()))
    study.set_user_attr("recipe", json.dumps(recipe.document()))
    study.add_trials(trials)


def recommend(storage: str, name: str, chosen: int, naive: int, trials: int) -> None:
    """Store that a trial of a study was confirmed, and that another has the best measured value."""
    finalists = (
        ScoredFinalist(chosen, "1,2", 0.41, 0.40, 0.02, 400, 0.38, 0.01),
        ScoredFinalist(naive, "0,1", 0.46, 0.39, 0.02, 100, 0.35, 0.05),
    )
    made = Recommendation(
        trials=trials, documents=100, chosen=chosen, naive=naive, finalists=finalists, budget=600,
        spent=500, further=400,
    )  # fmt: skip
    store_recommendation(study_of(storage, name), made)


def study_of(storage: str, name: str) -> optuna.Study:
    """Open a stored study."""
    database = persistence.open_storage(storage, create=False)
    return optuna.load_study(study_name=name, storage=database)
