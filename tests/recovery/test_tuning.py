"""A tuning study is stored, goes on where it was, and does not finish what is hopeless."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from prunesearch.candidate import LayerSubset
from prunesearch.config.recovery import Tuning
from prunesearch.errors import InputError, RunError, StudyError
from prunesearch.events import Event, HealProgress, subscribed
from prunesearch.models.loading import LoadedModel
from prunesearch.recovery import HealRecipe, tuning
from prunesearch.recovery.tuning import Tuned, tune
from tests.support.models import N_LAYERS

CANDIDATE = LayerSubset.of(N_LAYERS, (1, 3))
SMALL = {
    "trials": 4,
    "steps": 8,
    "batch_size": (2, 4),
    "rank": (2, 4),
    "learning_rate": (1e-5, 3e-2),
}


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


def run(
    loaded: LoadedModel,
    recipe: HealRecipe,
    storage: str,
    tmp_path: Path,
    **changes: Any,  # noqa: ANN401
) -> Tuned:
    wanted = Tuning(**{**SMALL, **changes})
    return tune(loaded, CANDIDATE, recipe, wanted, storage, run_folders=tmp_path / "work")


@pytest.mark.parametrize("sampler", ["pso", "tpe"])
def test_the_study_is_stored_and_its_best_is_used(
    sampler: str, loaded: LoadedModel, recipe: HealRecipe, storage: str, tmp_path: Path
) -> None:
    before = loaded.fingerprint
    found = run(loaded, recipe, storage, tmp_path, sampler=sampler)
    study = optuna.load_study(study_name=found.study, storage=storage)
    assert len(study.trials) == 4 == found.computed
    assert found.value == study.best_value
    assert found.params == study.best_params
    assert found.recipe.learning_rate == study.best_params["learning_rate"]
    assert found.recipe.alpha / found.recipe.rank == recipe.alpha / recipe.rank
    assert 0.25 * recipe.steps <= found.recipe.steps <= recipe.steps
    assert study.best_trial.intermediate_values[0] > study.best_value
    assert loaded.fingerprint == before
    again = run(loaded, recipe, storage, tmp_path, sampler=sampler)
    assert (again.computed, again.value) == (0, found.value)
    more = run(loaded, recipe, storage, tmp_path, sampler=sampler, trials=5)
    assert (more.study, more.computed) == (found.study, 1)


def test_what_was_under_way_goes_on_from_its_checkpoints(
    loaded: LoadedModel, recipe: HealRecipe, storage: str, tmp_path: Path
) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, HealProgress) and event.name == "trial 0" and len(event.watched) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), subscribed(stop):
        run(loaded, recipe, storage, tmp_path, pruner="halving")
    (name,) = optuna.get_all_study_names(storage)
    left = optuna.load_study(study_name=name, storage=storage).trials
    assert [trial.state for trial in left] == [TrialState.RUNNING]
    first: dict[str, int] = {}

    def note(event: Event) -> None:
        if isinstance(event, HealProgress):
            first.setdefault(event.name, event.done)

    with subscribed(note):
        found = run(loaded, recipe, storage, tmp_path, pruner="halving")
    trials = optuna.load_study(study_name=name, storage=storage).trials
    assert found.study == name
    assert trials[0].state == TrialState.FAIL
    assert trials[1].params == trials[0].params
    assert first["trial 1"] > 1, "it continued from a checkpoint"
    assert found.trials + found.pruned == 4


def test_hopeless_trials_are_stopped(
    loaded: LoadedModel,
    recipe: HealRecipe,
    storage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = iter([1e-2, 1e-2, 1e-7])

    def suggest(trial: optuna.Trial, wanted: Tuning, recipe: HealRecipe, steps: int) -> HealRecipe:
        params = {
            "learning_rate": trial.suggest_float("learning_rate", (rate := next(rates)), rate),
            "batch_size": trial.suggest_int("batch_size", 4, 4),
            "rank": trial.suggest_int("rank", 4, 4),
            "steps_share": trial.suggest_float("steps_share", 1.0, 1.0),
        }
        return tuning.with_params(recipe, params, steps)

    monkeypatch.setattr(tuning, "suggest", suggest)
    found = run(loaded, recipe, storage, tmp_path, trials=3)
    trials = optuna.load_study(study_name=found.study, storage=storage).trials
    assert [trial.state for trial in trials] == [
        TrialState.COMPLETE,
        TrialState.COMPLETE,
        TrialState.PRUNED,
    ]
    assert max(trials[2].intermediate_values) < 4, "not all of its looks were taken"
    assert (found.trials, found.pruned) == (2, 1)


def test_bad_input_is_refused(
    loaded: LoadedModel,
    recipe: HealRecipe,
    storage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(InputError, match="trials = 0"):
        Tuning(trials=0)
    with pytest.raises(InputError, match="unknown sampler 'psoo': did you mean 'pso'"):
        Tuning(trials=1, sampler="psoo")
    with pytest.raises(InputError, match="is too short"):
        run(loaded, recipe, storage, tmp_path, batch_size=(100_000,))
    assert not (tmp_path / "study.db").exists()

    def pruned(*args: object, **kwargs: object) -> None:
        raise optuna.TrialPruned

    monkeypatch.setattr(tuning, "carry_out", pruned)
    with pytest.raises(RunError, match=r"all 4 trials of study .* were stopped"):
        run(loaded, recipe, storage, tmp_path)
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    study.set_user_attr(tuning.IDENTITY_ATTR, "{}")
    with pytest.raises(StudyError, match="was made with other settings"):
        run(loaded, recipe, storage, tmp_path)
