"""Which data count as the same."""

from pathlib import Path

import pytest

from prunesearch.pipeline.held_out_data import are_same_data


def test_data_are_the_same_by_name_or_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("text.txt", "one"), ("copy.txt", "one"), ("other.txt", "two")):
        (tmp_path / name).write_text(text)
    assert are_same_data("text.txt", str(tmp_path / "text.txt"))
    assert are_same_data("text.txt", "copy.txt")
    assert are_same_data("builtin", "builtin")
    assert not are_same_data("text.txt", "other.txt")
    assert not are_same_data("text.txt", "missing.txt")
    # No file can have such a name.
    assert not are_same_data("text.txt", "x" * 5000)
