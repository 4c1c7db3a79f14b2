"""lm-eval's index of its own tasks, kept in a file of the user's cache folder.

lm-eval parses 14,000 files to make it, which takes 7 seconds. The file is read only if all of them
have the sizes and the times of modification that they had when it was written.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from lm_eval.tasks import TaskManager

from prunesearch.cache.machine_files import keep, read_kept
from prunesearch.compat.lm_eval import OWN_TASKS, IndexedTaskManager, TaskEntry, own_task_entries
from prunesearch.runtime.json_values import Json

_VERSION = 1  # of the file


def task_manager(include_path: str | None) -> TaskManager:
    """Return lm-eval's index of tasks.

    Args:
        include_path: folder with further tasks. It is read each time.
    """
    stamp = _stamp(OWN_TASKS)
    # Each installation of lm-eval has a file of its own.
    place = hashlib.sha256(str(OWN_TASKS).encode()).hexdigest()[:24]
    name = f"lm-eval-tasks-{place}"
    entries = _read(name, stamp)
    if entries is None:
        entries = own_task_entries()
        # Files that changed while they were read are read again next time.
        if _stamp(OWN_TASKS) == stamp:
            keep(name, {"stamp": stamp, "digest": _digest(entries), "tasks": cast(Json, entries)})
    return IndexedTaskManager(entries, include_path)


def _stamp(folder: Path) -> str:
    """Return a digest of what decides the index.

    This is lm-eval's version, and the name, size and time of modification of each file.
    """
    digest = hashlib.sha256(f"{_VERSION} {importlib.metadata.version('lm_eval')}".encode())
    for line in sorted(_files(str(folder), "")):
        digest.update(f"\0{line}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _files(folder: str, name: str) -> Iterator[str]:
    """Yield a line about each file of a folder and of its folders."""
    with os.scandir(folder) as entries:
        for entry in entries:
            inner = f"{name}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                # Running a task's code writes here.
                if entry.name != "__pycache__":
                    yield from _files(entry.path, inner)
                continue
            try:
                facts = entry.stat()
                yield f"{inner} {facts.st_size} {facts.st_mtime_ns}"
            except FileNotFoundError:  # a link to nothing
                yield inner


def _read(name: str, stamp: str) -> list[TaskEntry] | None:
    """Return the entries of a file; None if it is missing, damaged or of other tasks."""
    stored = read_kept(name)
    if not isinstance(stored, dict) or stored.get("stamp") != stamp:
        return None
    entries = cast(list[TaskEntry], stored.get("tasks"))
    return entries if stored.get("digest") == _digest(entries) else None


def _digest(entries: list[TaskEntry]) -> str:
    """Return a digest of entries, by which a damaged file is found."""
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()
