"""One writer per study: through links, dead connections, pools of connections, and the death of
writers.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.study import Study
from sqlalchemy.exc import OperationalError

from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.keys import evaluation_key
from prunesearch.config.recipe import Recipe
from prunesearch.errors import RunError, StudyBusyError
from prunesearch.studies import persistence, writer_lease
from prunesearch.studies.summary import summaries
from prunesearch.studies.writer_lease import WRITERS
from prunesearch.studies.writer_process import Writer, is_dead, process_name, this_process
from tests.support.processes import FORK

RECIPE = Recipe(model="m", drop="2")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    found: str = request.getfixturevalue("database")
    return found


def study_in(storage: RDBStorage, name: str = "s") -> Study:
    return persistence.create_or_resume(
        storage, name, RECIPE, {"a": 1}, metrics=["kl"], maximize=[False]
    )


def add_trial(study: Study, value: float = 0.5) -> None:
    study.add_trial(optuna.trial.create_trial(value=value, user_attrs={"dropped": "1,2"}))


def hold(storage: RDBStorage) -> None:
    with persistence.sole_writer(storage, "s"):
        pass


def test_who_writes_a_study_is_said(url: str) -> None:
    first, second = (persistence.open_storage(url, create=True) for _ in range(2))
    study_in(first)
    assert persistence.writer_of(first, "s") is None
    with persistence.sole_writer(first, "s"):
        writer = persistence.writer_of(second, "s")
        assert writer is not None
        assert writer.pid == os.getpid()
        assert abs((writer.since or 0) - time.time()) < 60
        assert persistence.writer_of(second, "other") is None
        with pytest.raises(
            StudyBusyError, match=rf"another process \(pid {os.getpid()} on .*UTC\)"
        ):
            hold(second)
        (summary,) = summaries(second)
        assert summary.writer == writer
    assert persistence.writer_of(second, "s") is None
    assert summaries(second)[0].writer is None
    hold(second)


@pytest.mark.parametrize("other", ["link.db", "hard.db", "new/../study.db", "elsewhere/study.db"])
def test_every_name_of_a_file_is_one_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    monkeypatch.chdir(tmp_path)
    first = persistence.open_storage("sqlite:///study.db", create=True)
    (tmp_path / "new").mkdir()
    (tmp_path / "link.db").symlink_to("study.db")
    (tmp_path / "hard.db").hardlink_to("study.db")
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    second = persistence.open_storage(f"sqlite:///{tmp_path}/{other}", create=False)
    for one, another in ((first, second), (second, first)):
        with persistence.sole_writer(one, "s"):
            assert persistence.writer_of(another, "s") is not None
            with pytest.raises(StudyBusyError, match="another process"):
                hold(another)
            hold_other = persistence.sole_writer(another, "other")
            with hold_other:
                pass
        hold(another)


def test_a_lock_file_that_was_deleted_admits_nobody(tmp_path: Path) -> None:
    first, second = (
        persistence.open_storage(f"sqlite:///{tmp_path}/study.db", create=True) for _ in range(2)
    )
    with persistence.sole_writer(first, "s"):
        for file in tmp_path.glob("*.lock"):
            file.unlink()
        with pytest.raises(StudyBusyError):
            hold(second)


def test_a_killed_writer_is_replaced_at_once(url: str) -> None:
    storage = persistence.open_storage(url, create=True)
    hold(storage)  # which makes the table
    storage.engine.dispose()
    reader, sender = FORK.Pipe()

    def write_for_ever() -> None:
        with persistence.sole_writer(persistence.open_storage(url, create=True), "s"):
            sender.send(1)
            time.sleep(60)

    process = FORK.Process(target=write_for_ever)
    process.start()
    reader.recv()
    assert persistence.writer_of(storage, "s") is not None
    with pytest.raises(StudyBusyError, match=f"pid {process.pid} "):
        hold(storage)
    process.kill()
    process.join()
    assert persistence.writer_of(storage, "s") is None
    hold(storage)


def test_a_writer_whose_connections_die_writes_on_alone(database: str) -> None:
    first, second = (persistence.open_storage(database, create=True) for _ in range(2))
    with persistence.sole_writer(first, "s"):
        study = study_in(first)
        with second.engine.connect() as connection:
            connection.execute(
                sqlalchemy.text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> "
                    "pg_backend_pid()"
                )
            )
        with pytest.raises(StudyBusyError):
            hold(second)
        add_trial(study)
    assert len(persistence.load(second, "s").trials) == 1
    hold(second)


def run_out(storage: RDBStorage) -> None:
    with storage.engine.begin() as connection:
        connection.execute(WRITERS.update().values(expires=0.0, process=""))


def test_a_writer_that_was_replaced_cannot_write(database: str) -> None:
    first, second = (persistence.open_storage(database, create=True) for _ in range(2))
    with persistence.sole_writer(first, "s"):
        study = study_in(first)
        add_trial(study)
        run_out(second)
        add_trial(study)  # its lease has run out, and nobody has taken it
        with persistence.sole_writer(second, "s"):
            with pytest.raises(
                RunError, match=r"study 's' was taken over by another process .*trials are kept"
            ):
                add_trial(study)
            with pytest.raises(RunError, match="taken over"):
                study.ask()
            assert len(study.trials) == 2, "it may read on"
            add_trial(persistence.load(second, "s"))
        with pytest.raises(RunError):
            study.set_user_attr("x", 1)
    assert len(persistence.load(second, "s").trials) == 3
    with second.engine.connect() as connection:
        assert connection.execute(sqlalchemy.select(WRITERS.c.token)).scalar() == 2


def test_a_lease_is_renewed_and_its_end_fails_no_search(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_lease, "TTL", 1.0)
    first, second = (persistence.open_storage(database, create=True) for _ in range(2))

    def end_of_lease() -> float:
        with second.engine.connect() as connection:
            return float(connection.execute(sqlalchemy.select(WRITERS.c.expires)).scalar_one())

    with persistence.sole_writer(first, "s"):
        begun, until = end_of_lease(), time.monotonic() + 30
        # It is renewed until it has lasted longer than one lifetime.
        while end_of_lease() < begun + 1.1:
            assert time.monotonic() < until
            time.sleep(0.02)
        with pytest.raises(StudyBusyError, match="should that be dead, the study is free in"):
            hold(second)

        def broken(*_: object, **__: object) -> None:
            raise OperationalError("the server is gone", None, Exception())

        monkeypatch.setattr(first.engine, "begin", broken)


def test_through_pgbouncer_a_study_has_one_writer(pool: str, tmp_path: Path) -> None:
    first, second = (persistence.open_storage(pool, create=True) for _ in range(2))
    with persistence.sole_writer(first, "s"):
        study = study_in(first)
        for number in range(8):  # drivers prepare a statement that they see for the fifth time
            add_trial(study, number)
            with pytest.raises(StudyBusyError):
                hold(second)
        with EvaluationCache(f"{tmp_path}/c,{pool}") as cache:
            for number in range(8):
                cache.put(evaluation_key("f" * 64, f"blocks/6:{number}", {"kind": "k"}), [[1.0]])
            assert cache.unsent == 0
            assert cache.shared is not None
            assert len(cache.shared) == 8
        run_out(second)
        with persistence.sole_writer(second, "s"), pytest.raises(RunError, match="taken over"):
            add_trial(study)
    assert persistence.load(second, "s").best_value == 0
    assert len(persistence.load(second, "s").trials) == 8


def test_busy_studies_are_refused_before_a_model_is_loaded_unless_they_are_complete(
    url: str, tmp_path: Path
) -> None:
    persistence.refuse_busy(f"sqlite:///{tmp_path}/none.db", ["s"], 1)
    assert not (tmp_path / "none.db").exists()
    storage = persistence.open_storage(url, create=True)
    with persistence.sole_writer(storage, "s"):
        study = study_in(storage)
        add_trial(study)
        with pytest.raises(StudyBusyError, match="'s' is being searched by another process"):
            persistence.refuse_busy(url, ["other", "s"], 2)
        persistence.refuse_busy(url, ["s"], 1)
    persistence.refuse_busy(url, ["s"], 2)


def test_a_study_that_is_deleted_while_it_is_searched_is_said_in_one_line(url: str) -> None:
    storage, dashboard = (persistence.open_storage(url, create=True) for _ in range(2))
    with (
        pytest.raises(RunError, match="study 's' was deleted or renamed while it was searched"),
        persistence.database_failures("s", storage),
        persistence.sole_writer(storage, "s"),
    ):
        study = study_in(storage)
        trial = study.ask()
        optuna.delete_study(study_name="s", storage=dashboard)
        study.tell(trial, 1.0)
    with pytest.raises(KeyError, match="mistake"), persistence.database_failures("s", storage):
        study_in(storage)
        raise KeyError("mistake")


def test_a_writer_of_whom_nothing_is_known_has_a_name() -> None:
    assert str(Writer()) == "another process"
    assert not is_dead("")
    assert not is_dead("another-boot pid:[1] 1 1")


def test_a_process_that_was_gone_when_it_was_named_is_dead() -> None:
    """Its name would be without a start, and nothing would ever tell that it is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert process_name(process.pid) == ""
    process.wait()
    words = this_process().split(" ")
    assert is_dead(" ".join([*words[:2], str(process.pid), ""]))
