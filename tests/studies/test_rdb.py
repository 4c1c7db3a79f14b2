"""The storage reads and writes what Optuna's own does, faster and in fewer transactions."""

from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.pool import Pool

from prunesearch.samplers import annotate, report
from prunesearch.studies.rdb import StudyStorage

DISTRIBUTIONS = {
    "x": FloatDistribution(1e-3, 1.0, log=True),
    "n": IntDistribution(0, 10, step=2),
    "c": CategoricalDistribution(["a", None, 3]),
}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


def test_opening_a_database_holds_one_session_at_a_time(url: str) -> None:
    """Processes that start together share a pool of few sessions."""
    StudyStorage(url).engine.dispose()
    held: list[object] = []
    most = []

    def takes(session: object, record: object, proxy: object) -> None:
        held.append(session)
        most.append(len(held))

    def returns(session: object, record: object) -> None:
        held.remove(session)

    sqlalchemy.event.listen(Pool, "checkout", takes)
    sqlalchemy.event.listen(Pool, "checkin", returns)
    try:
        StudyStorage(url).engine.dispose()
    finally:
        sqlalchemy.event.remove(Pool, "checkout", takes)
        sqlalchemy.event.remove(Pool, "checkin", returns)
    assert max(most) == 1
    assert held == []


def test_a_database_of_another_optuna_is_refused(url: str) -> None:
    storage = StudyStorage(url)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    storage.engine.dispose()
    with pytest.raises(RuntimeError, match="optuna storage upgrade"):
        StudyStorage(url)


def fields(trial: FrozenTrial) -> dict[str, object]:
    return {name: value for name, value in vars(trial).items() if not name.startswith("__")}


def fill(study: optuna.Study) -> None:
    """Trials of every kind."""
    study.add_trial(
        create_trial(
            values=[0.5, float("inf")],
            params={"x": 0.1, "n": 4, "c": None},
            distributions=DISTRIBUTIONS,
        )
    )
    study.add_trial(
        create_trial(
            state=TrialState.FAIL, params={"c": "a"}, distributions={"c": DISTRIBUTIONS["c"]}
        )
    )
    study.enqueue_trial({"x": 0.2})
    study.ask()
    study.ask({"only": CategoricalDistribution([1])})
    pruned = study.ask()
    pruned.set_user_attr("why", {"a": [1, None]})
    study.tell(pruned, state=TrialState.PRUNED)
    study.add_trial(
        create_trial(
            values=[1.0, -float("inf")],
            intermediate_values={0: 2.0, 3: float("nan"), 7: float("inf")},
            user_attrs={"k": "v"},
            system_attrs={"s": 1},
        )
    )


def test_trials_read_the_same_as_by_optuna(url: str) -> None:
    study = optuna.create_study(
        storage=StudyStorage(url), study_name="s", directions=["minimize", "maximize"]
    )
    fill(study)
    ours = optuna.load_study(storage=StudyStorage(url), study_name="s").trials
    theirs = optuna.load_study(storage=RDBStorage(url), study_name="s").trials
    assert len(ours) == 6
    for owned, yours in zip(ours, theirs, strict=True):
        assert repr(fields(owned)) == repr(fields(yours))
    storage = StudyStorage(url)
    assert repr(fields(storage.get_trial(ours[0]._trial_id))) == repr(fields(ours[0]))
    with pytest.raises(KeyError):
        storage.get_trial(10**6)


def test_what_it_writes_optuna_writes_too(tmp_path: Path) -> None:
    made = []
    for kind, name in ((StudyStorage, "ours"), (RDBStorage, "theirs")):
        study = optuna.create_study(
            storage=kind(f"sqlite:///{tmp_path}/{name}.db"), directions=["minimize", "maximize"]
        )
        fill(study)
        loaded = optuna.load_study(
            storage=RDBStorage(f"sqlite:///{tmp_path}/{name}.db"), study_name=study.study_name
        )
        made.append(
            [{k: v for k, v in fields(t).items() if "datetime" not in k} for t in loaded.trials]
        )
    assert repr(made[0]) == repr(made[1])


def test_a_parameter_that_changes_its_kind_is_refused(url: str) -> None:
    study = optuna.create_study(storage=StudyStorage(url))
    study.add_trial(
        create_trial(value=1.0, params={"x": 1}, distributions={"x": IntDistribution(0, 3)})
    )
    for storage in (StudyStorage(url), study._storage):
        again = optuna.load_study(storage=storage, study_name=study.study_name)
        with pytest.raises(ValueError, match="Cannot set different distribution kind"):
            again.add_trial(
                create_trial(
                    value=1.0, params={"x": 1.0}, distributions={"x": FloatDistribution(0, 3)}
                )
            )
    assert len(again.trials) == 1, "nothing half-written stays"


def test_a_trial_ends_in_one_transaction(url: str) -> None:
    storage = StudyStorage(url)
    study = optuna.create_study(storage=storage)
    number = study.ask().number
    statements: list[str] = []
    sqlalchemy.event.listen(
        storage.engine,
        "before_cursor_execute",
        lambda c, k, text, *rest: statements.append(text.split()[0]),
    )
    sqlalchemy.event.listen(
        storage.engine, "commit", lambda connection: statements.append("COMMIT")
    )
    annotate(study, number, {"kl": 0.5, "cache": "hit"})
    report(study, number, 1, 0.75)
    study.tell(number, 0.5)
    first = next(i for i, word in enumerate(statements) if word in ("INSERT", "UPDATE"))
    last = max(i for i, word in enumerate(statements) if word in ("INSERT", "UPDATE"))
    assert "COMMIT" not in statements[first:last]
    (trial,) = optuna.load_study(storage=url, study_name=study.study_name).trials
    assert (trial.value, trial.user_attrs) == (0.5, {"kl": 0.5, "cache": "hit"})
    assert trial.intermediate_values == {1: 0.75}


def test_attributes_of_a_trial_that_cannot_end_are_not_kept(url: str) -> None:
    study = optuna.create_study(storage=StudyStorage(url))
    number = study.ask().number
    study.tell(number, 1.0)
    annotate(study, number, {"late": 1})
    with pytest.raises(ValueError, match="COMPLETE"):
        study.tell(number, 2.0)
    assert study.trials[0].user_attrs == {}
    assert study.trials[0].value == 1.0
