"""Locks that allow one process to write a study at a time, and that show which process it is.

SQLite serves one host: `writer_locks` holds locks of the operating system. PostgreSQL serves many
hosts: `writer_lease` holds a row that runs out.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from prunesearch.cache.tables import connect
from prunesearch.studies.writer_lease import Fence, held_lease, lease_holder
from prunesearch.studies.writer_locks import file_of, held_file, writer_of_file
from prunesearch.studies.writer_process import Writer


@contextmanager
def held(engine: Engine, name: str) -> Iterator[Fence | None]:
    """Lock a study for writing until the block or the process ends.

    Yields:
        The check that every transaction must call before it commits, or None if the lock cannot be
        lost.

    Raises:
        StudyBusyError: another process writes the study.
        StorageError: the lock file cannot be written.
    """
    if engine.dialect.name == "sqlite":
        with held_file(file_of(engine), name):
            yield None
    else:
        with held_lease(engine, name) as fence:
            yield fence


def writer_in(engine: Engine, name: str) -> Writer | None:
    """Return the writer of a study, or None if no process writes it."""
    if engine.dialect.name == "sqlite":
        file = file_of(engine)
        if file is None:
            return None
        return writer_of_file(file, name)
    return lease_holder(engine, name)


def writer_at(url: str, name: str) -> Writer | None:
    """Return the writer of a study in the database of a URL, or None."""
    engine = connect(url)
    try:
        return writer_in(engine, name)
    finally:
        engine.dispose()
