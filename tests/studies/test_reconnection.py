"""A study survives outages of its database: nothing is lost, doubled or in another order."""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import psycopg
import pytest
import sqlalchemy
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.exceptions import (
    DuplicatedStudyError,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import OperationalError

from prunesearch import events
from prunesearch.errors import RunError, StorageError
from prunesearch.runtime import failpoints, stopping
from prunesearch.studies import persistence, reconnection
from prunesearch.studies.optuna_internals.storage import OPERATIONS
from prunesearch.studies.rdb import StudyStorage
from prunesearch.studies.writer_lease import WRITERS
from tests.support import postgres
from tests.support.proxy import Proxy
from tests.support.searches import search_in, trials_of

TRIALS = 20


@pytest.fixture(autouse=True)
def _impatient_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna waits up to 2 s before it repeats the creation of a trial."""
    monkeypatch.setattr(
        "optuna.storages._rdb.storage.random", SimpleNamespace(random=lambda: 0.005)
    )


@pytest.fixture(scope="module")
def mortal() -> Iterator[postgres.Server]:
    """A server that may be stopped."""
    if not postgres.AVAILABLE:
        pytest.skip("PostgreSQL's server is not installed")
    with postgres.Server() as running:
        yield running


@contextmanager
def told() -> Iterator[list[str]]:
    """The messages that are published meanwhile."""
    texts: list[str] = []

    def handle(event: events.Event) -> None:
        if isinstance(event, events.Message):
            texts.append(event.text)

    with events.subscribed(handle):
        yield texts


@pytest.fixture(scope="module")
def unbroken(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, int], list[dict[str, Any]]]:
    """The trials of an unbroken search by a sampler."""
    known: dict[tuple[str, int], list[dict[str, Any]]] = {}

    def trials(sampler: str, count: int) -> list[dict[str, Any]]:
        if (sampler, count) not in known:
            folder = tmp_path_factory.mktemp(sampler)
            url = f"sqlite:///{folder}/study.db"
            search_in(url, folder, sampler, count)
            known[sampler, count] = trials_of(url)
        return known[sampler, count]

    return trials


@pytest.mark.parametrize(("sampler", "trials"), [("pso", TRIALS), ("tpe", 3)])
def test_a_connection_that_is_cut_at_any_moment_changes_no_trial(
    server: postgres.Server,
    database: str,
    tmp_path: Path,
    unbroken: Callable[[str, int], list[dict[str, Any]]],
    sampler: str,
    trials: int,
) -> None:
    with Proxy(server.port, 1, most=16) as proxy:
        persistence.open_storage(proxy.url(database), create=True).engine.dispose()
        proxy.at_commit, proxy.elsewhere = 0.2, 0.01
        with told() as texts:
            search_in(proxy.url(database), tmp_path, sampler, trials)
    assert proxy.cuts["after a commit"] >= 2, proxy.cuts
    assert proxy.cuts["before a commit"] >= 2, proxy.cuts
    assert trials_of(database) == unbroken(sampler, trials)
    assert len(texts) % 2 == 0, "each outage has a beginning and an end"
    assert "secret" not in "".join(texts)


def test_a_server_that_stops_and_crashes_changes_no_trial(
    mortal: postgres.Server,
    tmp_path: Path,
    unbroken: Callable[[str, int], list[dict[str, Any]]],
) -> None:
    url = mortal.database("crashes")
    persistence.open_storage(url, create=True).engine.dispose()
    # The server goes while a trial is scored, and while one is told.
    modes = {"5": "immediate", "12": "fast", "17": "immediate"}
    told_by = failing_at(lambda number: modes.pop(number, None), mortal)
    failpoints.enable(told_by)
    try:
        with told() as texts:
            search_in(url, tmp_path, "pso", TRIALS)
    finally:
        failpoints.enable(None)
    assert modes == {}
    assert trials_of(url) == unbroken("pso", TRIALS)
    assert sum("does not answer" in text for text in texts) == 3
    assert sum("works again after" in text for text in texts) == 3


def failing_at(
    mode_at: Callable[[str], str | None], server: postgres.Server
) -> Callable[[str, str], None]:
    """A failpoint's action that stops a server before some trials are told.

    It starts again when somebody has noticed.
    """

    def reached(point: str, number: str) -> None:
        if point != "before_tell" or (mode := mode_at(number)) is None:
            return
        server.stop(mode)
        threading.Timer(0.2, server.start).start()

    return reached


CUTS = ["before a commit", "after a commit"]


@pytest.fixture
def cut(server: postgres.Server, database: str) -> Iterator[tuple[Proxy, StudyStorage]]:
    """A study "s" without trials, reached through a proxy."""
    with Proxy(server.port) as proxy:
        storage = persistence.open_storage(proxy.url(database), create=True)
        optuna.create_study(storage=storage, study_name="s")
        yield proxy, storage
        storage.engine.dispose()


@pytest.mark.parametrize("place", CUTS)
@pytest.mark.parametrize(
    "template",
    [
        None,
        create_trial(
            state=TrialState.RUNNING,
            params={"x": 1},
            distributions={"x": IntDistribution(0, 3)},
            system_attrs={"t": (1, 2)},
        ),
        create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": {"x": 2}}),
        create_trial(value=2.0, user_attrs={"a": 1}),
    ],
    ids=["empty", "running", "waiting", "finished"],
)
def test_a_trial_is_created_once(
    cut: tuple[Proxy, StudyStorage], database: str, template: FrozenTrial | None, place: str
) -> None:
    proxy, storage = cut
    study_id = storage.get_study_id_from_name("s")
    storage.create_new_trial(study_id, template)
    proxy.next = place
    second = storage.create_new_trial(study_id, template)
    assert proxy.next is None
    third = storage.create_new_trial(study_id, template)
    found = optuna.load_study(storage=database, study_name="s").trials
    assert [trial.number for trial in found] == [0, 1, 2]
    assert len({second, third}) == 2
    assert storage.get_trial(second).number == 1
    if template is not None:
        assert {trial.state for trial in found} == {template.state}
        assert all(trial.params == template.params for trial in found)


def test_a_connection_that_is_lost_again_while_the_trial_is_looked_for_creates_it_once(
    cut: tuple[Proxy, StudyStorage], database: str
) -> None:
    proxy, storage = cut
    study_id = storage.get_study_id_from_name("s")
    proxy.next, proxy.text = "after a commit", b"IS NOT DISTINCT FROM"
    storage.create_new_trial(study_id, create_trial(value=1.0))
    assert proxy.cuts["after a commit"] == proxy.cuts["elsewhere"] == 1
    storage.create_new_trial(study_id, create_trial(value=2.0))
    found = optuna.load_study(storage=database, study_name="s").trials
    assert [trial.value for trial in found] == [1.0, 2.0]


@pytest.mark.parametrize("place", CUTS)
def test_every_other_operation_has_its_effect_once(
    cut: tuple[Proxy, StudyStorage], database: str, place: str
) -> None:
    proxy, storage = cut
    study = optuna.load_study(storage=storage, study_name="s")
    study.enqueue_trial({"x": 0.5})

    def with_cut(operation: Callable[[], object]) -> object:
        proxy.next = place
        result = operation()
        assert proxy.next is None
        return result

    # 1. An enqueued trial is started, gets a parameter and attributes, and is finished.
    waiting = study.get_trials()[0]._trial_id
    assert with_cut(lambda: storage.set_trial_state_values(waiting, TrialState.RUNNING)) is True
    distribution = FloatDistribution(0, 1)
    with_cut(lambda: storage.set_trial_param(waiting, "x", 0.5, distribution))
    with_cut(lambda: storage.set_trial_user_attr(waiting, "u", 1))
    with_cut(lambda: storage.set_trial_system_attr(waiting, "s", [1]))
    with_cut(lambda: storage.set_trial_intermediate_value(waiting, 3, 0.25))
    storage.with_end(waiting, {"kl": 0.125}, {4: 0.5})
    with_cut(lambda: storage.set_trial_state_values(waiting, TrialState.COMPLETE, [0.75]))
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(waiting, TrialState.COMPLETE, [0.5])
    # 2. Attributes of the study; another study is made and deleted.
    with_cut(lambda: study.set_user_attr("recipe", "r"))
    with_cut(lambda: optuna.create_study(storage=storage, study_name="t"))
    with pytest.raises(DuplicatedStudyError):
        optuna.create_study(storage=storage, study_name="t")
    with_cut(lambda: optuna.delete_study(study_name="t", storage=storage))
    # 3. All of it is there, once.
    stored = optuna.load_study(storage=database, study_name="s")
    (trial,) = stored.trials
    assert (trial.state, trial.value, trial.params) == (TrialState.COMPLETE, 0.75, {"x": 0.5})
    assert trial.user_attrs == {"u": 1, "kl": 0.125}
    assert trial.system_attrs["s"] == [1]
    assert trial.intermediate_values == {3: 0.25, 4: 0.5}
    assert stored.user_attrs == {"recipe": "r"}
    assert optuna.get_all_study_names(database) == ["s"]


def test_a_trial_that_another_client_created_meanwhile_is_not_taken_for_ours(
    cut: tuple[Proxy, StudyStorage], database: str
) -> None:
    proxy, storage = cut
    study_id = storage.get_study_id_from_name("s")
    other = optuna.load_study(storage=database, study_name="s")
    proxy.next = "before a commit"
    # The other client comes while the first one waits.
    told_once: list[events.Event] = []

    def enqueue(event: events.Event) -> None:
        if not told_once:
            other.enqueue_trial({"x": 1})
        told_once.append(event)

    with events.subscribed(enqueue):
        storage.create_new_trial(study_id, create_trial(value=1.0))
    storage.create_new_trial(study_id, create_trial(value=2.0))
    assert [trial.value for trial in other.trials if trial.state.is_finished()] == [1.0, 2.0]


def test_every_operation_that_opens_a_transaction_is_repeated() -> None:
    opening = set()
    for name, method in vars(RDBStorage).items():
        if inspect.isfunction(method) and "_create_scoped_session(" in inspect.getsource(method):
            opening.add(name)
    unused = {"upgrade", "check_table_schema_compatibility"}
    assert opening - unused <= set(OPERATIONS)
    assert set(OPERATIONS) <= set(dir(RDBStorage))


def test_a_lease_that_ran_out_during_an_outage_is_kept_or_lost(
    cut: tuple[Proxy, StudyStorage], database: str
) -> None:
    proxy, storage = cut
    other = persistence.open_storage(database, create=False)
    with persistence.sole_writer(storage, "s"):
        study = optuna.load_study(storage=storage, study_name="s")
        run_out = WRITERS.update().values(expires=0.0, process="")
        # 1. Nobody has taken the lease: this process goes on.
        with other.engine.begin() as connection:
            connection.execute(run_out)
        proxy.next = "before a commit"
        study.add_trial(create_trial(value=1.0))
        # 2. Another process has taken it: this one stops, with the message for that.
        with other.engine.begin() as connection:
            connection.execute(run_out)
        with persistence.sole_writer(other, "s"):
            proxy.cut_all()
            with pytest.raises(RunError, match="was taken over by another process"):
                study.add_trial(create_trial(value=2.0))
    assert len(other.get_all_trials(storage.get_study_id_from_name("s"))) == 1


def test_a_lease_is_acquired_although_the_answer_is_lost(
    cut: tuple[Proxy, StudyStorage],
) -> None:
    proxy, storage = cut
    with persistence.sole_writer(storage, "s"):
        pass
    proxy.next = "after a commit"
    with persistence.sole_writer(storage, "s"):
        assert proxy.next is None
        storage.create_new_trial(storage.get_study_id_from_name("s"))


def test_patience_ends_with_one_line(
    mortal: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = mortal.database("gone")
    storage = persistence.open_storage(url, create=True)
    storage.reconnection.patience = 0.5
    mortal.stop()
    try:
        with (
            told() as texts,
            pytest.raises(RunError, match="the database of study 's' failed"),
            persistence.database_failures("s", storage),
        ):
            optuna.create_study(storage=storage, study_name="s")
        assert len(texts) == 1
        # A database that this process has never reached is refused at once.
        monkeypatch.setattr(persistence, "_worked", set())
        with pytest.raises(StorageError, match="cannot open"):
            persistence.open_storage(url, create=True)
    finally:
        mortal.start()


def test_a_database_that_has_worked_is_waited_for(mortal: postgres.Server) -> None:
    url = mortal.database("restarted")
    persistence.open_storage(url, create=True).engine.dispose()
    mortal.stop()
    threading.Timer(0.2, mortal.start).start()
    with told() as texts:
        storage = persistence.open_storage(url, create=False)
    assert ["works again" in text for text in texts] == [False, True]
    assert optuna.get_all_study_names(storage) == []
    storage.engine.dispose()


def test_a_stop_ends_the_wait(mortal: postgres.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = persistence.open_storage(mortal.database("stopped"), create=True)

    def stop() -> None:
        raise stopping.StopRequested(2)

    monkeypatch.setattr(stopping, "check", stop)
    mortal.stop()
    try:
        with pytest.raises(stopping.StopRequested):
            storage.get_all_studies()
    finally:
        mortal.start()


def test_a_locked_file_is_waited_for(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    storage = StudyStorage(url, {"connect_args": {"timeout": 0}})
    other = sqlalchemy.create_engine(url).raw_connection()
    other.cursor().execute("BEGIN EXCLUSIVE")

    def unlock(_: events.Event) -> None:
        other.rollback()

    with events.subscribed(unlock), told() as texts:
        optuna.create_study(storage=storage, study_name="s")
    assert "database is locked" in texts[0]
    assert "works again" in texts[1]


@pytest.mark.parametrize(
    ("code", "passes"),
    [
        *[("57P01", True), ("08006", True), ("53300", True), ("40P01", True), ("25006", True)],
        *[("53100", False), ("57P04", False), ("42P01", False), ("28P01", False)],
    ],
)
def test_failures_that_pass_are_told_from_others(code: str, passes: bool) -> None:
    original = psycopg.errors.lookup(code)("a message")
    error = OperationalError("SELECT 1", None, original)
    assert reconnection.is_outage(error) is passes
    wrapped = StorageInternalError("by Optuna")
    wrapped.__cause__ = error
    assert reconnection.is_outage(wrapped) is passes


def test_failures_to_connect_are_told_from_refusals() -> None:
    for text, passes in (
        ("connection failed: Connection refused", True),
        ("FATAL: the database system is starting up", True),
        ('FATAL: password authentication failed for user "me"', False),
        ('FATAL: database "x" does not exist', False),
    ):
        error = OperationalError("SELECT 1", None, psycopg.OperationalError(text))
        assert reconnection.is_outage(error) is passes, text
    assert not reconnection.is_outage(ValueError("other"))
