"""Studies in an Optuna RDB: opening the database, finding a study, and holding it to the recipe that made it."""

import hashlib
import json
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError
from sqlalchemy.exc import (
    IntegrityError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)

from prunesearch.errors import RunError, StorageError, StudyError, UnknownNameError, one_line
from prunesearch.masking import STORAGE_VARIABLE, pasted
from prunesearch.recipe import PATHS, VERSION, Recipe, advice, differences
from prunesearch.store import writers
from prunesearch.store.places import check_url as check_url
from prunesearch.store.places import shown as shown
from prunesearch.store.places import sqlite_file as sqlite_file
from prunesearch.store.rdb import StudyStorage, backend_of
from prunesearch.store.selection import best_trials
from prunesearch.store.tables import postgres_arguments
from prunesearch.store.writers import Writer

RECIPE_ATTR = "recipe"
IDENTITY_ATTR = "identity"
PLACES_ATTR = "places"
"""User attribute of a study: by host, the absolute paths of its model and data, the latest first."""
_PLACES_KEPT = 4  # of a host
TRIALS_ATTR = "asked_trials"
"""User attribute of a study: how many trials it shall have, as last asked."""


def open_storage(url: str, *, create: bool) -> RDBStorage:
    """Open the database of studies.

    Args:
        create: make the file or tables if they are not there; else a missing SQLite file is an error.

    Raises:
        StorageError: unknown URL, missing file, no access, or a schema of a newer Optuna.
    """
    check_url(url)
    options: dict[str, Any] = {"pool_pre_ping": True, "connect_args": postgres_arguments(url)}
    if file := sqlite_file(url):
        options = {"connect_args": {"timeout": 60}}
        if not file.exists() and not create:
            raise StorageError(f"no study database {str(file)!r}: run prunesearch search first, or give --storage")
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        except OSError as error:
            raise StorageError(f"cannot write to {str(file.parent)!r}: {error.strerror}") from None
    try:
        return _rdb(url, options)
    except (SQLAlchemyError, NoSuchModuleError, StorageInternalError) as error:
        raise StorageError(f"cannot open --storage {shown(url)!r}: {one_line(error)}") from None
    except ImportError:
        raise StorageError(
            f"--storage {shown(url)!r} needs a driver: pip install 'prunesearch[postgres]' and write postgresql+psycopg://"
        ) from None
    except RuntimeError:
        raise StorageError(
            f"--storage {shown(url)!r} was made by another version of Optuna: upgrade prunesearch, "
            f"or run: optuna storage upgrade --storage {pasted(url, STORAGE_VARIABLE)}"
        ) from None


def _rdb(url: str, options: dict[str, Any]) -> RDBStorage:
    """Open the database; when another process is just making its tables, wait for it (Optuna races here)."""
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
    identity: dict[str, Any],
    *,
    metrics: Sequence[str],
    maximize: Sequence[bool],
) -> Study:
    """Open the recipe's study, making it the first time.

    Args:
        identity: all that determines the trials: `Recipe.identity` and the digests of model and data.
        metrics: what a dashboard calls the trials' values.
        maximize: for each of them, whether more is better.

    Raises:
        StudyError: a study of that name was made with another recipe, model or data.
    """
    if name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        if RECIPE_ATTR not in study.user_attrs:
            if study.get_trials(deepcopy=False):
                raise StudyError(f"study {name!r} was not made by prunesearch: choose another name with --study")
            return _inscribe(study, recipe, identity, metrics)  # a process was killed while it made the study
        refuse_other(study, identity)
        return study
    directions = [StudyDirection.MAXIMIZE if more else StudyDirection.MINIMIZE for more in maximize]
    study = optuna.create_study(storage=storage, study_name=name, directions=directions)
    return _inscribe(study, recipe, identity, metrics)


def refuse_other(study: Study, identity: dict[str, Any]) -> None:
    """Refuse a study that was made otherwise, with the options that would resume it and a name for a new one.

    Args:
        identity: all of what is asked, or the part that is known before the model is loaded.

    Raises:
        StudyError: it was.
    """
    stored = identity_of(study)
    # Of a part, only what is in it can differ; of the whole, also what it lacks.
    whole = "model content" in identity
    known = stored if whole else {name: value for name, value in stored.items() if name in identity}
    differing = differences(known, identity)
    if not differing:
        return
    name, recipe = study.study_name, recipe_of(study)
    to_resume = [options] if (options := advice(known, identity)) else []
    if known.get("model content") != identity.get("model content"):
        to_resume.append(f"the model as it was when {recipe.model} was searched")
    if known.get("data content") != identity.get("data content"):
        source = recipe.task_data or recipe.task or recipe.calibration
        to_resume.append(f"the text as it was when {source} was read")
    if known.get("numerics") != identity.get("numerics"):
        to_resume.append("the same --device and --dtype")
    if any(name.endswith(VERSION) and known[name] != identity.get(name) for name in known):
        to_resume.append("the versions of the libraries that it was made with")
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    raise StudyError(
        f"study {name!r} was made with another recipe ({'; '.join(differing)}): to resume it give "
        f"{', '.join(to_resume) or 'the same settings'}; for a new one --study {name}-{digest[:6]}"
    )


def refuse_others(url: str, asked: Sequence[tuple[str, Recipe]]) -> None:
    """Refuse, before anything is loaded, studies that were made with other recipes.

    Args:
        asked: names and recipes. A study that does not exist yet is fine.

    Raises:
        StudyError: a study was made otherwise.
        StorageError: see `open_storage`.
    """
    check_url(url)
    if (file := sqlite_file(url)) and not file.exists():
        return
    storage = open_storage(url, create=False)
    names = set(optuna.get_all_study_names(storage))
    for name, recipe in asked:
        if name in names:
            study = optuna.load_study(study_name=name, storage=storage)
            if RECIPE_ATTR in study.user_attrs:
                refuse_other(study, recipe.identity())


def _inscribe(study: Study, recipe: Recipe, identity: dict[str, Any], metrics: Sequence[str]) -> Study:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(list(metrics))
    # The recipe comes last: a study that has it is complete.
    study.set_user_attr(IDENTITY_ATTR, json.dumps(identity, sort_keys=True))
    study.set_user_attr(RECIPE_ATTR, recipe.model_dump_json())
    return study


@contextmanager
def sole_writer(storage: RDBStorage, name: str) -> Iterator[None]:
    """Hold a study for writing until the block or the process ends; see `writers`.

    Raises:
        StudyBusyError: another process holds it.
        RunError: from what writes to the storage: the study has passed to another process.
    """
    with writers.held(storage.engine, name) as fence:
        if fence is None:
            yield
            return
        assert isinstance(storage, StudyStorage), "a storage that checks its writer"
        with storage.fenced(fence):
            yield


def writer_of(storage: RDBStorage, name: str) -> Writer | None:
    """The process that is searching a study; None if nobody is."""
    return writers.writer_in(storage.engine, name)


def is_complete(storage: RDBStorage, name: str, trials: int) -> bool:
    """Whether a study has that many finished trials, so that a search of it only reports."""
    if name not in optuna.get_all_study_names(storage):
        return False
    found = optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
    return sum(trial.state.is_finished() for trial in found) >= trials


def refuse_busy(url: str, names: Sequence[str], trials: int) -> None:
    """Refuse studies that another process is searching and that have more to do: before a model is loaded.

    Raises:
        StorageError: see `open_storage`.
        StudyBusyError: one is being searched.
    """
    check_url(url)
    if (file := sqlite_file(url)) and not file.exists():
        return
    storage = open_storage(url, create=False)
    for name in names:
        writer = writer_of(storage, name)
        if writer is not None and not is_complete(storage, name, trials):
            raise writers.busy(name, writer)


@contextmanager
def database_failures(name: str, storage: RDBStorage | None = None) -> Iterator[None]:
    """Say in one line that the database failed under a running search, or lost its study.

    Raises:
        RunError: the disk is full, the server is gone, or somebody has deleted the study.
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, KeyError) as error:
        if storage is not None and _is_gone(storage, name):
            raise RunError(
                f"study {name!r} was deleted or renamed while it was searched; finished evaluations are in the cache: "
                "run again to search it anew"
            ) from None
        if isinstance(error, KeyError):  # of some other cause
            raise
        reason = one_line(error.__cause__ or error)
        raise RunError(
            f"the database of study {name!r} failed ({reason}); finished evaluations are in the cache: "
            "mend it and run again"
        ) from None


def _is_gone(storage: RDBStorage, name: str) -> bool:
    try:
        return name not in optuna.get_all_study_names(storage)
    except (SQLAlchemyError, StorageInternalError):
        return False  # the database does not answer


def load(storage: RDBStorage, name: str) -> Study:
    """Open an existing study.

    Raises:
        UnknownNameError: there is none of that name; the nearest is suggested.
    """
    names = optuna.get_all_study_names(storage)
    if name not in names:
        raise UnknownNameError("study", name, names)
    return optuna.load_study(study_name=name, storage=storage)


def recipe_of(study: Study) -> Recipe:
    """The recipe that a study was made with.

    Raises:
        StudyError: the study holds none.
    """
    text = study.user_attrs.get(RECIPE_ATTR)
    if text is None:
        raise StudyError(f"study {study.study_name!r} holds no recipe: it was not made by prunesearch")
    try:
        return Recipe.model_validate_json(text)
    except ValidationError:
        raise StudyError(
            f"study {study.study_name!r} was made by another version of prunesearch: use that one to read it"
        ) from None


def identity_of(study: Study) -> dict[str, Any]:
    """All that determines the study's trials, digests of model and data included.

    Raises:
        StudyError: the study holds none.
    """
    recipe_of(study)
    identity: dict[str, Any] = json.loads(study.user_attrs[IDENTITY_ATTR])
    return identity


def remembered(study: Study, name: str, make: Callable[[], Any]) -> Any:  # noqa: ANN401 (any JSON value)
    """A value that is made when the study is new and stays the same ever after."""
    if name not in study.user_attrs:
        study.set_user_attr(name, json.dumps(make()))
    return json.loads(study.user_attrs[name])


def remember_places(study: Study, recipe: Recipe) -> None:
    """Note where this host has the recipe's model and data, so that they are found from every folder of it."""
    places = _places_of(study)
    own = {name: str(Path(value).absolute()) for name, value in _paths(recipe).items() if Path(value).exists()}
    host = socket.gethostname()
    before = places.get(host, [])
    if own and before[:1] != [own]:
        places[host] = [own, *(place for place in before if place != own)][:_PLACES_KEPT]
        study.set_user_attr(PLACES_ATTR, json.dumps(places))


def located(study: Study, given: Mapping[str, str | None], needed: Sequence[str] = PATHS) -> Recipe:
    """A study's recipe, with its model and data where they are on this host.

    Args:
        given: where the user says they are, by the recipe's names; that goes first.
        needed: what of them must be here.

    Raises:
        StudyError: the model or the data is not here.
    """
    recipe, found = recipe_of(study), dict[str, Any]()
    for name, typed in _paths(recipe).items():
        if given.get(name):
            found[name] = given[name]
            found |= {"revision": None} if name == "model" else {}
            continue
        own, others = _known_places(study, name)
        here = [path for path in (*own, typed, *others) if Path(path).exists()]
        if here:
            found[name] = here[0]
        elif (own or others) and name in needed:
            raise StudyError(
                f"the {name.replace('_', ' ')} {typed!r} of study {study.study_name!r} is not here (it was "
                f"{(own or others)[0]}): give --{name.replace('_', '-')} PATH; its content is compared with what was "
                "searched"
            )
    return recipe.model_copy(update=found)


def _known_places(study: Study, name: str) -> tuple[list[str], list[str]]:
    """Where this host had something, the latest first, and where others had it: their disk may be shared."""
    own: list[str] = []
    others: list[str] = []
    for host, places in _places_of(study).items():
        (own if host == socket.gethostname() else others).extend(place[name] for place in places if name in place)
    return own, others


def _places_of(study: Study) -> dict[str, list[dict[str, str]]]:
    places: dict[str, list[dict[str, str]]] = json.loads(study.user_attrs.get(PLACES_ATTR, "{}"))
    return places


def _paths(recipe: Recipe) -> dict[str, str]:
    """What of a recipe may be a path."""
    values = {name: getattr(recipe, name) for name in PATHS}
    return {name: value for name, value in values.items() if value is not None}


def last_failure(study: Study) -> str:
    """Why the study's latest failed trial failed."""
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return str(failed[-1].user_attrs.get("failure", "no reason was kept")) if failed else "none failed"


def delete(storage: RDBStorage, name: str) -> None:
    """Delete a study and its trials; evaluations stay in the cache.

    Raises:
        UnknownNameError: there is none of that name.
        StudyError: it is being searched.
    """
    load(storage, name)
    with sole_writer(storage, name):
        optuna.delete_study(study_name=name, storage=storage)


@dataclass(frozen=True)
class StudySummary:
    """One line of `prunesearch study list`.

    Attributes:
        stones: pruned trials: partial subsets, and candidates that lost a race.
        best_value, best_dropped: of the best trial; None where there is none, and for a Pareto study.
        front: trials on the front of a Pareto study; 0 for others.
        started: with its time zone.
        running: trials that `writer` is evaluating; without a writer, trials that a killed search left, which the next
            one finishes.
        writer: the process that is searching the study.
    """

    name: str
    model: str
    objective: str
    drop: str
    sampler: str
    trials: int
    running: int
    failed: int
    stones: int
    best_value: float | None
    best_dropped: str | None
    front: int
    started: datetime | None
    writer: Writer | None


def summarise(study: Study) -> StudySummary:
    """Count a study's trials and find its best.

    Raises:
        StudyError: the study holds no recipe.
    """
    recipe = recipe_of(study)
    trials = study.get_trials(deepcopy=False)
    ranked = best_trials(study, None)
    pareto = len(study.directions) > 1
    best = [] if pareto else ranked[:1]
    started = min((t.datetime_start for t in trials if t.datetime_start), default=None)
    return StudySummary(
        name=study.study_name,
        model=recipe.model,
        objective=recipe.task or recipe.objective,
        drop=recipe.drop,
        sampler=recipe.sampler,
        trials=sum(t.state == TrialState.COMPLETE for t in trials),
        running=sum(t.state == TrialState.RUNNING for t in trials),
        failed=sum(t.state == TrialState.FAIL for t in trials),
        stones=sum(t.state == TrialState.PRUNED for t in trials),
        best_value=best[0].values[0] if best else None,
        best_dropped=best[0].user_attrs.get("dropped") if best else None,
        front=len(ranked) if pareto else 0,
        started=None if started is None else started.astimezone(),
        writer=writer_of(backend_of(study), study.study_name),
    )


def summaries(storage: RDBStorage) -> list[StudySummary]:
    """Every study that this version of prunesearch can read, by name."""
    found = []
    for name in sorted(optuna.get_all_study_names(storage)):
        with suppress(StudyError):
            found.append(summarise(optuna.load_study(study_name=name, storage=storage)))
    return found


def trial_document(trial: FrozenTrial) -> dict[str, Any]:
    """A finished trial as JSON values."""
    dropped = trial.user_attrs.get("dropped", "")
    attributes = {name: value for name, value in trial.user_attrs.items() if name != "dropped"}
    values = list(trial.values or [])
    return {
        "number": trial.number,
        "value": values[0] if values else None,
        "values": values,
        "dropped": dropped,
        "attributes": attributes,
    }
