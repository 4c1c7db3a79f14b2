"""Small files of what was measured on this machine."""

from pathlib import Path

import pytest

from prunesearch.cache.machine_files import keep, read_kept


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "prunesearch"


def test_a_value_is_kept(folder: Path) -> None:
    assert read_kept("speed") is None
    keep("speed", {"rows": 128, "method": "exp"})
    assert read_kept("speed") == {"rows": 128, "method": "exp"}
    assert [path.name for path in folder.iterdir()] == ["speed.json"]


def test_a_damaged_file_counts_as_missing(folder: Path) -> None:
    keep("speed", 1)
    (folder / "speed.json").write_text("{")
    assert read_kept("speed") is None


def test_without_a_folder_nothing_is_kept(folder: Path) -> None:
    folder.parent.write_text("a file where the folder would be")
    keep("speed", 1)
    assert read_kept("speed") is None
