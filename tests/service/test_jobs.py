"""Jobs without a runner: the queue, its keys, its pages, and the verbs."""

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy

from prunesearch.errors import ConflictError, InputError, NotFoundError, StorageError
from prunesearch.service import database
from prunesearch.service.job import Job, JobRequest
from prunesearch.service.job_reader import JobReader
from prunesearch.service.job_state import STAGES
from prunesearch.service.jobs import Jobs
from prunesearch.service.settings import ServiceSettings
from prunesearch.service.tables import METADATA, workflow_table
from tests.support.jobs import request, settings_in, until


@pytest.fixture(params=["sqlite", "postgresql"])
def jobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Jobs]:
    """Jobs in an empty database of either kind."""
    url = None
    if request.param == "postgresql":
        url = request.getfixturevalue("database")
    opened = Jobs(settings_in(tmp_path, url))
    yield opened
    opened.close()


def test_a_job_is_queued_once_however_often_it_is_sent(jobs: Jobs) -> None:
    job, new = jobs.submit(request("s"), "ann", "key")
    assert new
    assert (job.state, job.submitted_by, job.study, job.last_event) == ("queued", "ann", "s", 1)
    assert job.id.startswith("job-")
    assert len(job.id) == 20
    assert [stage.name for stage in job.stages] == list(STAGES["search"])
    assert jobs.submit(request("s"), "ann", "key") == (job, False)
    # Another user may use the same key. Another request may not.
    assert jobs.submit(request("s"), "bob", "key")[0].id != job.id
    with pytest.raises(ConflictError, match="another request"):
        jobs.submit(request("t"), "ann", "key")
    with pytest.raises(ConflictError, match="another request"):
        jobs.submit(replace(request("s"), trials=7), "ann", "key")
    assert jobs.counts()["queued"] == 2


def test_eight_threads_with_one_key_make_one_job(jobs: Jobs) -> None:
    results: list[tuple[Job, bool]] = []
    ready = threading.Barrier(8)

    def submit() -> None:
        ready.wait()
        results.append(jobs.submit(request("s"), "ann", "key"))

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert {job.id for job, _ in results} == {results[0][0].id}
    assert sum(new for _, new in results) == 1
    assert len(jobs.list().jobs) == 1
    assert [event.seq for event in jobs.events(results[0][0].id)] == [1]


def test_pages_show_every_job_once_the_newest_first(jobs: Jobs) -> None:
    made = [jobs.submit(request(f"s{number % 2}"), "ann")[0].id for number in range(7)]
    pages, cursor = [], None
    while True:
        page = jobs.list(limit=3, cursor=cursor)
        pages.append([job.id for job in page.jobs])
        # A job that is submitted meanwhile moves no other job to another page.
        if cursor is None:
            jobs.submit(request("late"), "bob")
        cursor = page.next
        if cursor is None:
            break
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [job for page in pages for job in page] == made[::-1]
    assert [job.id for job in jobs.list(study="s1").jobs] == made[5::-2]
    assert len(jobs.list(submitted_by="bob").jobs) == 1
    jobs.cancel(made[0])
    jobs.pause(made[1])
    assert [job.id for job in jobs.list(state="cancelled").jobs] == [made[0]]
    assert [job.id for job in jobs.list(state="paused").jobs] == [made[1]]
    assert len(jobs.list(state="queued").jobs) == 6
    assert jobs.list(state="failed").jobs == ()
    assert jobs.last_events([*made[:2], "job-0"]) == {made[0]: 2, made[1]: 2}
    for cursor in ("x", "1_job-1", "' OR 1=1 --", "1e999_job-0123456789abcdef"):
        with pytest.raises(InputError, match="cursor"):
            jobs.list(cursor=cursor)


def test_verbs_of_a_queued_job(jobs: Jobs) -> None:
    job, _ = jobs.submit(request("s"), "ann")
    assert jobs.pause(job.id).state == "paused"
    with pytest.raises(ConflictError, match="resume it first"):
        jobs.stop(job.id)
    assert jobs.resume(job.id).state == "queued"
    assert jobs.stop(job.id).state == "queued"
    with pytest.raises(ConflictError, match="cancel it first"):
        jobs.delete(job.id)
    assert jobs.cancel(job.id).state == "cancelled"
    assert jobs.cancel(job.id).state == "cancelled"
    for verb in (jobs.pause, jobs.resume, jobs.stop):
        with pytest.raises(ConflictError, match="it is cancelled"):
            verb(job.id)
    states = [event.data["state"] for event in jobs.events(job.id)]
    assert states == ["queued", "paused", "queued", "cancelled"]
    assert jobs.result(job.id) is None
    with pytest.raises(NotFoundError, match="has no export"):
        jobs.export_folder(job.id)
    jobs.delete(job.id)
    for call in (jobs.get, jobs.pause, jobs.delete, jobs.result):
        with pytest.raises(NotFoundError, match="there is no job"):
            call(job.id)


@pytest.mark.parametrize("jobs", ["sqlite"], indirect=True)
def test_a_key_is_free_again_after_its_job_was_deleted(jobs: Jobs) -> None:
    job, _ = jobs.submit(request("s"), "ann", "key")
    jobs.cancel(job.id)
    jobs.delete(job.id)
    again, new = jobs.submit(request("t"), "ann", "key")
    assert new
    assert again.id == job.id
    assert [event.seq for event in jobs.events(job.id)] == [1]


def test_a_key_whose_deleted_job_left_its_export_is_refused(jobs: Jobs) -> None:
    job, _ = jobs.submit(request("s"), "ada", "key")
    jobs.cancel(job.id)
    jobs.delete(job.id)
    (jobs.settings.exports / job.id).mkdir(parents=True)
    with pytest.raises(ConflictError, match="give another key"):
        jobs.submit(request("s"), "ada", "key")
    # The name of the deleted job leads nobody to what it left.
    assert jobs.submit(request("s"), "ada", "other")[1]


def test_pause_and_cancel_at_once_end_in_one_of_the_two(jobs: Jobs) -> None:
    job, _ = jobs.submit(request("s"), "ann")
    errors: list[Exception] = []

    def call(verb: str) -> None:
        try:
            getattr(jobs, verb)(job.id)
        except ConflictError as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(verb,)) for verb in ("pause", "cancel") * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = jobs.get(job.id).state
    assert state in ("paused", "cancelled")
    assert jobs.events(job.id)[-1].data["state"] == state


@pytest.mark.parametrize("jobs", ["sqlite"], indirect=True)
def test_reading_events_from_a_number_on(jobs: Jobs) -> None:
    job, _ = jobs.submit(request("s"), "ann")
    for _ in range(3):
        jobs.pause(job.id)
        jobs.resume(job.id)
    assert [event.seq for event in jobs.events(job.id, after=2, limit=3)] == [3, 4, 5]
    assert jobs.events(job.id, after=7) == []
    assert jobs.events(job.id, kinds=("log",)) == []
    assert len(jobs.events(job.id, kinds=("log", "state"))) == 7


def test_a_study_of_another_recipe_is_refused_at_once(tmp_path: Path, database: str) -> None:
    import optuna

    from prunesearch.config.recipe import Recipe
    from prunesearch.studies import persistence

    settings = settings_in(tmp_path, database)
    storage = persistence.open_storage(database, create=True)
    recipe = Recipe(model="fake", drop="3")
    persistence.create_or_resume(
        storage, "s", recipe, recipe.identity(), metrics=["kl"], maximize=[False]
    )
    assert optuna.get_all_study_names(storage) == ["s"]
    jobs = Jobs(settings)
    with pytest.raises(InputError, match="drop"):
        jobs.submit(request("s"), "ann")
    with pytest.raises(InputError, match="drop"):
        jobs.check(request("s"))
    for _ in range(5):
        assert jobs.check(request("t")).study == "t"
    assert jobs.list().jobs == ()
    jobs.close()
    storage.remove_session()
    storage.engine.dispose()
    # No request leaves a connection to the server.
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    # Within one transaction PostgreSQL would show the same connections again and again.
    engine = sqlalchemy.create_engine(database, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        until(lambda: connection.exec_driver_sql(query).scalar() == 1)
    engine.dispose()


def test_everything_is_in_one_database_with_a_schema_for_the_queue(
    tmp_path: Path, database: str
) -> None:
    Jobs(settings_in(tmp_path, database)).close()
    inspector = sqlalchemy.inspect(sqlalchemy.create_engine(database))
    assert {"prunesearch_job_events", "prunesearch_runners"} <= set(inspector.get_table_names())
    assert "workflow_status" in inspector.get_table_names(schema="dbos")
    assert "workflow_status" not in inspector.get_table_names()
    # The queue uses no notifications, which need a session of their own.
    query = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'dbos%%'"
    with sqlalchemy.create_engine(database).connect() as connection:
        assert connection.exec_driver_sql(query).scalar() == 0


def test_the_migrations_make_the_tables_that_the_code_knows(jobs: Jobs) -> None:
    inspector = sqlalchemy.inspect(jobs._engine)
    for name, table in METADATA.tables.items():
        found = {column["name"]: column["nullable"] for column in inspector.get_columns(name)}
        assert found == {column.name: column.nullable for column in table.columns}
        indexed = {column.name for column in table.columns if column.index}
        assert {str(index["column_names"][0]) for index in inspector.get_indexes(name)} >= indexed
    schema = "dbos" if jobs._engine.dialect.name == "postgresql" else None
    known = {column["name"] for column in inspector.get_columns("workflow_status", schema=schema)}
    assert {column.name for column in workflow_table(jobs._engine.dialect.name).columns} <= known


def test_tables_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    Jobs(settings).close()
    with sqlite3.connect(tmp_path / "service.db") as connection:
        connection.execute(f"UPDATE {database.VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(StorageError, match=r"newer prunesearch .*another `storage`"):
        Jobs(settings)


def test_a_database_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    url = "postgresql+psycopg://me:hunter2@127.0.0.1:1/db"
    with pytest.raises(StorageError, match="cannot open") as raised:
        Jobs(settings_in(tmp_path, url))
    assert "hunter2" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_settings_are_checked(tmp_path: Path) -> None:
    for bad in (
        {"jobs_per_device": 0},
        {"devices": ("cpu", "cpu")},
        {"storage": "x"},
        {"threads": 0},
    ):
        with pytest.raises(InputError):
            settings_in(tmp_path, **bad)
    assert ServiceSettings(devices=("cuda:0", "cuda:1"), jobs_per_device=2).slots == (
        "cuda:0", "cuda:1", "cuda:0", "cuda:1",
    )  # fmt: skip
    assert ServiceSettings().slots == (None,)
    assert ServiceSettings(threads=1, engine="ray", workers=4, ray_address="auto").scoring == {
        "threads": 1, "engine": "ray", "workers": 4, "ray_address": "auto",
    }  # fmt: skip
    assert ServiceSettings().database == "sqlite:///storage/service.db"
    assert settings_in(tmp_path, "postgresql://me@host/db").database == "postgresql://me@host/db"


@pytest.mark.parametrize("jobs", ["sqlite"], indirect=True)
def test_the_share_that_confirms_belongs_to_the_request(jobs: Jobs) -> None:
    asked = replace(request("s"), confirm=0.3)
    job, _ = jobs.submit(asked, "ann", "key")
    stored = JobReader(database.open_database(jobs.settings.database)).request(job.id)
    assert stored is not None
    assert stored["confirm"] == job.confirm == 0.3
    assert jobs.submit(asked, "ann", "key") == (job, False)
    with pytest.raises(ConflictError, match="another request"):
        jobs.submit(request("s"), "ann", "key")
    with pytest.raises(InputError, match="confirm"):
        jobs.submit(replace(request("s"), confirm=0.95), "ann")


@pytest.mark.parametrize("jobs", ["sqlite"], indirect=True)
def test_the_request_is_stored_as_a_complete_recipe(jobs: Jobs) -> None:
    short = JobRequest({"model": "fake", "drop": "25%"}, "search")
    job, _ = jobs.submit(short, "ann", "key")
    assert job.recipe["model"] == {
        "path": "fake", "revision": None, "trust_remote_code": False, "dtype": "auto",
    }  # fmt: skip
    assert job.study == "fake-drop25pct-kl-pso"
    assert job.trials == 200
    full = JobRequest(job.recipe, "search")
    assert jobs.submit(full, "ann", "key") == (job, False)
