"""Studies, evaluations and jobs in one PostgreSQL database, also through PgBouncer."""

import threading
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.trial import create_trial

from prunesearch import events
from prunesearch.cache import schema
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.runtime import failpoints
from prunesearch.service.database import VERSION_TABLE as SERVICE_VERSION
from prunesearch.service.database import open_database
from prunesearch.service.queue import open_client
from prunesearch.studies import persistence
from prunesearch.studies.copying import copy_studies
from tests.support import postgres
from tests.support.processes import FORK
from tests.support.searches import search_in, trials_of

TRIALS = 24


def open_everything(url: str, folder: Path) -> None:
    """Open everything that is kept in a database."""
    storage = persistence.open_storage(url, create=True)
    with persistence.sole_writer(storage, folder.name):
        pass
    EvaluationCache(f"{folder},{url}").close()
    open_database(url).dispose()
    open_client(url).destroy()


def test_processes_that_start_together_share_an_empty_database(pool: str, tmp_path: Path) -> None:
    url = pool
    started = []
    for number in range(4):
        process = FORK.Process(target=open_everything, args=(url, tmp_path / str(number)))
        process.start()
        started.append(process)
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * 4
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        # Each history has one row in a table of its own.
        for table in ("alembic_version", schema.VERSION_TABLE, SERVICE_VERSION):
            rows = connection.execute(sqlalchemy.text(f"SELECT version_num FROM {table}"))
            assert len(rows.all()) == 1, table
        names = set(sqlalchemy.inspect(connection).get_table_names())
        assert "workflow_status" in sqlalchemy.inspect(connection).get_table_names(schema="dbos")
    engine.dispose()
    assert {"trials", "prunesearch_evaluations", "prunesearch_writers"} <= names
    assert {"prunesearch_job_records", "prunesearch_job_events"} <= names
    # Studies and evaluations do not disturb each other.
    with EvaluationCache(f"{tmp_path}/c,{url}") as cache:
        search_in(url, tmp_path, "pso", 4)
        assert cache.shared is not None
        assert len(trials_of(url)) == 4


def test_a_study_is_copied_through_pgbouncer(pool: str, database: str, tmp_path: Path) -> None:
    file = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=file, study_name="s")
    study.add_trials([create_trial(value=float(value)) for value in range(8)])
    copy_studies(file, pool, ["s"])
    copy_studies(pool, pool, ["s"], "t")
    copy_studies(pool, f"sqlite:///{tmp_path}/back.db", ["t"])
    assert trials_of(f"sqlite:///{tmp_path}/back.db", "t") == trials_of(file)
    assert trials_of(database, "t") == trials_of(file)


def test_a_search_through_pgbouncer_survives_its_death_and_that_of_the_server(
    tmp_path: Path,
) -> None:
    if postgres.BOUNCER is None or not postgres.AVAILABLE:
        pytest.skip("PgBouncer or PostgreSQL is not installed")
    unbroken = f"sqlite:///{tmp_path}/unbroken.db"
    search_in(unbroken, tmp_path, "pso", TRIALS)
    with postgres.Server() as server, postgres.Bouncer(server) as bouncer:
        url = bouncer.url(server.url)
        persistence.open_storage(url, create=True).engine.dispose()

        def fail(point: str, number: str) -> None:
            if point == "before_tell" and number == "5":
                bouncer.stop()
                threading.Timer(0.2, bouncer.start).start()
            if point == "before_tell" and number == "14":
                server.stop("immediate")
                threading.Timer(0.2, server.start).start()

        messages: list[events.Event] = []
        failpoints.enable(fail)
        try:
            with events.subscribed(messages.append):
                search_in(url, tmp_path, "pso", TRIALS)
        finally:
            failpoints.enable(None)
        assert trials_of(server.url) == trials_of(unbroken)
    # PgBouncer lets its clients wait while the server is away, so that outage may go unnoticed.
    assert sum("works again" in str(message) for message in messages) >= 1
