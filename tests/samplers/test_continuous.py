"""The swarms in a plain ``study.optimize``, by users who never heard of layers."""

import inspect
import json
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from prunesearch import PSOSampler, SearchSpace, WOASampler
from prunesearch.errors import InputError
from prunesearch.samplers import STATE_ATTR, SubsetSampler, build
from prunesearch.studies import trial_log

Maker = type[PSOSampler] | type[WOASampler]
both = pytest.mark.parametrize("make", [PSOSampler, WOASampler], ids=["pso", "woa"])


Direction = Literal["minimize", "maximize"]


def objective(trial: optuna.Trial) -> float:
    """One parameter of each kind; the best is 0."""
    x = trial.suggest_float("x", -5.0, 5.0)
    rate = trial.suggest_float("rate", 1e-5, 1.0, log=True)
    step = trial.suggest_float("step", 0.0, 1.0, step=0.25)
    n = trial.suggest_int("n", 1, 64, log=True)
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    return float(
        (x - 2) ** 2
        + np.log10(rate / 1e-3) ** 2
        + (step - 0.5) ** 2
        + np.log2(n / 8) ** 2
        + (kind != "b")
    )


def run(
    sampler: optuna.samplers.BaseSampler,
    trials: int,
    direction: Direction = "minimize",
    jobs: int = 1,
) -> optuna.Study:
    study = optuna.create_study(sampler=sampler, direction=direction)
    sign = 1.0 if direction == "minimize" else -1.0
    study.optimize(lambda trial: sign * objective(trial), n_trials=trials, n_jobs=jobs)
    return study


@both
def test_swarms_move_every_kind_of_parameter_downhill(make: Maker) -> None:
    ours = np.mean([run(make(seed=s), 160).best_value for s in range(3)])
    chance = np.mean([run(optuna.samplers.RandomSampler(seed=s), 160).best_value for s in range(3)])
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

    directions: list[Direction] = ["minimize", "minimize"]
    ours = spread(optuna.create_study(directions=directions, sampler=make(seed=1)))
    chance = spread(
        optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(seed=1))
    )
    assert ours < chance


@both
def test_resuming_several_objectives_changes_nothing(make: Maker) -> None:
    def two(trial: optuna.Trial) -> tuple[float, float]:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        return x + y**2, 1 - x + y**2

    directions: list[Direction] = ["minimize", "minimize"]
    unbroken, resumed = (
        optuna.create_study(directions=directions, sampler=make(seed=1, population=4))
        for _ in range(2)
    )
    unbroken.optimize(two, n_trials=18)
    for trials in (7, 11):  # a new sampler each time, in the middle of a generation
        resumed.sampler = make(seed=1, population=4)
        resumed.optimize(two, n_trials=trials)
    assert [t.params for t in resumed.trials] == [t.params for t in unbroken.trials]


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
    assert {t.state for t in study.trials} == {
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
    }
    assert study.best_value < 0.01
    own = [
        json.loads(t.system_attrs[STATE_ATTR])["by"]
        for t in study.trials
        if STATE_ATTR in t.system_attrs
    ]
    assert len(own) >= 40
    assert len(set(own)) == 1


@both
def test_a_surrogate_finds_in_100_trials_what_the_textbook_does_not_in_200(make: Maker) -> None:
    ours = [run(make(seed=s), 100).best_value for s in range(2)]
    textbook = [run(make(seed=s, preselect=False), 200).best_value for s in range(2)]
    assert max(ours) < min(textbook)


@both
def test_a_study_of_an_older_version_goes_on_as_it_began(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    unbroken = run(make(seed=3, population=8, preselect=False), 30)
    study = run(make(seed=3, population=8, preselect=False), 15)
    # Older versions stored neither of these.
    storage, key = study._storage, f"ps:config:{make.algorithm}"
    stored = json.loads(storage.get_study_system_attrs(study._study_id)[key])
    for name in ("preselect", "coefficients", "topology"):
        del stored[name]
    storage.set_study_system_attr(study._study_id, key, json.dumps(stored))
    study.sampler = make()
    study.optimize(objective, n_trials=15)
    assert caplog.text.count("begun by a version without a surrogate") == 1
    assert [t.params for t in study.trials] == [t.params for t in unbroken.trials]


@both
def test_a_population_that_was_given_once_is_kept(make: Maker) -> None:
    study = run(make(seed=1, population=7), 9)
    study.sampler = make(seed=1)
    study.optimize(objective, n_trials=12)
    assert study.sampler.inner.population == 7
    unbroken = run(make(seed=1, population=7), 21)
    assert [t.params for t in study.trials] == [t.params for t in unbroken.trials]


def test_foreign_trials_are_learnt_from() -> None:
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        "x": optuna.distributions.FloatDistribution(-5.0, 5.0)
    }
    study = optuna.create_study(sampler=PSOSampler(seed=0, population=4))
    for x in (-4.0, 1.0, 4.0, -2.0):
        study.add_trial(
            optuna.create_trial(params={"x": x}, distributions=distributions, value=(x - 1.02) ** 2)
        )
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


def parabola(trial: optuna.Trial) -> float:
    return (trial.suggest_float("x", -5.0, 5.0) - 1) ** 2


@both
def test_a_killed_worker_holds_nobody_up(
    make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trial_log, "_PATIENCE_SECONDS", 0.2)
    url = f"sqlite:///{tmp_path}/s.db"

    def resume(trials: int) -> optuna.Study:
        study = optuna.load_study(study_name="s", storage=url, sampler=make(seed=0, population=4))
        study.optimize(parabola, n_trials=trials)
        return study

    optuna.create_study(study_name="s", storage=url)
    study = resume(2)
    study.ask().suggest_float("x", -5.0, 5.0)  # its worker is killed
    study = resume(9)
    assert caplog.text.count("going on without trial 2, which has not finished") == 1, (
        "it is waited for once"
    )
    states = [trial.state for trial in study.trials]
    assert states[2] == TrialState.RUNNING
    assert states.count(TrialState.COMPLETE) == 11
    bases = [
        json.loads(t.system_attrs[STATE_ATTR]).get("basis")
        for t in study.trials
        if STATE_ATTR in t.system_attrs
    ]
    assert bases
    assert all(proposal_inputs == {"open": [2]} for proposal_inputs in bases)


def test_subsets_go_on_without_a_killed_worker_and_can_be_derived_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial_log, "_PATIENCE_SECONDS", 0.2)
    space = SearchSpace(8, 2)
    study = optuna.create_study(sampler=PSOSampler(space, seed=1, population=3))
    study.ask().suggest_int(space.param_names[0], 0, 1)  # its worker is killed
    study.optimize(
        lambda t: sum(i * t.suggest_int(n, 0, 1) for i, n in enumerate(space.param_names)),
        n_trials=7,
    )
    assert [t.number for t in study.trials if t.state == TrialState.RUNNING] == [0]
    later = PSOSampler(space, seed=1, population=3)
    for trial in study.trials[3:]:
        assert later.reproduce(study, trial.number) == space.from_params(trial.params)


def test_a_worker_whose_heart_has_stopped_fails_while_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_log, "_STALE_SECONDS", 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{tmp_path}/s.db", heartbeat_interval=1, grace_period=1
        )
        study = optuna.create_study(storage=storage, sampler=PSOSampler(seed=0, population=2))
        lost = study.ask()
        storage.record_heartbeat(lost._trial_id)
        study.optimize(parabola, n_trials=4)
    assert study.trials[0].state == TrialState.FAIL


@both
@pytest.mark.parametrize("given", ["constraints_func", "set_constraint"])
def test_constraints_come_before_values(make: Maker, given: str) -> None:
    """The least of x + y is at the origin, where nothing is feasible."""

    def objective(trial: optuna.Trial) -> float:
        x, y = trial.suggest_float("x", 0, 5), trial.suggest_float("y", 0, 5)
        if given == "set_constraint":
            trial.set_constraint("sum", 3 - (x + y))
        return x + y

    def constraints(trial: optuna.trial.FrozenTrial) -> list[float]:
        return [3 - sum(trial.params.values())]

    options = {"constraints_func": constraints} if given == "constraints_func" else {}
    study = optuna.create_study(sampler=make(seed=0, population=10, **options))  # type: ignore[arg-type]
    study.optimize(objective, n_trials=120)
    late = study.trials[-50:]
    assert sum(sum(trial.params.values()) >= 3 for trial in late) >= 40
    assert study.best_value < 3.01


@both
def test_the_optimum_may_lie_exactly_on_a_limit(make: Maker) -> None:
    """Whole numbers whose sum may be 9 at most: the least value, 12, is at a sum of 9."""

    def constraints(trial: optuna.trial.FrozenTrial) -> list[float]:
        return [sum(trial.params[f"x{place}"] for place in range(3)) - 9.0]

    def objective(trial: optuna.Trial) -> float:
        whole = sum((trial.suggest_int(f"x{place}", 0, 9) - 5) ** 2 for place in range(3))
        return whole + (trial.suggest_float("y", -5, 5) - 1) ** 2

    study = optuna.create_study(sampler=make(seed=0, constraints_func=constraints))
    study.optimize(objective, n_trials=80)
    assert study.best_value < 12.01


@both
@pytest.mark.parametrize("form", ["never broken", "distance", "yes or no"])
def test_a_constraint_may_be_0_where_it_holds(make: Maker, form: str) -> None:
    """Constraints that are never below 0 cost a search little."""

    def constraints(trial: optuna.trial.FrozenTrial) -> list[float]:
        over = trial.params["x0"] - 4.0
        return [
            {"never broken": 0.0, "distance": max(0.0, over), "yes or no": float(over > 0)}[form]
        ]

    def objective(trial: optuna.Trial) -> float:
        return sum((trial.suggest_float(f"x{place}", -5, 5) - 1) ** 2 for place in range(4))

    study = optuna.create_study(sampler=make(seed=1, constraints_func=constraints))
    study.optimize(objective, n_trials=60)
    assert study.best_value < 0.5


def test_constraints_hold_for_subsets_and_several_objectives_too() -> None:
    space = SearchSpace(12, 3)
    for objectives in (1, 2):
        directions: list[Direction] = ["minimize"] * objectives
        sampler = PSOSampler(
            space,
            seed=0,
            population=5,
            constraints_func=lambda t: [1 - t.params[space.param_names[11]]],
        )
        study = optuna.create_study(directions=directions, sampler=sampler)

        def objective(trial: optuna.Trial, several: int = len(directions)) -> list[float]:
            chosen = [i for i, n in enumerate(space.param_names) if trial.suggest_int(n, 0, 1)]
            return [float(sum(chosen)), float(max(chosen))][:several]

        study.optimize(objective, n_trials=40)
        late = [trial.params[space.param_names[11]] for trial in study.trials[15:]]
        assert np.mean(late) > 0.5, "of all subsets one in four has unit 11"


@both
def test_equal_values_give_no_warning_but_one_hint(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    space = SearchSpace(16, 4)
    for sampler in (make(space, seed=0), make(seed=0)):
        caplog.clear()
        names = (
            sampler.inner.space.param_names if isinstance(sampler.inner, SubsetSampler) else ["x"]
        )
        study = optuna.create_study(sampler=sampler)
        study.optimize(
            partial(flat, names),
            n_trials=45,
        )
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "the first 12 trials all have the same value" in caplog.text


@both
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1.7e308, float("nan"), 5.0])
def test_extreme_values_of_ordinary_parameters_give_no_warning(make: Maker, value: float) -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1.0, 1.0) + trial.suggest_int("single", 3, 3)
        if trial.suggest_categorical("kind", ["a", None, 2.5]) == "a":
            x += trial.suggest_float("only_here", 0.0, 1.0)
        return value if trial.number % 3 else x

    study = optuna.create_study(sampler=make(seed=0, population=5))
    study.enqueue_trial({"x": 0.5})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study.optimize(objective, n_trials=25)
    assert len(study.trials) == 25


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e308, 0.0])
@pytest.mark.parametrize("name", ["pso", "woa", "evolution", "ga", "annealing"])
def test_extreme_values_give_no_warning(name: str, value: float) -> None:
    space = SearchSpace(10, 3)
    both_kinds: tuple[list[Direction], ...] = (["minimize"], ["minimize", "maximize"])
    for directions in both_kinds:
        if name == "annealing" and len(directions) > 1:
            continue
        study = optuna.create_study(directions=directions)
        sampler = build(name, space, population=4)
        for number in range(20):
            proposal = sampler.ask(study)
            own = value if number % 3 else float(number)
            study.tell(proposal.number, [own] * len(directions))
        assert len(study.trials) == 20


def flat(names: Sequence[str], trial: optuna.Trial) -> float:
    """The same value for every choice."""
    for name in names:
        trial.suggest_int(name, 0, 1)
    return 0.0


@both
def test_unseeded_studies_differ_and_each_goes_on_as_it_began(make: Maker) -> None:
    first, second = (run(make(population=4), 6) for _ in range(2))
    assert [t.params for t in first.trials] != [t.params for t in second.trials]
    first.sampler = make(population=4)
    first.optimize(objective, n_trials=4)
    seed = first.sampler.inner.study_seed
    again = run(make(seed=seed, population=4), 10)
    assert [t.params for t in first.trials] == [t.params for t in again.trials]


@both
def test_arguments_are_named(make: Maker) -> None:
    name = make.__name__
    with pytest.raises(
        TypeError, match=rf"{name}.__init__\(\) got an unexpected keyword argument 'momentum'"
    ):
        make(momentum=0.5)  # type: ignore[call-arg]
    with pytest.raises(
        InputError, match=f"{name} takes a prunesearch.SearchSpace of layers, not dict {{'x'"
    ):
        make({"x": optuna.distributions.FloatDistribution(0, 1)})  # type: ignore[arg-type]
    for wrong in (
        {"seed": -1},
        {"seed": 1.5},
        {"seed": "a"},
        {"population": 2.5},
        {"population": 1},
    ):
        with pytest.raises(InputError, match=next(iter(wrong))):
            make(**wrong)
    with pytest.raises(InputError, match="constraints_func"):
        make(constraints_func=[1.0])  # type: ignore[arg-type]
    shown = inspect.signature(make).parameters
    assert {"seed", "population", "ranking", "asynchronous", "constraints_func"} <= set(shown)
    assert shown["seed"].default is None


def test_parameters_are_plain_python_numbers() -> None:
    study = run(PSOSampler(seed=0, population=4), 40)
    study.optimize(lambda trial: -trial.suggest_float("late", 0.0, 5.0), n_trials=20)
    kinds = {type(value) for trial in study.trials for value in trial.params.values()}
    assert kinds == {float, int, str}


@both
@pytest.mark.parametrize("kind", ["memory", "rdb", "journal"])
def test_other_settings_are_refused_at_once_and_cost_no_number(
    make: Maker, kind: str, tmp_path: Path
) -> None:
    storage: Any = {
        "memory": optuna.storages.InMemoryStorage,
        "rdb": lambda: optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/s.db"),
        "journal": lambda: JournalStorage(JournalFileBackend(str(tmp_path / "journal"))),
    }[kind]()
    study = optuna.create_study(storage=storage, sampler=make(seed=1, population=4))
    study.optimize(parabola, n_trials=5)
    for wrong in (make(seed=2, population=4), make(seed=1, population=5)):
        study.sampler = wrong
        for _ in range(2):
            with pytest.raises(InputError, match="use the same, or a new study"):
                study.optimize(parabola, n_trials=3)
    assert [trial.state for trial in study.trials[5:]] == [TrialState.WAITING]
    study.sampler = make(seed=1, population=4)
    study.optimize(parabola, n_trials=7)
    unbroken = optuna.create_study(sampler=make(seed=1, population=4))
    unbroken.optimize(parabola, n_trials=12)
    assert [t.params for t in study.trials] == [t.params for t in unbroken.trials]


def test_another_numpy_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = run(PSOSampler(seed=1), 2)
    monkeypatch.setattr(np, "__version__", "9.8.7")
    study.sampler = PSOSampler(seed=1)
    study.optimize(objective, n_trials=1)
    assert "this is 9.8" in caplog.text
