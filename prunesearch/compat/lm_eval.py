"""Parts of lm-eval that are not in its public interface. Tested with lm-eval 0.4.13."""

from pathlib import Path
from typing import Any, TypedDict

import lm_eval.tasks
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind, TaskIndex

OWN_TASKS = Path(lm_eval.tasks.__file__).parent
"""Folder of lm-eval's own tasks."""

TokenRequest = tuple[tuple[str, str], list[int], list[int]]
"""A tokenised request of lm-eval: the texts, and the token ids of context and continuation."""


class TokenHFLM(HFLM):  # type: ignore[misc]
    """lm-eval's own model for transformers, whose scoring of tokens a subclass replaces.

    Args:
        device: device that token ids must be on. `HFLM` takes the device of the first weight, which
            may be offloaded. Stands for `HFLM._device`.
        **kwargs: arguments of `HFLM`.
    """

    def __init__(self, device: torch.device, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        self._device = device

    def score_tokens(self, requests: list[TokenRequest]) -> list[tuple[float, bool]]:
        """Return for each request the log-likelihood, and whether greedy decoding agrees."""
        raise NotImplementedError

    def _loglikelihood_tokens(
        self, requests: list[TokenRequest], **_: object
    ) -> list[tuple[float, bool]]:
        # `HFLM.loglikelihood` and `HFLM.loglikelihood_rolling` call this method.
        return self.score_tokens(requests)


class TaskEntry(TypedDict):
    """What lm-eval's index knows of a task, tag or group.

    Attributes:
        name: its name.
        kind: name of its kind, as in lm-eval.
        file: YAML file, relative to the folder of the index. None: a tag, which has no file.
        tags: the tasks of a tag; the tags of a task.
    """

    name: str
    kind: str
    file: str | None
    tags: list[str]


class IndexedTaskManager(TaskManager):  # type: ignore[misc]
    """lm-eval's index of tasks, whose entries for lm-eval's own tasks are given.

    `TaskManager` reads thousands of files for them. Stands for ``TaskManager.__init__``.

    Args:
        entries: entries of lm-eval's own tasks, from `own_task_entries`.
        include_path: folder with further tasks, which replace those of the same name.
    """

    def __init__(self, entries: list[TaskEntry], include_path: str | None) -> None:
        super().__init__(include_path=include_path, include_defaults=False)
        index: dict[str, Entry] = {}
        for entry in entries:
            file = entry["file"]
            path = None if file is None else OWN_TASKS / file
            kind, tags = Kind[entry["kind"]], set(entry["tags"])
            index[entry["name"]] = Entry(entry["name"], kind, path, tags=tags)
        # Read again what `TaskManager` keeps of an index.
        self._index = index | self.task_index
        names: dict[Kind, list[str]] = {kind: [] for kind in Kind}
        for name, found in sorted(self._index.items()):
            names[found.kind].append(name)
        self._all_tasks = sorted(self._index)
        self._all_subtasks = sorted(names[Kind.TASK] + names[Kind.PY_TASK])
        self._all_groups = names[Kind.GROUP]
        self._all_tags = names[Kind.TAG]


def own_task_entries() -> list[TaskEntry]:
    """Read lm-eval's own tasks, which takes seconds.

    Only what is needed to load a task by its name is returned: `TaskManager` reads the file of a
    task again.
    """
    entries = []
    for name, entry in TaskIndex.build([OWN_TASKS]).items():
        path = entry.yaml_path
        file = None if path is None else path.relative_to(OWN_TASKS).as_posix()
        entries.append(
            TaskEntry(name=name, kind=entry.kind.name, file=file, tags=sorted(entry.tags))
        )
    return entries
