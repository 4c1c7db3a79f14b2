"""The cache over its two backends: single-flight, and either backend vanishing."""

import logging
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy

from prunesearch.cache import (
    evaluation_cache,
    maintenance,
    schema,
    two_level,
)
from prunesearch.cache.entry import Entry
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.incidents import DAMAGE, DISAGREEMENT, Incident
from prunesearch.cache.keys import Key
from prunesearch.cache.local_backend import LocalBackend
from prunesearch.cache.location import CacheLocation
from prunesearch.cache.shared_backend import SharedBackend
from prunesearch.cache.tables import EVALUATIONS, LEASES, METADATA
from prunesearch.config.recipe import Recipe
from prunesearch.errors import StorageError, UnavailableError
from prunesearch.runtime import failpoints
from prunesearch.studies import persistence
from tests.support import postgres

MakeKey = Callable[[int], Key]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/team.db"
    found: str = request.getfixturevalue("database")
    return found


def test_a_generation_of_hits_is_one_read_of_the_database(
    tmp_path: Path, url: str, key: MakeKey
) -> None:
    keys = [key(number) for number in range(320)]
    with EvaluationCache(f"{tmp_path}/a,{url}") as cache:
        shared = cache.shared
        assert shared is not None
        shared.put(Entry(one, [[0.5]], 1.0, 0.0) for one in keys)
        statements: list[str] = []

        def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            statements.append(statement)

        sqlalchemy.event.listen(shared.engine, "before_cursor_execute", note)
        for selects in (1, 0):  # the second time the disk knows all of them
            statements.clear()
            with cache.single_flight() as single_flight:
                assert len(single_flight.acquire(keys)) == len(keys)
            read = [statement for statement in statements if "evaluations" in statement]
            assert len(read) == selects
            # The others begin a transaction.
            assert len(statements) <= 2 * selects


def test_a_key_that_nobody_has_is_computed_once(tmp_path: Path, key: MakeKey) -> None:
    with EvaluationCache(tmp_path) as cache:
        cache.put(key(1), "known", seconds=2.5)
        with cache.single_flight() as single_flight:
            found = single_flight.acquire([key(1), key(2)])
            assert {digest: entry.seconds for digest, entry in found.items()} == {
                key(1).digest: 2.5
            }
            assert single_flight.owned == {key(2).digest}
            with cache.single_flight() as other:
                assert other.acquire([key(2)]) == {}
                assert other.owned == set()
            stands = single_flight.commit(key(2), "new", 1.0)
            assert stands is not None
            assert stands.value == "new"
        assert len(cache) == 2


def test_what_is_given_up_is_left_to_others(tmp_path: Path, key: MakeKey) -> None:
    with EvaluationCache(tmp_path) as cache, cache.single_flight() as second:
        with pytest.raises(KeyError), cache.single_flight() as first:
            first.acquire([key(1), key(2), key(3)])
            first.release([key(1)])
            second.acquire([key(1), key(2)])
            assert second.owned == {key(1).digest}
            raise KeyError
        second.acquire([key(2), key(3)])
        assert len(second.owned) == 3


def test_once_is_once(tmp_path: Path, key: MakeKey) -> None:
    computed: list[int] = []

    def compute() -> int:
        computed.append(1)
        time.sleep(0.1)
        return 7

    def ask() -> None:
        with EvaluationCache(tmp_path) as cache:
            assert cache.once(key(1), compute) == 7

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert computed == [1]


def test_a_value_that_is_no_json_is_refused_and_its_lease_kept(
    tmp_path: Path, key: MakeKey
) -> None:
    with EvaluationCache(tmp_path) as cache, cache.single_flight() as single_flight:
        single_flight.acquire([key(1)])
        with pytest.raises(ValueError, match="not JSON compliant"):
            single_flight.commit(key(1), float("inf"))
        with pytest.raises(ValueError, match="too large to store"):
            single_flight.commit(key(1), "x" * 9_000_000)
        assert single_flight.owned == {key(1).digest}


def test_threads_that_want_the_same_compute_it_once(url: str, tmp_path: Path, key: MakeKey) -> None:
    computed: list[str] = []
    keys = [key(i) for i in range(20)]

    def work(folder: Path) -> None:
        with EvaluationCache(f"{folder},{url}") as cache, cache.single_flight() as single_flight:
            left = {k.digest: k for k in keys}
            while left:
                for digest in single_flight.acquire(left.values()):
                    del left[digest]
                for digest in single_flight.owned:
                    computed.append(digest)
                    single_flight.commit(left.pop(digest), digest)
                single_flight.wait(lambda: False)

    threads = [threading.Thread(target=work, args=(tmp_path / f"m{i % 2}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(computed) == sorted(k.digest for k in keys)


def test_colleagues_find_what_was_computed(url: str, tmp_path: Path, key: MakeKey) -> None:
    with EvaluationCache(f"{tmp_path}/a,{url}") as cache:
        cache.put(key(1), [1.5])
    with EvaluationCache(f"{tmp_path}/b,{url}") as cache:
        found = cache.get(key(1))
        assert found is not None
        assert found.value == [1.5]
        assert cache.local is not None
        assert len(cache.local) == 1, "the next hit comes from the disk"
        assert cache.get(key(2)) is None


def test_the_first_value_stays_and_another_is_an_incident(
    url: str, tmp_path: Path, key: MakeKey
) -> None:
    with EvaluationCache(f"{tmp_path}/a,{url}") as cache, closing(SharedBackend(url)) as backend:
        cache.put(key(1), [1.0])
        assert backend.put([Entry(key(1), [2.0])])[key(1).digest].value == [1.0]
        assert backend.put([Entry(key(1), [2.0])])[key(1).digest].value == [1.0]
        (incident,) = backend.read_incidents()
        assert (incident.kind, incident.key) == (DISAGREEMENT, key(1).digest)


def test_damage_in_the_database_is_taken_out(url: str, tmp_path: Path, key: MakeKey) -> None:
    with closing(SharedBackend(url)) as backend:
        backend.put([Entry(key(i), i) for i in range(3)])
        with backend.engine.begin() as connection:
            connection.execute(
                EVALUATIONS.update()
                .where(EVALUATIONS.c.key == key(1).digest)
                .values(serialized="x\ny")
            )
        assert [entry is None for _, entry in backend.scan()].count(True) == 1
        assert set(backend.get(key(i).digest for i in range(3))) == {key(0).digest, key(2).digest}
        assert [incident.kind for incident in backend.read_incidents()] == [DAMAGE]
        assert len(backend) == 2


def test_the_tables_live_beside_optunas(url: str, tmp_path: Path, key: MakeKey) -> None:
    with EvaluationCache(f"{tmp_path}/a,{url}") as cache:
        cache.put(key(1), 1)
    storage = persistence.open_storage(url, create=True)
    recipe = Recipe(model="m", drop="2")
    study = persistence.create_or_resume(
        storage, "s", recipe, {"a": 1}, metrics=["kl"], maximize=[False]
    )
    study.add_trial(optuna.trial.create_trial(value=0.5))
    with EvaluationCache(f"{tmp_path}/b,{url}") as cache:
        assert cache.get(key(1)) is not None
    names = set(sqlalchemy.inspect(storage.engine).get_table_names())
    assert {"trials", "alembic_version", schema.VERSION_TABLE, *METADATA.tables} <= names
    assert optuna.load_study(study_name="s", storage=url).best_value == 0.5


def test_the_migrations_make_the_tables_that_the_code_uses(url: str) -> None:
    with closing(SharedBackend(url)) as backend, backend.engine.connect() as connection:
        found = sqlalchemy.inspect(connection)
        for table in METADATA.sorted_tables:
            columns = {
                column["name"]: column["nullable"] for column in found.get_columns(table.name)
            }
            assert columns == {column.name: column.nullable for column in table.columns}
            indexed = {tuple(index["column_names"]) for index in found.get_indexes(table.name)}
            assert indexed == {
                tuple(column.name for column in index.columns) for index in table.indexes
            }


def test_a_database_of_the_first_schema_is_migrated_with_its_rows(url: str, key: MakeKey) -> None:
    # 1. Take the tables back to the first schema, with an entry and an incident in them.
    with closing(SharedBackend(url)) as backend:
        backend.put([Entry(key(1), [1.0], 1, 1)])
        backend.report_incident(Incident.damage("name", "found"))
        with backend.engine.begin() as connection:
            for statement in (
                "ALTER TABLE prunesearch_evaluations RENAME COLUMN serialized TO sealed",
                "ALTER TABLE prunesearch_incidents RENAME TO prunesearch_alarms",
                f"UPDATE {schema.VERSION_TABLE} SET version_num = '0001'",
            ):
                connection.exec_driver_sql(statement)
    # 2. Opening it migrates it.
    with closing(SharedBackend(url)) as backend:
        assert backend.get([key(1).digest])[key(1).digest].value == [1.0]
        assert [incident.detail for incident in backend.read_incidents()] == ["found"]
        assert backend.put([Entry(key(2), [2.0], 1, 1)])
        backend.report_incident(Incident.damage("other", "found later"))
        assert len(backend.read_incidents()) == 2


def test_a_writer_of_the_first_schema_is_refused_after_the_migration(url: str) -> None:
    """Its process sees a database that does not work, and keeps its results on its own disk."""
    old = "INSERT INTO prunesearch_evaluations (key, sealed) VALUES ('k', 'text')"
    with (
        closing(SharedBackend(url)) as backend,
        pytest.raises(UnavailableError, match="sealed"),
        backend.failures(),
        backend.engine.begin() as connection,
    ):
        connection.exec_driver_sql(old)


def test_a_newer_schema_is_refused_with_the_remedy(url: str) -> None:
    with closing(SharedBackend(url)) as backend, backend.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(
        StorageError, match=r"newer prunesearch .schema 9999, known: 0002.: upgrade prunesearch"
    ):
        SharedBackend(url)


def test_several_processes_may_open_a_new_database_at_once(url: str) -> None:
    failures: list[Exception] = []

    def open_it() -> None:
        try:
            SharedBackend(url).close()
        except StorageError as error:
            failures.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_database_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"shared cache .* does not work") as caught:
        EvaluationCache(f"{tmp_path}/a,postgresql+psycopg://me:secret@127.0.0.1:9/nowhere")
    assert "secret" not in str(caught.value)
    with pytest.raises(StorageError, match="unknown database 'mysql'"):
        EvaluationCache("mysql://me@host/d")


def test_a_search_goes_on_without_its_database_and_catches_up(
    tmp_path: Path, key: MakeKey, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not postgres.AVAILABLE:
        pytest.skip("PostgreSQL's server is not installed")
    monkeypatch.setattr(two_level, "RETRY_SECONDS", 0.3)
    with postgres.Server() as server, EvaluationCache(f"{tmp_path}/a,{server.url}") as cache:
        with cache.single_flight() as single_flight:
            single_flight.acquire([key(i) for i in range(4)])
            single_flight.commit(key(0), 0)
            server.stop()
            assert single_flight.commit(key(1), 1) is not None, "leased before, committed now"
            single_flight.acquire([key(5)])
            assert single_flight.commit(key(5), 5) is not None, "leased while it is down"
            assert cache.unsent == 2
            assert cache.get(key(5)) is not None
            server.start()
            end = time.monotonic() + 10
            while len(LocalBackend(tmp_path / "a" / "unsent")) and time.monotonic() < end:
                time.sleep(0.1)
        with closing(SharedBackend(server.url)) as backend:
            assert len(backend.get(key(i).digest for i in range(6))) == 3
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "results are kept here until it is back" in said[0]
    assert said[1] == "the shared cache works again"


def test_what_was_not_sent_is_sent_by_the_next_run(tmp_path: Path, key: MakeKey) -> None:
    url = f"sqlite:///{tmp_path}/team.db"
    with closing(LocalBackend(tmp_path / "a" / "unsent")) as outbox:
        outbox.put([Entry(key(1), 1)])
    with EvaluationCache(f"{tmp_path}/a,{url}") as cache, closing(SharedBackend(url)) as backend:
        assert set(backend.get([key(1).digest])) == {key(1).digest}
        assert cache.get(key(1)) is not None
    assert len(LocalBackend(tmp_path / "a" / "unsent")) == 0


def test_a_search_goes_on_without_its_disk(
    url: str, tmp_path: Path, key: MakeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EvaluationCache(f"{tmp_path}/a,{url}") as cache, cache.single_flight() as single_flight:
        single_flight.acquire([key(1), key(2)])
        single_flight.commit(key(1), 1)
        assert cache.local is not None
        monkeypatch.setattr(cache.local, "put", _fail)
        assert single_flight.commit(key(2), 2) is not None
        assert cache.local is None
        assert cache.get(key(1)) is not None
        single_flight.acquire([key(3)])
        assert single_flight.commit(key(3), 3) is not None


def _fail(*_: object, **__: object) -> None:
    raise UnavailableError(
        "cannot write the cache in 'a': database or disk is full; free space and run again"
    )


def test_without_any_backend_the_failure_is_named(
    tmp_path: Path, key: MakeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EvaluationCache(tmp_path / "a") as cache, cache.single_flight() as single_flight:
        single_flight.acquire([key(1)])
        monkeypatch.setattr(cache.local, "put", _fail)
        with pytest.raises(UnavailableError, match="free space and run again"):
            single_flight.commit(key(1), 1)
    monkeypatch.setattr(two_level, "PATIENCE", 0.1)
    monkeypatch.setattr(two_level, "RETRY_SECONDS", 0.1)
    url = f"sqlite:///{tmp_path}/team.db"
    with EvaluationCache(f"{tmp_path}/b,{url}") as cache:
        assert cache.shared is not None
        with cache.shared.engine.begin() as connection:
            METADATA.drop_all(connection)
        monkeypatch.setattr(cache.local, "put", _fail)
        with pytest.raises(UnavailableError, match="no such table"):
            cache.put(key(1), 1)


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_full_disk_fails_soon_and_what_is_there_can_be_read(tmp_path: Path, key: MakeKey) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount")
    try:
        with EvaluationCache(small / "c") as cache:
            before = time.monotonic()
            with pytest.raises(UnavailableError, match=r"full.*free space") as caught:
                for i in range(1000):
                    before = time.monotonic()
                    cache.put(key(i), "x" * 20_000)
            assert time.monotonic() - before < 5
            assert "\n" not in str(caught.value)
            assert cache.get(key(0)) is not None
            with cache.single_flight() as single_flight, pytest.raises(UnavailableError):
                for i in range(1000, 2000):
                    single_flight.acquire([key(i)])
                    single_flight.commit(key(i), "x" * 20_000)
        with EvaluationCache(f"{small}/d,sqlite:///{tmp_path}/team.db") as cache:
            for i in range(200):
                cache.put(key(i), "x" * 20_000)
            assert cache.local is None
            assert cache.get(key(150)) is not None
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_failpoints_are_hit_under_test_only(tmp_path: Path, key: MakeKey) -> None:
    reached = []
    failpoints.enable(lambda point, subject: reached.append((point, subject)))
    try:
        with EvaluationCache(tmp_path) as cache, cache.single_flight() as single_flight:
            single_flight.acquire([key(1)])
            single_flight.commit(key(1), 1)
    finally:
        failpoints.enable(None)
    assert reached == [
        (point, key(1).digest) for point in ("after_acquire", "before_commit", "after_commit")
    ]
    package = Path(evaluation_cache.__file__).parent.parent
    sources = [path for path in package.rglob("*.py") if path.name != "faults.py"]
    texts = "\n".join(path.read_text() for path in sources)
    assert "faults.arm" not in texts
    assert "import arm" not in texts
    assert {point for point in failpoints.POINTS if f'"{point}"' in texts} == set(failpoints.POINTS)


def test_leases_hold_in_the_shared_table(url: str, tmp_path: Path, key: MakeKey) -> None:
    with EvaluationCache(f"{tmp_path}/a,{url}") as cache, cache.single_flight() as single_flight:
        single_flight.acquire([key(1)])
        assert cache.shared is not None
        with cache.shared.engine.connect() as connection:
            assert connection.execute(sqlalchemy.select(LEASES.c.key)).scalars().all() == [
                key(1).digest
            ]


def test_a_damaged_outbox_is_made_anew_and_says_nothing_about_the_database(
    tmp_path: Path, key: MakeKey, caplog: pytest.LogCaptureFixture
) -> None:
    folder, url = tmp_path / "a", f"sqlite:///{tmp_path}/team.db"
    with closing(LocalBackend(folder / "unsent")) as outbox:
        outbox.put([Entry(key(i), ["x" * 3000, i]) for i in range(50)])
    file = folder / "unsent" / "cache.db"
    content = bytearray(file.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xff" * 4096
    file.write_bytes(content)
    folder.chmod(0o700)
    with EvaluationCache(f"{folder},{url}") as cache:
        cache.put(key(99), 1)
        assert cache.unsent == 0
        assert 45 < len(cache) <= 51, "what was sound has been sent"
    assert "are kept here until it is back" not in caplog.text
    (folder / "unsent").chmod(0o777)
    with EvaluationCache(f"{folder},{url}") as cache:
        cache.put(key(100), 1)
        assert cache.unsent == 0
    assert caplog.text.count("can be written by others") == 1


def test_verify_looks_at_what_waits_to_be_sent(tmp_path: Path, key: MakeKey) -> None:
    with (
        closing(LocalBackend(tmp_path / "c")),
        closing(LocalBackend(tmp_path / "c" / "unsent")) as outbox,
    ):
        outbox.put([Entry(key(i), [[i, 1.5, 2]]) for i in range(3)])
    with sqlite3.connect(tmp_path / "c" / "unsent" / "cache.db") as rows:
        rows.execute("UPDATE Cache SET value = replace(value, '[1,1.5,2]', '[1,1.6,2]')")
    found = maintenance.verified(CacheLocation(tmp_path / "c")).backends
    assert [(backend.sound, backend.damaged) for backend in found] == [(0, 0), (2, 1)]


def test_an_entry_that_is_deleted_while_it_is_put_is_stored(
    url: str, tmp_path: Path, key: MakeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `cache gc` comes between: it waits for the transaction, or the entry is inserted anew."""
    with closing(SharedBackend(url)) as backend, closing(SharedBackend(url)) as gc:
        backend.put([Entry(key(1), 1)])
        deleting = threading.Thread(target=gc.discard, args=([key(1).digest],))
        settle = backend._settle

        def settle_slowly(*words: Any) -> Entry:  # noqa: ANN401
            deleting.start()
            deleting.join(0.3)
            return settle(*words)

        monkeypatch.setattr(backend, "_settle", settle_slowly)
        assert backend.put([Entry(key(1), 1)])[key(1).digest].value == 1
        deleting.join()
        assert len(backend) == 0


def test_concurrent_merges_keep_the_entry_that_was_made_first(
    url: str, key: MakeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(SharedBackend(url)) as backend:
        backend.put([Entry(key(1), 1, made=10.0)])
        slow, fast = SharedBackend(url), SharedBackend(url)
        settle = slow._settle
        merging = threading.Thread(target=fast.put, args=([Entry(key(1), 1, made=5.0)], "earliest"))

        def settle_late(*words: Any) -> Entry:  # noqa: ANN401
            merging.start()
            merging.join(0.3)
            return settle(*words)

        monkeypatch.setattr(slow, "_settle", settle_late)
        slow.put([Entry(key(1), 1, made=7.0)], "earliest")
        merging.join()
        assert backend.get([key(1).digest])[key(1).digest].made == 5.0
        slow.close()
        fast.close()
