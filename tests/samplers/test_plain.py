"""The swarms in a plain ``study.optimize``, by users who never heard of layers."""

import json
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from prunesearch import PSOSampler, WOASampler
from prunesearch.errors import InputError
from prunesearch.samplers import STATE_ATTR

Maker = type[PSOSampler] | type[WOASampler]
both = pytest.mark.parametrize("make", [PSOSampler, WOASampler], ids=["pso", "woa"])


def objective(trial: optuna.Trial) -> float:
    """One parameter of each kind; the best is 0."""
    x = trial.suggest_float("x", -5.0, 5.0)
    rate = trial.suggest_float("rate", 1e-5, 1.0, log=True)
    step = trial.suggest_float("step", 0.0, 1.0, step=0.25)
    n = trial.suggest_int("n", 1, 64, log=True)
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    return (x - 2) ** 2 + np.log10(rate / 1e-3) ** 2 + (step - 0.5) ** 2 + np.log2(n / 8) ** 2 + (kind != "b")


def run(sampler: optuna.samplers.BaseSampler, trials: int, direction: str = "minimize", jobs: int = 1) -> optuna.Study:
    study = optuna.create_study(sampler=sampler, direction=direction)
    sign = 1.0 if direction == "minimize" else -1.0
    study.optimize(lambda trial: sign * objective(trial), n_trials=trials, n_jobs=jobs)
    return study


@both
def test_swarms_move_every_kind_of_parameter_downhill(make: Maker) -> None:
    ours = np.mean([run(make(seed=s), 160).best_value for s in range(8)])
    chance = np.mean([run(optuna.samplers.RandomSampler(seed=s), 160).best_value for s in range(8)])
    assert ours < 0.8 * chance


@both
def test_maximising_the_negative_is_minimising(make: Maker) -> None:
    down, up = run(make(seed=1, population=6), 40), run(make(seed=1, population=6), 40, "maximize")
    assert [t.params for t in down.trials] == [t.params for t in up.trials]


@both
def test_threads_and_resuming_change_nothing(make: Maker, tmp_path: Path) -> None:
    alone = run(make(seed=4, population=6), 36)
    together = run(make(seed=4, population=6), 36, jobs=3)
    assert [t.params for t in alone.trials] == [t.params for t in together.trials]
    url = f"sqlite:///{tmp_path}/s.db"
    optuna.create_study(storage=url, study_name="s")
    for _ in range(4):  # a new sampler each time, in the middle of generations
        study = optuna.load_study(storage=url, study_name="s", sampler=make(seed=4, population=6))
        study.optimize(objective, n_trials=9)
    assert [t.params for t in alone.trials] == [t.params for t in study.trials]


@both
def test_several_objectives_give_a_front(make: Maker) -> None:
    def two(trial: optuna.Trial) -> tuple[float, float]:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        return x + y**2, 1 - x + y**2

    def spread(study: optuna.Study) -> float:
        study.optimize(two, n_trials=160)
        return float(np.mean([t.params["y"] for t in study.best_trials]))

    directions = ["minimize", "minimize"]
    ours = spread(optuna.create_study(directions=directions, sampler=make(seed=1)))
    chance = spread(optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(seed=1)))
    assert ours < chance


@both
def test_failures_pruning_and_conditional_parameters_do_no_harm(make: Maker) -> None:
    def shaky(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1, 1)
        if trial.number % 5 == 0:
            raise ValueError
        if trial.number % 5 == 1:
            return float("nan")
        trial.report(x**2 / 2, step=1)
        if trial.number % 5 == 2:
            raise optuna.TrialPruned
        if x > 0:
            x += trial.suggest_float("only_here", 0, 1)
        return x**2

    study = optuna.create_study(sampler=make(seed=2, population=5))
    study.optimize(shaky, n_trials=60, catch=(ValueError,))
    assert {t.state for t in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert study.best_value < 0.01
    own = [json.loads(t.system_attrs[STATE_ATTR])["by"] for t in study.trials if STATE_ATTR in t.system_attrs]
    assert len(own) >= 40
    assert len(set(own)) == 1


def test_foreign_trials_are_learnt_from() -> None:
    distributions = {"x": optuna.distributions.FloatDistribution(-5.0, 5.0)}
    study = optuna.create_study(sampler=PSOSampler(seed=0, population=4))
    for x in (-4.0, 1.0, 4.0, -2.0):
        study.add_trial(optuna.create_trial(params={"x": x}, distributions=distributions, value=(x - 1.02) ** 2))
    study.optimize(lambda trial: (trial.suggest_float("x", -5.0, 5.0) - 1.02) ** 2, n_trials=24)
    near = [abs(t.params["x"] - 1.02) for t in study.trials[12:]]
    assert np.median(near) < 1.0


def test_settings_are_held_to() -> None:
    study = run(PSOSampler(seed=1), 3)
    study.sampler = PSOSampler(seed=2)
    with pytest.raises(InputError, match="seed was 1, is 2"):
        study.optimize(objective, n_trials=1)
    with pytest.raises(InputError, match="at least 2"):
        WOASampler(population=1)
