"""What is written is there as a whole or not at all, and nothing of the user's is deleted or
replaced.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prunesearch.cache import files
from prunesearch.cache.files import (
    PREFIX,
    foreign_writer,
    new_file,
    place_folder,
    replace_folder,
    replaced_file,
    scratch_beside,
)
from prunesearch.errors import RunError, StorageError, VerificationError


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def killed(out: Path, *, old: bool = False) -> Path:
    """A scratch folder for `out` as a killed process leaves it, whole or in the middle of replacing
    `out`.
    """
    with scratch_beside(out) as scratch:
        left = out.parent / f"{PREFIX}left"
        left.mkdir()
        for path in scratch.iterdir():
            (left / path.name).write_bytes(path.read_bytes())
    (left / "model.safetensors").write_text("half")
    if old:
        out.rename(left / "old")
    return left


@pytest.mark.parametrize("name", ["vscode", "*", "[ab]", "a b", "-x"])
def test_only_what_a_killed_process_of_the_tool_left_is_deleted(name: str, tmp_path: Path) -> None:
    owned = [
        f".{name}-server/x",
        ".ssh-backup/x",
        f"{PREFIX}notes/x",
        f"{PREFIX}empty/",
        f".{name}-file",
    ]
    for path in owned:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        if not path.endswith("/"):
            (tmp_path / path).write_text("precious")
        else:
            (tmp_path / path).mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / ".ssh-backup")
    before = {path.name for path in tmp_path.iterdir()}
    left, other = killed(tmp_path / name), tmp_path / f"{PREFIX}other"
    left.rename(other)
    (other / "scratch-of-prunesearch").write_text("host: elsewhere")  # another's, on a shared disk
    killed(tmp_path / name)
    with scratch_beside(tmp_path / name) as scratch, scratch_beside(tmp_path / name) as second:
        assert scratch.is_dir(), "a folder whose process lives stays"
        assert second != scratch
        assert {path.name for path in tmp_path.iterdir()} == {
            *before,
            other.name,
            scratch.name,
            second.name,
        }
    assert {path.name for path in tmp_path.iterdir()} == {*before, other.name}
    assert (tmp_path / ".ssh-backup" / "x").read_text() == "precious"


def test_what_was_being_replaced_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("old")
    killed(tmp_path / "out", old=True)
    assert not (tmp_path / "out").exists()
    with scratch_beside(tmp_path / "out"):
        assert (tmp_path / "out" / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupt_between_the_two_renames_keeps_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(finished: Path, out: Path) -> None:
        if finished.name == "new":
            raise KeyboardInterrupt
        place(finished, out)

    place = files.place_folder
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("old")
    monkeypatch.setattr(files, "place_folder", interrupted)
    with pytest.raises(KeyboardInterrupt), scratch_beside(tmp_path / "out") as scratch:
        (scratch / "new").mkdir()
        replace_folder(scratch / "new", tmp_path / "out", scratch)
    assert (tmp_path / "out" / "x").read_text() == "old"
    monkeypatch.undo()
    with scratch_beside(tmp_path / "out") as scratch:
        (scratch / "new").mkdir()
        replace_folder(scratch / "new", tmp_path / "out", scratch)
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


@pytest.mark.parametrize("there", ["file", "folder", "link"])
def test_a_place_that_was_taken_meanwhile_is_left_alone_and_the_result_is_kept(
    there: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (tmp_path / "out-2").write_text("mine too")
    with (
        pytest.raises(RunError, match=r"was left alone: the finished result is '.*out-3'"),
        scratch_beside(out) as scratch,
    ):
        (scratch / "new").mkdir()
        (scratch / "new" / "x").write_text("result")
        if there == "file":
            out.write_text("mine")
        elif there == "folder":
            out.mkdir()
            (out / "thesis.tex").write_text("mine")
        else:
            out.symlink_to(tmp_path / "nowhere")
        place_folder(scratch / "new", out)
    assert (tmp_path / "out-3" / "x").read_text() == "result"
    assert (tmp_path / "out-2").read_text() == "mine too"
    assert os.path.lexists(out)
    assert not (out / "x").exists()


def test_a_new_file_takes_no_name_that_was_taken_meanwhile(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match=r"the finished result is '.*m-2\.gguf'"),
        new_file(tmp_path / "m.gguf") as path,
    ):
        path.write_text("result")
        (tmp_path / "m.gguf").write_text("mine")
    assert (tmp_path / "m.gguf").read_text() == "mine"
    assert (tmp_path / "m-2.gguf").read_text() == "result"
    with (
        pytest.raises(StorageError, match="exists: choose another name"),
        new_file(tmp_path / "m.gguf"),
    ):
        pass
    assert len(list(tmp_path.iterdir())) == 2


def test_files_are_placed_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    with new_file(tmp_path / "m.gguf") as path:
        path.write_text("result")
    assert (tmp_path / "m.gguf").read_text() == "result"


def test_a_file_is_replaced_as_a_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="interrupted"), replaced_file(path) as scratch:
        scratch.write_text("half")
        raise ValueError("interrupted")
    assert path.read_text() == "old"
    (tmp_path / "victim").write_text("precious")
    (tmp_path / f".a.json.{os.getpid()}").symlink_to(tmp_path / "victim")
    with replaced_file(path) as scratch:
        scratch.write_text("new")
    assert path.read_text() == "new"
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o002, 0o664)])
def test_modes_are_the_users(mask: int, mode: int, tmp_path: Path) -> None:
    with umask(mask):
        with new_file(tmp_path / "a") as path:
            path.write_text("x")
        with replaced_file(tmp_path / "b") as path:
            path.write_text("x")
        with scratch_beside(tmp_path / "c") as scratch:
            (scratch / "new").mkdir()
            (scratch / "new" / "private").touch(0o600)
            files.open_to_others(scratch / "new", scratch)
            place_folder(scratch / "new", tmp_path / "c")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()} == {mode}
    assert (tmp_path / "c").stat().st_mode & 0o077 == (0o777 & ~mask) & 0o077


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (Exception("No space left on device (os error 28)"), errno.ENOSPC),
        (
            Exception("Error while serializing: I/O error: File too large (os error 27)"),
            errno.EFBIG,
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
            errno.EIO,
        ),
    ],
)
def test_what_libraries_raise_when_a_write_fails_is_an_os_error(
    error: Exception, number: int
) -> None:
    with pytest.raises(OSError) as raised, foreign_writer():
        raise error
    assert raised.value.errno == number
    assert "free space" in files.cannot_write(Path("x"), raised.value)


@pytest.mark.parametrize(
    "error", [ValueError("x"), RuntimeError("x"), VerificationError("(os error 28)")]
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, foreign_writer():
        raise error
    assert raised.value is error
