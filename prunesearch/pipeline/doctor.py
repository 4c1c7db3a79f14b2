"""The checks of `prunesearch doctor`: this machine, the cache and the studies.

Each check suggests a remedy.
"""

import importlib.metadata
import os
import platform
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from shlex import quote

from sqlalchemy.exc import SQLAlchemyError

from prunesearch.cache import maintenance
from prunesearch.cache.folder_leases import folder_leases
from prunesearch.cache.hardening import FIXED_WAL, SCHEMA_VERSION
from prunesearch.cache.leases import Leases
from prunesearch.cache.liveness import ProcessLiveness
from prunesearch.cache.location import (
    CacheLocation,
    check_url,
    file_system,
    private_folder,
    shown,
    sqlite_file,
)
from prunesearch.cache.repair import FILE
from prunesearch.cache.shared_backend import SharedBackend
from prunesearch.cache.tables import connect
from prunesearch.cache.two_level import UNSENT
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import PruneSearchError, one_line
from prunesearch.report.checks import BROKEN, NOTE, Check, Checks
from prunesearch.runtime.masking import CACHE_VARIABLE, STORAGE_VARIABLE, pasted
from prunesearch.studies import cache_use
from prunesearch.studies.optuna_internals.tables import schema_revision
from prunesearch.studies.writers import writer_at
from prunesearch.units import noun_for, plural

_PACKAGES = (
    "prunesearch torch transformers optuna lm-eval diskcache sqlalchemy alembic psycopg".split()
)
_LITTLE = 2**30  # free space in bytes below which the user is warned


def examine(cache: str, storage: str) -> Checks:
    """Run all checks. A check that fails is reported, and the others still run.

    Args:
        cache: location of the cache, as given with ``--cache``.
        storage: URL of the studies' database.
    """
    checks: list[Check] = []
    for name, look in (
        ("versions", _versions),
        ("SQLite", _sqlite),
        ("cache", lambda: _cache(cache)),
        ("shared cache", lambda: _shared(cache)),
        ("leases", lambda: _leases(cache)),
        ("studies", lambda: _studies(storage)),
        ("compute", _compute),
    ):
        try:
            checks += look()
        except PruneSearchError as error:
            # Messages have the form "problem: remedy".
            what, _, remedy = str(error).partition(": ")
            checks.append(Check(name, what, BROKEN, remedy or what))
        except (
            SQLAlchemyError,
            ImportError,
            OSError,
            sqlite3.Error,
        ) as error:  # a server or disk that does not work
            reason = one_line(getattr(error, "orig", None) or error)
            checks.append(
                Check(name, reason, BROKEN, "see that it is there and that you may use it")
            )
    return Checks(tuple(checks))


def _versions() -> Iterator[Check]:
    yield Check(
        "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} -")
    yield Check("libraries", ", ".join(found))


def _sqlite() -> Iterator[Check]:
    why = ""
    if sqlite3.sqlite_version_info < FIXED_WAL:
        why = " (a rollback journal is used: WAL before 3.51.3 can lose commits)"
    yield Check("SQLite", sqlite3.sqlite_version + why)


def _cache(text: str) -> Iterator[Check]:
    # 1. The folder.
    folder = CacheLocation.parse(text).folder
    if not folder.exists():
        yield Check("cache", f"{folder}: not there yet", NOTE, "prunesearch search makes it")
        return
    private_folder(folder, create=False)
    yield Check(
        "cache",
        f"{folder} on {file_system(folder) or 'an unknown file system'}, for its user alone",
    )
    # 2. The free space on its disk.
    free = shutil.disk_usage(folder).free
    space = Check("free space", f"{free / 2**30:,.1f} GiB")
    if free < _LITTLE:
        remedy = "free some: a full disk stops a search (nothing finished is lost)"
        space = replace(space, status=NOTE, remedy=remedy)
    yield space
    # 3. The cache file, and the entries that wait for the shared cache.
    if (folder / FILE).is_file():
        yield _cache_file(folder / FILE)
    waiting = maintenance.unsent(CacheLocation(folder))
    if waiting:
        remedy = (
            "search once more with --cache URL, "
            f"or prunesearch cache export FILE --cache {folder / UNSENT}"
        )
        yield Check(
            "unsent",
            f"{waiting} {noun_for(waiting, 'entry waits', 'entries wait')} for the shared cache",
            NOTE,
            remedy,
        )


def _cache_file(file: Path) -> Check:
    try:
        with closing(
            sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True)
        ) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (journal,) = connection.execute("PRAGMA journal_mode").fetchone()
            (entries,) = connection.execute("SELECT COUNT(*) FROM Cache").fetchone()
    except sqlite3.Error as error:
        return Check(
            "cache file",
            str(error),
            BROKEN,
            "prunesearch cache verify sets it aside and keeps what is sound",
        )
    found = f"schema {version}, journal {journal}, {plural(entries, 'entry', 'entries')}"
    if version > SCHEMA_VERSION:
        return Check(
            "cache file",
            found,
            BROKEN,
            "a newer prunesearch made it: upgrade, or give another --cache",
        )
    return Check("cache file", found)


def _shared(text: str) -> Iterator[Check]:
    url = CacheLocation.parse(text).url
    if url is None:
        return
    from prunesearch.cache.schema import head  # Alembic takes a while to import

    with closing(SharedBackend(url)) as backend:
        entries = plural(len(backend), "entry", "entries")
        yield Check("shared cache", f"{backend.name}: schema {head()}, {entries}")
        yield from _lease_check("shared leases", Leases(backend.engine, backend.name), text)


def _leases(text: str) -> Iterator[Check]:
    folder = CacheLocation.parse(text).folder
    if not (folder / "leases.db").is_file():
        return
    leases = folder_leases(folder)
    try:
        yield from _lease_check("leases", leases, text)
    finally:
        leases.engine.dispose()
    # Look for owners that died on this host.
    liveness = ProcessLiveness(folder)
    dead = liveness.dead()
    liveness.close()
    if dead:
        died = noun_for(
            len(dead),
            "process died while it was scoring",
            "processes died while they were scoring",
        )
        remedy = f"nothing: the next search takes over; {_tidy(text)} tidies up"
        yield Check("orphaned owners", f"{len(dead)} {died}", NOTE, remedy)


def _lease_check(name: str, leases: Leases, text: str) -> Iterator[Check]:
    alive, over = leases.count()
    check = Check(name, f"{alive} alive, {over} run out")
    if over:
        remedy = f"nothing: the next search takes over; {_tidy(text)} removes them"
        check = replace(check, status=NOTE, remedy=remedy)
    yield check


def _tidy(cache: str) -> str:
    """Return the command that removes the leases of dead processes, without a password in it."""
    return f"prunesearch cache gc --older-than 365d --cache {pasted(cache, CACHE_VARIABLE)}"


def _studies(url: str) -> Iterator[Check]:
    check_url(url)
    file = sqlite_file(url)
    if file and not file.is_file():
        yield Check("studies", f"{shown(url)}: not there yet", NOTE, "prunesearch search makes it")
        return
    if file:
        yield Check("studies on", f"{file} on {file_system(file) or 'an unknown file system'}")
    yield Check("studies", f"{shown(url)}: Optuna schema {_revision(url)}")
    storage = "" if url == RunOptions().storage else f" --storage {pasted(url, STORAGE_VARIABLE)}"
    # A running trial without a writer was left by a search that was stopped.
    for use in cache_use.studies_of(url).uses:
        if not use.running:
            continue
        trials = f"{use.running} {noun_for(use.running, 'trial')} of study {use.study!r}"
        if writer := writer_at(url, use.study):
            yield Check(
                "running trials",
                f"{trials} {noun_for(use.running, 'is', 'are')} being evaluated by {writer}",
            )
            continue
        command = f"prunesearch study resume {quote(use.study)}{storage}"
        numbers = noun_for(use.running, "it under its own number", "them under their own numbers")
        left = f"{noun_for(use.running, 'was', 'were')} left by a search that was stopped"
        yield Check("unfinished trials", f"{trials} {left}", NOTE, f"{command} finishes {numbers}")


def _revision(url: str) -> str:
    engine = connect(url)
    try:
        with engine.connect().execution_options(reading=True) as connection:
            return schema_revision(connection)
    finally:
        engine.dispose()


def _compute() -> Iterator[Check]:
    import torch  # here and not at the top, because the import takes seconds

    cores = os.cpu_count() or 1
    yield Check("torch threads", f"{torch.get_num_threads()} of {cores} {noun_for(cores, 'core')}")
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Check("GPU", names)
    else:
        yield Check("GPU", "none that torch can use")
