"""A copied study is the same study: every row, and the same next trials."""

import json
import os
from pathlib import Path
from typing import Any

import optuna
import optuna_dashboard
import pytest
import sqlalchemy
from click.testing import CliRunner, Result
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from prunesearch.cli.main import cli
from prunesearch.errors import InputError, StorageError, StudyBusyError, StudyError
from prunesearch.runtime import failpoints
from prunesearch.studies import copying, persistence
from prunesearch.studies.copying import copy_studies
from prunesearch.studies.optuna_internals import storage as tables
from prunesearch.studies.optuna_internals.access import as_live_trial
from prunesearch.studies.tracker_run import run_of
from tests.support import postgres
from tests.support.processes import FORK
from tests.support.proxy import Proxy
from tests.support.searches import search_in, trials_of

TRIALS = 24
PAIRS = [
    ("sqlite", "postgresql"),
    ("postgresql", "sqlite"),
    ("postgresql", "postgresql"),
    ("sqlite", "sqlite"),
]


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Two empty databases, each of either kind."""
    urls = []
    for place, kind in enumerate(request.param):
        if kind == "sqlite":
            urls.append(f"sqlite:///{tmp_path}/{place}.db")
        else:
            server: postgres.Server = request.getfixturevalue("server")
            urls.append(server.database(f"c{abs(hash((request.node.nodeid, place)))}"))
    return urls[0], urls[1]


def fill(url: str) -> optuna.Study:
    """A study with trials of every state, beside another study."""
    storage = RDBStorage(url)
    other = optuna.create_study(storage=storage, study_name="other")
    other.ask()
    study = optuna.create_study(
        storage=storage, study_name="s", directions=["minimize", "maximize"]
    )
    study.set_metric_names(["kl", "speed"])
    study.set_user_attr("recipe", {"a": [1, None, "ü"]})
    study._storage.set_study_system_attr(study._study_id, "ps:config:PSO", {"seed": 1})
    distributions = {"z": FloatDistribution(0, 1), "a": CategoricalDistribution(["x", None])}
    study.add_trial(
        create_trial(
            values=[float("inf"), 0.1 + 0.2],
            params={"z": 1 / 3, "a": None},
            distributions=distributions,
            intermediate_values={0: float("nan"), 3: 2.5, 7: float("-inf")},
            user_attrs={"dropped": "1,2"},
            system_attrs={"ps:s": {"m": [0.1, [2]]}},
        )
    )
    other.ask()  # so that the ids have gaps
    study.ask()
    study.enqueue_trial({"z": 0.5})
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"failure": "why"}))
    study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values={5: 0.25}))
    optuna_dashboard.save_note(study, "of the study")
    for trial in study.trials:
        if trial.number in (0, 3):
            optuna_dashboard.save_note(as_live_trial(study, trial), f"of trial {trial.number}")
    return study


def content(study: optuna.Study) -> dict[str, Any]:
    """Everything that Optuna tells of a study, but for its ids."""
    trials = []
    for trial in study.trials:
        fields = {name: value for name, value in vars(trial).items() if name != "_trial_id"}
        note = optuna_dashboard.get_note(as_live_trial(study, trial))
        trials.append(repr({**fields, "note": note, "params in order": list(trial.params)}))
    attributes = study._storage.get_study_system_attrs(study._study_id)
    return {
        "directions": study.directions,
        "metrics": study.metric_names,
        "user": study.user_attrs,
        "system": {key: value for key, value in attributes.items() if ":note_" not in key},
        "note": optuna_dashboard.get_note(study),
        "trials": trials,
    }


def study_at(url: str, name: str = "s") -> optuna.Study:
    return optuna.load_study(storage=RDBStorage(url), study_name=name)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_copy_has_everything(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = pair
    study = fill(source)
    optuna.create_study(storage=RDBStorage(target), study_name="first").ask()
    monkeypatch.setattr(copying, "_PAGE", 2)
    (made,) = copy_studies(source, target, ["s"])
    assert (made.copied, made.study, made.trials) == ("s", "s", 5)
    assert "secret" not in repr(made)
    copy = study_at(target)
    assert content(copy) == content(study)
    assert content(copy)["note"] == "of the study"
    assert sum("of trial" in trial for trial in content(copy)["trials"]) == 2
    assert len(study_at(target, "first").trials) == 1
    # The copy of a copy, in the same database, under another name.
    copy_studies(target, target, ["s"], "t")
    assert content(study_at(target, "t")) == content(study)
    # The enqueued trial is started, and a new trial gets the next number.
    assert [copy.ask().number, copy.ask().number] == [2, 5]
    assert [trial.number for trial in copy.trials] == list(range(6))
    assert [trial.number for trial in study_at(target, "t").trials] == list(range(5))


def test_a_copy_is_another_run_of_a_tracker(tmp_path: Path) -> None:
    source, target = f"sqlite:///{tmp_path}/source.db", f"sqlite:///{tmp_path}/target.db"
    study = fill(source)
    run = run_of(study)
    copy_studies(source, target, ["s"])
    copy_studies(source, source, ["s"], "t")
    copies = [study_at(target), study_at(source, "t")]
    for copy in copies:
        assert copy.user_attrs == {"recipe": {"a": [1, None, "ü"]}}
    assert len({run, *map(run_of, copies)}) == 3
    assert run_of(study_at(source)) == run


def test_every_table_of_optuna_is_copied() -> None:
    copied = {tables.STUDY_TABLE, *tables.STUDY_PARTS, tables.STUDY_SYSTEM_ATTRIBUTES}
    copied |= {tables.TRIAL_TABLE, *tables.TRIAL_PARTS}
    assert {table.name for table in copied} == tables.ALL_TABLES - {"version_info"}


def test_a_killed_study_is_copied_and_goes_on_as_if_nothing_had_happened(
    database: str, tmp_path: Path
) -> None:
    source, unbroken = f"sqlite:///{tmp_path}/killed.db", f"sqlite:///{tmp_path}/unbroken.db"
    search_in(unbroken, tmp_path, "pso", TRIALS)

    def killed() -> None:
        def kill(point: str, number: str) -> None:
            if point == "before_tell" and number == "19":
                os.kill(os.getpid(), 9)

        failpoints.enable(kill)
        search_in(source, tmp_path, "pso", TRIALS)

    process = FORK.Process(target=killed)
    process.start()
    process.join()
    states = {trial["state"] for trial in trials_of(source)}
    assert states == {TrialState.COMPLETE, TrialState.RUNNING}
    copy_studies(source, database, ["s"], "moved")
    search_in(database, tmp_path, "pso", TRIALS, "moved")
    assert trials_of(database, "moved") == trials_of(unbroken)


def names_at(url: str) -> list[str]:
    return sorted(optuna.get_all_study_names(url))


@pytest.fixture
def two(tmp_path: Path) -> str:
    """A database with the studies "a" and "b" of three trials each."""
    url = f"sqlite:///{tmp_path}/two.db"
    for name in ("a", "b"):
        study = optuna.create_study(storage=url, study_name=name)
        study.add_trials([create_trial(value=float(value)) for value in range(3)])
    return url


def test_what_cannot_be_copied_is_refused_before_anything_is_written(
    two: str, tmp_path: Path, database: str
) -> None:
    target = f"sqlite:///{tmp_path}/target.db"
    optuna.create_study(storage=target, study_name="b")
    with pytest.raises(StudyError, match=r"study 'b' exists already in .*another `new_name`"):
        copy_studies(two, target, None)
    with pytest.raises(InputError, match="unknown study 'c'"):
        copy_studies(two, target, ["a", "c"])
    with pytest.raises(InputError, match="names one copy, and 2 studies"):
        copy_studies(two, target, ["a", "b"], "x")
    with pytest.raises(StorageError, match="no study database"):
        copy_studies(f"sqlite:///{tmp_path}/none.db", target, None)
    storage = persistence.open_storage(two, create=False)
    with (
        persistence.sole_writer(storage, "a"),
        pytest.raises(StudyBusyError, match="study 'a' is being searched by another process"),
    ):
        copy_studies(two, target, ["b", "a"], None)
    assert names_at(target) == ["b"]
    with pytest.raises(StorageError) as caught:
        copy_studies(two, database.rpartition("/")[0] + "/nowhere", None)
    assert "secret" not in str(caught.value)
    assert len(copy_studies(two, database, None)) == 2
    assert names_at(database) == ["a", "b"]


def test_a_name_that_is_being_made_is_refused(two: str, database: str) -> None:
    target = persistence.open_storage(database, create=True)
    with persistence.sole_writer(target, "a"), pytest.raises(StudyBusyError):
        copy_studies(two, database, ["a"])
    # A client that takes no lock is faster.
    begun = copying._Copy.make

    def late(self: copying._Copy) -> copying.CopiedStudy:
        optuna.create_study(storage=database, study_name="a")
        return begun(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying._Copy, "make", late)
        with pytest.raises(StudyError, match="exists already"):
            copy_studies(two, database, ["a"])
    assert study_at(database, "a").trials == []


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_killed_copy_leaves_nothing(
    two: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/target.db"
    if kind == "postgresql":
        url = request.getfixturevalue("database")

    def killed() -> None:
        copied = copying._copy_page

        def kill(*given: Any) -> Any:  # noqa: ANN401
            copied(*given)
            os.kill(os.getpid(), 9)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(copying, "_copy_page", kill)
            copy_studies(two, url, ["a"])

    process = FORK.Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == -9
    assert names_at(url) == []
    assert copy_studies(two, url, ["a"])[0].trials == 3
    assert [trial.value for trial in study_at(url, "a").trials] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("place", ["before a commit", "after a commit"])
def test_a_copy_survives_a_lost_connection(
    two: str, server: postgres.Server, database: str, place: str
) -> None:
    with Proxy(server.port) as proxy:
        persistence.open_storage(proxy.url(database), create=True).engine.dispose()
        make = copying._Copy._in_one_transaction

        def cut(self: copying._Copy, *given: Any) -> int:  # noqa: ANN401
            if not proxy.cuts[place]:
                proxy.next = place
            return make(self, *given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(copying._Copy, "_in_one_transaction", cut)
            (made,) = copy_studies(two, proxy.url(database), ["a"])
    assert proxy.cuts[place] == 1
    assert made.trials == 3
    assert [trial.value for trial in study_at(database, "a").trials] == [0.0, 1.0, 2.0]


def test_a_row_that_the_other_database_does_not_take_is_said_in_one_line(
    two: str, database: str
) -> None:
    engine = sqlalchemy.create_engine(two)
    with engine.begin() as connection:  # SQLite takes texts of any length
        connection.exec_driver_sql(
            "INSERT INTO study_user_attributes (study_id, key, value_json) "
            f"VALUES (1, '{'k' * 600}', '1')"
        )
    engine.dispose()
    with pytest.raises(
        StorageError, match=r"study 'a' was not copied to .*value too long"
    ) as error:
        copy_studies(two, database, ["a"])
    assert "secret" not in str(error.value)
    assert names_at(database) == []


def test_the_command_says_what_it_copied(two: str, tmp_path: Path) -> None:
    def run(*words: str) -> Result:
        return CliRunner().invoke(cli, ["study", "copy", "--from", two, *words])

    result = run("a", "--to", f"sqlite:///{tmp_path}/x.db", "--name", "n", "--json")
    assert json.loads(result.stdout) == [
        {"copied": "a", "study": "n", "storage": f"sqlite:///{tmp_path}/x.db", "trials": 3}
    ]
    result = run("--all", "--to", f"sqlite:///{tmp_path}/y.db")
    assert "copied b (3 trials) to" in result.stdout
    for words in ((), ("a", "--all")):
        result = run(*words, "--to", f"sqlite:///{tmp_path}/z.db")
        assert isinstance(result.exception, InputError)
    assert not (tmp_path / "z.db").exists()
