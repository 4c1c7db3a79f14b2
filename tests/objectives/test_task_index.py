"""lm-eval's index of its own tasks is read from a file, and is the one that lm-eval makes."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from lm_eval.tasks import TaskManager

import prunesearch.compat.lm_eval as compat
from prunesearch.objectives import task_index
from prunesearch.objectives.lm_eval_tasks import process_once

TASK = "task: {name}\ntag: {tag}\ninclude: _shared\n"


@pytest.fixture
def own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tasks in place of lm-eval's own: two with a tag, a group of both, and one with code."""
    folder = tmp_path / "own"
    (folder / "inner").mkdir(parents=True)
    (folder / "_shared").write_text("output_type: multiple_choice\n")
    (folder / "a.yaml").write_text(TASK.format(name="a", tag="both"))
    (folder / "inner" / "b.yaml").write_text("task: b\ntag: [both, inner]\n")
    (folder / "c.yaml").write_text("task: c\nclass: !function utils.Task\n")
    (folder / "g.yaml").write_text("group: g\ntask: [a, b]\n")
    (folder / "broken.yaml").write_text("- nothing\n")
    monkeypatch.setattr(compat, "OWN_TASKS", folder)
    monkeypatch.setattr(task_index, "OWN_TASKS", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One number for each time that lm-eval's own tasks are read."""
    seen: list[int] = []
    real = compat.own_task_entries

    def counted() -> list[compat.TaskEntry]:
        seen.append(1)
        return real()

    monkeypatch.setattr(task_index, "own_task_entries", counted)
    return seen


def facts(manager: TaskManager) -> object:
    entries = {}
    for name, entry in manager.task_index.items():
        entries[name] = (entry.name, entry.kind, entry.yaml_path, entry.tags)
    names = (manager.all_tasks, manager.all_subtasks, manager.all_groups, manager.all_tags)
    return entries, names


def test_the_kept_index_is_the_one_that_lm_eval_makes(own_tasks: Path, reads: list[int]) -> None:
    stock = TaskManager(include_path=str(own_tasks), include_defaults=False)
    assert stock.all_tasks == ["a", "b", "both", "c", "g", "inner"]
    for _ in range(3):
        assert facts(task_index.task_manager(None)) == facts(stock)
    assert len(reads) == 1


def test_own_tasks_of_the_user_replace_those_of_lm_eval(
    own_tasks: Path, tmp_path: Path, reads: list[int]
) -> None:
    more = tmp_path / "more"
    more.mkdir()
    (more / "a.yaml").write_text(TASK.format(name="a", tag="both").replace("include", "note"))
    (more / "d.yaml").write_text("task: d\n")
    stock = TaskManager(include_path=[str(own_tasks), str(more)], include_defaults=False)
    for _ in range(2):
        assert facts(task_index.task_manager(str(more))) == facts(stock)
    assert len(reads) == 1


def _new(folder: Path) -> None:
    (folder / "inner" / "e.yaml").write_text("task: e\n")


def _changed(folder: Path) -> None:
    (folder / "_shared").write_text("output_type: multiple_choice\ntag: other\n")


def _removed(folder: Path) -> None:
    (folder / "a.yaml").unlink()


@pytest.mark.parametrize("change", [_new, _changed, _removed])
def test_changed_tasks_are_read_again(
    own_tasks: Path, reads: list[int], change: Callable[[Path], None]
) -> None:
    task_index.task_manager(None)
    change(own_tasks)
    stock = TaskManager(include_path=str(own_tasks), include_defaults=False)
    assert facts(task_index.task_manager(None)) == facts(stock)
    assert len(reads) == 2


@pytest.mark.parametrize("text", ["", "[]", '{"stamp": 1}', None])
def test_a_damaged_file_is_written_again(
    own_tasks: Path, tmp_path: Path, reads: list[int], text: str | None
) -> None:
    task_index.task_manager(None)
    (kept,) = (tmp_path / "cache" / "prunesearch").iterdir()
    kept.write_text(kept.read_text().replace('"inner/b', '"inner/d') if text is None else text)
    for _ in range(2):
        assert "b" in task_index.task_manager(None).all_subtasks
    assert len(reads) == 2


def test_a_cache_folder_that_cannot_be_written_is_no_error(
    own_tasks: Path, tmp_path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert "a" in task_index.task_manager(None).all_tasks


def test_documents_are_processed_once_for_each_split() -> None:
    calls: list[list[int]] = []

    def process(documents: list[int]) -> list[int]:
        calls.append(documents)
        return [2 * document for document in documents]

    leaf = cast(Any, SimpleNamespace(config=SimpleNamespace(process_docs=process)))
    process_once(leaf)
    one, other = [1, 2], [3]
    for _ in range(3):
        assert leaf.config.process_docs(one) == [2, 4]
        assert leaf.config.process_docs(other) == [6]
    assert calls == [one, other]
