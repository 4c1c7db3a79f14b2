"""The commands of storage/README.md that back up, restore and upgrade, run as they stand there."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.keys import Key, evaluation_key
from prunesearch.errors import StorageError
from prunesearch.service.database import open_database
from prunesearch.service.queue import open_client
from prunesearch.studies import persistence
from tests.support import postgres
from tests.support.paths import REPOSITORY
from tests.support.searches import search_in, trials_of

SECTION = (REPOSITORY / "storage" / "README.md").read_text().partition("## Back up, restore")[2]
BLOCKS = re.findall(r"```bash\n(.*?)```", SECTION.partition("\n## ")[0], re.DOTALL)
KEY: Key = evaluation_key("f" * 64, "blocks/6:1", {"kind": "k"})


def block_with(words: str) -> str:
    """The one block that has these words."""
    found: list[str] = [block for block in BLOCKS if words in block]
    assert len(found) == 1, words
    return found[0]


@pytest.fixture(scope="module")
def own() -> Iterator[postgres.Server]:
    """A server whose databases have the names of the page."""
    if not postgres.AVAILABLE or shutil.which("pg_dump") is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres.Server() as running:
        yield running


@pytest.fixture(scope="module")
def team(own: postgres.Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with a search that is not at its end, an evaluation, and tables of jobs."""
    url, folder = own.database("team"), tmp_path_factory.mktemp("team")
    search_in(url, folder, "pso", 8)
    with EvaluationCache(f"{folder}/c,{url}") as cache:
        cache.put(KEY, [[1.0]])
    open_database(url).dispose()
    open_client(url).destroy()
    return url


def run(block: str, server: postgres.Server, folder: Path) -> str:
    """Run a block with the server of the tests; return what it prints."""
    # The page names host and database; the server of the tests has a port.
    text = block.replace("me@host/", f"me@127.0.0.1:{server.port}/")
    assert text != block or "postgresql" not in block
    ours = Path(sys.executable).parent
    script = f'prunesearch() {{ {sys.executable} -m prunesearch "$@"; }}\n{text}'
    environment = {**os.environ, "PATH": f"{ours}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_whole_database_is_restored_and_goes_on(
    own: postgres.Server, team: str, tmp_path: Path
) -> None:
    # The search has a writer while the dump is made.
    storage = persistence.open_storage(team, create=False)
    with persistence.sole_writer(storage, "s"):
        run(block_with("team.dump"), own, tmp_path)
    restored = team.replace("/team", "/restored")
    assert trials_of(restored) == trials_of(team)
    with EvaluationCache(f"{tmp_path}/c,{restored}") as cache:
        entry = cache.get(KEY)
        assert entry is not None
        assert entry.value == [[1.0]]
    open_database(restored).dispose()
    open_client(restored).destroy()
    # The dump says that this process writes the study, and that is half a minute ago.
    engine = sqlalchemy.create_engine(restored)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE prunesearch_writers SET expires = expires - 30")
    engine.dispose()
    unbroken = f"sqlite:///{tmp_path}/unbroken.db"
    search_in(unbroken, tmp_path, "pso", 16)
    search_in(restored, tmp_path, "pso", 16)
    assert trials_of(restored) == trials_of(unbroken)


def test_studies_alone_are_restored(own: postgres.Server, team: str, tmp_path: Path) -> None:
    run(block_with("studies.dump"), own, tmp_path)
    studies = team.replace("/team", "/studies")
    assert trials_of(studies) == trials_of(team)
    search_in(studies, tmp_path, "pso", 10)
    engine = sqlalchemy.create_engine(studies)
    assert "dbos" not in sqlalchemy.inspect(engine).get_schema_names()
    assert not sqlalchemy.inspect(engine).has_table("prunesearch_evaluations")
    engine.dispose()


def test_studies_and_evaluations_are_copied_to_files(
    own: postgres.Server, team: str, tmp_path: Path
) -> None:
    run(block_with("study copy"), own, tmp_path)
    assert trials_of(f"sqlite:///{tmp_path}/studies.db") == trials_of(team)
    assert (tmp_path / "evaluations.jsonl.gz").stat().st_size > 0


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the program sqlite3 is missing")
def test_sqlite_files_are_copied_while_a_search_runs(own: postgres.Server, tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    url = f"sqlite:///{tmp_path}/storage/study.db"
    search_in(url, tmp_path, "pso", 8)
    storage = persistence.open_storage(url, create=False)
    with persistence.sole_writer(storage, "s"):
        run(block_with("sqlite3"), own, tmp_path)
    for name in ("study-copy.db", "study-small.db"):
        copy = f"sqlite:///{tmp_path}/{name}"
        assert trials_of(copy) == trials_of(url)
        search_in(copy, tmp_path, "pso", 10)


def test_an_older_schema_of_optuna_is_refused_and_upgraded(
    own: postgres.Server, team: str, tmp_path: Path
) -> None:
    before = trials_of(team)
    # This is all that differs in the schema before the present one.
    engine = sqlalchemy.create_engine(team)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX ix_trials_study_id")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v3.0.0.d'")
    engine.dispose()
    with pytest.raises(StorageError, match="run: optuna storage upgrade --storage"):
        persistence.open_storage(team, create=False)
    said = run(block_with("storage upgrade"), own, tmp_path)
    assert "studies" in said
    assert trials_of(team) == before
    assert optuna.get_all_study_names(persistence.open_storage(team, create=False)) == ["s"]
