"""The folder of a report: only its own files are replaced or deleted."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from prunesearch.errors import StorageError
from prunesearch.report.page.folder import MARKER, ReportFolder


def write(text: str, path: Path) -> None:
    path.write_text(text)


def files(**texts: str) -> dict[str, Callable[[Path], None]]:
    names = {"page": "index.html", "plot": "figures/quality.png", "numbers": "data/quality.csv"}
    return {names[key]: partial(write, text) for key, text in texts.items()}


def test_a_report_replaces_an_earlier_one_file_by_file(tmp_path: Path) -> None:
    out = tmp_path / "new" / "report"
    ReportFolder.of(out).write(files(page="1", plot="1", numbers="1"))
    (out / "mine.txt").write_text("mine")
    (out / "data" / "mine.csv").write_text("mine")
    ReportFolder.of(out).write(files(page="2", plot="2"))
    assert (out / "index.html").read_text() == "2"
    # A file of the earlier report that is no longer made is deleted. The user's files stay.
    assert not (out / "data" / "quality.csv").exists()
    assert (out / "mine.txt").read_text() == (out / "data" / "mine.csv").read_text() == "mine"
    assert json.loads((out / MARKER).read_text())["files"] == ["figures/quality.png", "index.html"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [MARKER, "data", "figures", "index.html", "mine.txt"]
    )


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="is not a folder"):
        ReportFolder.of(tmp_path / "file")
    with pytest.raises(StorageError, match="holds other files than a report"):
        ReportFolder.of(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="is not a folder"):
        ReportFolder.of(tmp_path / "link")


@pytest.mark.parametrize("text", ["", "[]", '{"made_by": "me", "files": []}', '{"files": 3}'])
def test_a_damaged_marker_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MARKER).write_text(text)
    with pytest.raises(StorageError, match="is damaged"):
        ReportFolder.of(tmp_path)


def test_a_marker_cannot_name_files_of_others(tmp_path: Path) -> None:
    names = ["../outside", "figures/../../outside", "/etc/passwd", "mine.txt", "index.html"]
    marker = {"made_by": "prunesearch report", "files": names}
    (tmp_path / MARKER).write_text(json.dumps(marker))
    assert ReportFolder.of(tmp_path).earlier == {"index.html"}


def test_a_file_that_no_report_wrote_is_not_replaced(tmp_path: Path) -> None:
    ReportFolder.of(tmp_path).write(files(page="1"))
    (tmp_path / "data" / "quality.csv").write_text("mine")
    with pytest.raises(StorageError, match="was not written by an earlier report"):
        ReportFolder.of(tmp_path).write(files(page="2", numbers="2"))
    assert (tmp_path / "index.html").read_text() == "1"
    assert (tmp_path / "data" / "quality.csv").read_text() == "mine"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    out, other = tmp_path / "report", tmp_path / "other"
    ReportFolder.of(out).write(files(page="1"))
    other.mkdir()
    (out / "data").rmdir()
    (out / "data").symlink_to(other)
    with pytest.raises(StorageError, match="is a link"):
        ReportFolder.of(out)


def test_a_report_that_is_cut_short_is_still_known_as_one(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise RuntimeError("stopped")

    ReportFolder.of(tmp_path).write(files(page="1"))
    wanted = {**files(numbers="2"), "index.html": fail}
    with pytest.raises(RuntimeError, match="stopped"):
        ReportFolder.of(tmp_path).write(wanted)
    # The page is as before, and the new file belongs to the report.
    assert (tmp_path / "index.html").read_text() == "1"
    assert ReportFolder.of(tmp_path).earlier == {"index.html", "data/quality.csv"}


def test_a_report_that_another_one_overtook_replaces_it(tmp_path: Path) -> None:
    out = tmp_path / "report"
    first, second = ReportFolder.of(out), ReportFolder.of(out)
    second.write(files(page="2", numbers="2"))
    first.write(files(page="1", plot="1"))
    assert (out / "index.html").read_text() == "1"
    assert not (out / "data" / "quality.csv").exists()
    # A folder that somebody else filled in the meantime stays as it is.
    third = ReportFolder.of(tmp_path / "other")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="holds other files"):
        third.write(files(page="3"))
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["mine.txt"]
