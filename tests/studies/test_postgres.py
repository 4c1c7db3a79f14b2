"""Studies on a real PostgreSQL server."""

import optuna
import pytest
import sqlalchemy

from prunesearch.cache.location import shown
from prunesearch.config.recipe import Recipe
from prunesearch.errors import StorageError, StudyError
from prunesearch.studies import persistence
from prunesearch.studies.summary import summaries

RECIPE = Recipe(model="m", drop="2")


@pytest.fixture
def url(database: str) -> str:
    return database


def test_a_study_is_made_held_and_resumed(url: str) -> None:
    storage = persistence.open_storage(url, create=True)
    made = persistence.create_or_resume(
        storage, "s", RECIPE, {"a": 1}, metrics=["kl"], maximize=[False]
    )
    made.add_trial(optuna.trial.create_trial(value=0.5, user_attrs={"dropped": "1,2"}))
    again = persistence.open_storage(url, create=True)
    assert (
        persistence.create_or_resume(
            again, "s", RECIPE, {"a": 1}, metrics=["kl"], maximize=[False]
        ).best_value
        == 0.5
    )
    assert [summary.name for summary in summaries(again)] == ["s"]


def test_a_study_has_one_writer_across_connections(url: str) -> None:
    first, second = (persistence.open_storage(url, create=True) for _ in range(2))
    with persistence.sole_writer(first, "s"):
        with persistence.sole_writer(second, "other"):
            pass
        with (
            pytest.raises(StudyError, match="another process"),
            persistence.sole_writer(second, "s"),
        ):
            pass
    with persistence.sole_writer(second, "s"):
        pass


def test_passwords_are_not_printed(url: str) -> None:
    assert "secret" not in shown(url)
    with pytest.raises(StorageError, match="cannot open") as caught:
        persistence.open_storage(url.rpartition("/")[0] + "/nowhere", create=True)
    assert "secret" not in str(caught.value)


def test_a_database_that_takes_no_more_connections_is_named_as_the_cause(url: str) -> None:
    name = url.rpartition("/")[2]
    owner = sqlalchemy.create_engine(
        url.rpartition("/")[0] + "/postgres", isolation_level="AUTOCOMMIT"
    )
    with owner.connect() as connection:
        connection.exec_driver_sql("CREATE ROLE guest LOGIN")  # limits do not bind superusers
        connection.exec_driver_sql(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
    owner.dispose()
    with pytest.raises(StorageError, match="too many connections"):
        persistence.open_storage(url.replace("me:secret", "guest:secret"), create=True)


def test_a_table_of_writers_that_is_not_ours_is_named(url: str) -> None:
    storage = persistence.open_storage(url, create=True)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE prunesearch_writers (a integer)")
    with pytest.raises(
        StorageError, match=r"who is searching study 's': column .*does not exist"
    ) as caught:
        persistence.writer_of(storage, "s")
    assert "secret" not in str(caught.value)
