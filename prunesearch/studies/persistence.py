"""Studies in an Optuna RDB: opens the database, finds studies, and compares them with recipes."""

import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import TrialState
from sqlalchemy import make_url
from sqlalchemy.exc import (
    IntegrityError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)

from prunesearch.cache.location import check_url, shown, sqlite_file
from prunesearch.cache.tables import (
    TABLES_LOCK,
    advisory_lock,
    connect,
    limit_transactions,
    postgres_arguments,
)
from prunesearch.config.recipe import Recipe
from prunesearch.errors import RunError, StorageError, StudyError, UnknownNameError, one_line
from prunesearch.runtime.json_values import Json, JsonObject
from prunesearch.runtime.masking import STORAGE_VARIABLE, pasted
from prunesearch.studies import writers
from prunesearch.studies.optuna_internals.tables import NO_REVISION, schema_revision
from prunesearch.studies.rdb import EngineOptions, StudyStorage
from prunesearch.studies.reconnection import PATIENCE, Reconnection
from prunesearch.studies.study_recipe import IDENTITY_ATTR, RECIPE_ATTR, refuse_other
from prunesearch.studies.writer_process import Writer, busy

TRIALS_ATTR = "asked_trials"
"""User attribute of a study: the number of trials that was asked for last."""


StoredValue = TypeVar("StoredValue", bound=Json)


def open_storage(url: str, *, create: bool, patience: float = PATIENCE) -> StudyStorage:
    """Open the database of studies.

    Args:
        url: SQLAlchemy URL of the database.
        create: whether to make a missing SQLite file. If False, a missing file is an error.
        patience: seconds to wait for a database that has worked before.

    Raises:
        StorageError: the URL is unknown, the file is missing or not accessible, or the schema is
            that of a newer Optuna.
    """
    check_url(url)
    # 1. Choose the options of the connection; a SQLite file needs its folder.
    options: EngineOptions = {"pool_pre_ping": True, "connect_args": postgres_arguments(url)}
    if file := sqlite_file(url):
        options = {"connect_args": {"timeout": 60}}
        if not file.exists() and not create:
            raise StorageError(
                f"no study database {str(file)!r}: run prunesearch search first, or give `storage`"
            )
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        except OSError as error:
            raise StorageError(f"cannot write to {str(file.parent)!r}: {error.strerror}") from None
    # 2. Open the database, and turn each failure into one line. A database that has worked in this
    # process is waited for.
    wait = patience if url in _worked else 0.0
    try:
        storage = Reconnection(shown(url), wait).repeat(lambda: _rdb(url, options))
    except (SQLAlchemyError, NoSuchModuleError, StorageInternalError) as error:
        cause = error.__cause__ or error  # Optuna's own words say nothing of it
        reason = one_line(getattr(cause, "orig", None) or cause)
        raise StorageError(f"cannot open `storage` {shown(url)!r}: {reason}") from None
    except ImportError:
        raise StorageError(
            f"`storage` {shown(url)!r} needs a driver: pip install 'prunesearch[postgres]' and "
            f"write postgresql+psycopg://"
        ) from None
    except RuntimeError:
        raise StorageError(
            f"`storage` {shown(url)!r} was made by another version of Optuna: upgrade prunesearch, "
            f"or run: optuna storage upgrade --storage {pasted(url, STORAGE_VARIABLE)}"
        ) from None
    storage.reconnection.patience = patience
    _worked.add(url)
    return storage


@contextmanager
def opened_briefly(url: str) -> Iterator[StudyStorage]:
    """Open an existing database for one request to a server.

    An outage is an error at once, and no connection stays open.

    Raises:
        StorageError: see `open_storage`.
    """
    storage = open_storage(url, create=False, patience=0.0)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


_worked: set[str] = set()
"""URLs of the databases that this process has opened."""
_LONGEST_STATEMENT = 300  # seconds; reading a study of 10,000 trials takes a few


def _rdb(url: str, options: EngineOptions) -> StudyStorage:
    """Open the database, and make its tables if there are none.

    Optuna itself fails when two processes make the tables at the same time.
    """
    if make_url(url).get_backend_name() != "postgresql":
        return _with_tables(url, options)
    engine = connect(url)
    try:
        with engine.connect() as connection:
            ready = schema_revision(connection) != NO_REVISION
        with nullcontext() if ready else advisory_lock(engine, TABLES_LOCK):
            storage = _with_tables(url, options)
    finally:
        engine.dispose()
    limit_transactions(storage.engine, _LONGEST_STATEMENT)
    return storage


def _with_tables(url: str, options: EngineOptions) -> StudyStorage:
    """Open the database. If another process is making its tables right now, wait for it.

    Processes that do not know the advisory lock may do this on a server, too.
    """
    for _ in range(20):
        try:
            return StudyStorage(url, engine_kwargs=options)
        except (IntegrityError, OperationalError, ProgrammingError) as error:
            if not isinstance(error, IntegrityError) and "already exists" not in str(error):
                raise
            time.sleep(0.1)
    return StudyStorage(url, engine_kwargs=options)


def create_or_resume(
    storage: RDBStorage,
    name: str,
    recipe: Recipe,
    identity: JsonObject,
    *,
    metrics: Sequence[str],
    maximize: Sequence[bool],
) -> Study:
    """Open a study, or make it if it does not exist.

    Args:
        storage: database of the study.
        name: name of the study.
        recipe: recipe of the study.
        identity: everything that determines the trials: `Recipe.identity`, and the digests of model
            and data.
        metrics: names of the trials' values in a dashboard.
        maximize: for each value, whether more is better.

    Raises:
        StudyError: a study of that name was made with another recipe, model or data.
    """
    if name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        if RECIPE_ATTR not in study.user_attrs:
            if study.get_trials(deepcopy=False):
                raise StudyError(
                    f"study {name!r} was not made by prunesearch: choose another name with `study`"
                )
            # A process was killed while it made the study.
            return _write_metadata(study, recipe, identity, metrics)
        refuse_other(study, identity)
        return study
    directions = []
    for more in maximize:
        directions.append(StudyDirection.MAXIMIZE if more else StudyDirection.MINIMIZE)
    study = optuna.create_study(storage=storage, study_name=name, directions=directions)
    return _write_metadata(study, recipe, identity, metrics)


def refuse_others(url: str, asked: Sequence[tuple[str, Recipe]]) -> None:
    """Refuse studies that were made with other recipes, before a model is loaded.

    Args:
        url: SQLAlchemy URL of the database.
        asked: names and recipes of the studies. A study that does not exist yet is accepted.

    Raises:
        StudyError: a study was made with another recipe.
        StorageError: see `open_storage`.
    """
    check_url(url)
    if (file := sqlite_file(url)) and not file.exists():
        return
    with opened_briefly(url) as storage:
        names = set(optuna.get_all_study_names(storage))
        for name, recipe in asked:
            if name in names:
                study = optuna.load_study(study_name=name, storage=storage)
                if RECIPE_ATTR in study.user_attrs:
                    refuse_other(study, recipe.identity())


def _write_metadata(
    study: Study, recipe: Recipe, identity: JsonObject, metrics: Sequence[str]
) -> Study:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(list(metrics))
    # The recipe is written last, so a study that has a recipe is complete.
    study.set_user_attr(IDENTITY_ATTR, json.dumps(identity, sort_keys=True))
    study.set_user_attr(RECIPE_ATTR, json.dumps(recipe.search_only().document()))
    return study


@contextmanager
def sole_writer(storage: RDBStorage, name: str) -> Iterator[None]:
    """Lock a study for writing until the block or the process ends; see `writers`.

    Raises:
        StudyBusyError: another process writes the study.
        RunError: raised by calls that write to the storage: another process has taken over the
            study.
    """
    with writers.held(storage.engine, name) as fence:
        if fence is None:
            yield
            return
        assert isinstance(storage, StudyStorage), "a storage that checks its writer"
        with storage.fenced(fence):
            yield


def writer_of(storage: RDBStorage, name: str) -> Writer | None:
    """Return the process that is searching a study, or None.

    Raises:
        StorageError: the database fails, or its table of writers is not ours.
    """
    try:
        return writers.writer_in(storage.engine, name)
    except SQLAlchemyError as error:
        reason = one_line(getattr(error, "orig", None) or error)
        raise StorageError(
            f"cannot see in `storage` {shown(str(storage.url))!r} who is searching study {name!r}: "
            f"{reason}"
        ) from None


def exists(storage: RDBStorage, name: str) -> bool:
    """Return whether a study exists that was made completely."""
    if name not in optuna.get_all_study_names(storage):
        return False
    return RECIPE_ATTR in optuna.load_study(study_name=name, storage=storage).user_attrs


def exists_in(url: str, name: str) -> bool:
    """Return whether a database has a study; False if the database does not exist yet."""
    if (file := sqlite_file(url)) and not file.exists():
        return False
    with opened_briefly(url) as storage:
        return exists(storage, name)


def is_complete(storage: RDBStorage, name: str, trials: int) -> bool:
    """Return whether a study has that many finished trials.

    A search of such a study only reports.
    """
    if name not in optuna.get_all_study_names(storage):
        return False
    found = optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
    return sum(trial.state.is_finished() for trial in found) >= trials


def refuse_busy(url: str, names: Sequence[str], trials: int) -> None:
    """Refuse unfinished studies that another process is searching, before a model is loaded.

    Args:
        url: SQLAlchemy URL of the database.
        names: names of the studies.
        trials: number of trials after which a study is finished.

    Raises:
        StorageError: see `open_storage` and `writer_of`.
        StudyBusyError: another process is searching one of the studies.
    """
    check_url(url)
    if (file := sqlite_file(url)) and not file.exists():
        return
    storage = open_storage(url, create=False)
    for name in names:
        writer = writer_of(storage, name)
        if writer is not None and not is_complete(storage, name, trials):
            raise busy(name, writer)


@contextmanager
def database_failures(name: str, storage: RDBStorage | None = None) -> Iterator[None]:
    """Turn errors of the database during a search into a message of one line.

    Args:
        name: name of the study.
        storage: database of the study. With it, a study that was deleted is recognised.

    Raises:
        RunError: the disk is full, the server does not answer, or the study was deleted.
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, KeyError) as error:
        if storage is not None and _is_gone(storage, name):
            raise RunError(
                f"study {name!r} was deleted or renamed while it was searched; finished "
                f"evaluations are in the cache: "
                "run again to search it anew"
            ) from None
        # A KeyError that has another cause is not a failure of the database.
        if isinstance(error, KeyError):
            raise
        reason = one_line(error.__cause__ or error)
        raise RunError(
            f"the database of study {name!r} failed ({reason}); finished evaluations are in the "
            f"cache: "
            "fix it and run again"
        ) from None


def _is_gone(storage: RDBStorage, name: str) -> bool:
    try:
        return name not in optuna.get_all_study_names(storage)
    except (SQLAlchemyError, StorageInternalError):
        return False  # the database does not answer


def load(storage: RDBStorage, name: str) -> Study:
    """Open an existing study.

    Raises:
        UnknownNameError: the study does not exist. The message suggests the nearest name.
    """
    names = optuna.get_all_study_names(storage)
    if name not in names:
        raise UnknownNameError("study", name, names)
    return optuna.load_study(study_name=name, storage=storage)


def get_or_set_attr(study: Study, name: str, make: Callable[[], StoredValue]) -> StoredValue:
    """Return a value that is stored in the study.

    It is made by `make` the first time and never changes.
    """
    if name not in study.user_attrs:
        study.set_user_attr(name, json.dumps(make()))
    value: StoredValue = json.loads(study.user_attrs[name])
    return value


def last_failure(study: Study) -> str:
    """Return the reason why the study's latest failed trial failed."""
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    if not failed:
        return "none failed"
    return str(failed[-1].user_attrs.get("failure", "no reason was kept"))


def delete(storage: RDBStorage, name: str) -> None:
    """Delete a study and its trials. Evaluations stay in the cache.

    Raises:
        UnknownNameError: the study does not exist.
        StudyError: the study is being searched.
    """
    load(storage, name)
    with sole_writer(storage, name):
        optuna.delete_study(study_name=name, storage=storage)
