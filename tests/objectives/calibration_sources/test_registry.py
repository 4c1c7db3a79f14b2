"""A name is read by the first calibration source that matches it."""

from pathlib import Path

import pytest

from prunesearch.objectives.calibration_data import read_text
from prunesearch.objectives.calibration_sources.registry import (
    REGISTRY,
    CalibrationSource,
    source_of,
)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("builtin", "builtin"),
        ("builtin-held-out", "builtin"),
        ("missing.txt", "file"),
        ("-", "file"),
        ("", "file"),
        ("wiki:en:train", "dataset"),
    ],
)
def test_each_name_has_its_source(name: str, source: str) -> None:
    assert source_of(name).name == source


def test_a_folder_is_a_dataset_and_a_file_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "prose").write_text("one line\n")
    assert source_of(str(tmp_path)).name == "dataset"
    assert source_of(str(tmp_path / "prose")).name == "file"


def test_only_the_builtin_text_has_text_of_its_own_for_measuring() -> None:
    assert source_of("builtin").held_out("builtin") == "builtin-held-out"
    assert source_of("builtin-held-out").held_out("builtin-held-out") is None
    assert source_of("a.txt").held_out("a.txt") is None


def test_a_registered_source_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    REGISTRY.entries()
    monkeypatch.setattr(REGISTRY, "_entries", dict(REGISTRY._entries))
    REGISTRY.register(
        CalibrationSource(
            "shout",
            "shout:WORD",
            order=30,
            matches=lambda name: name.startswith("shout:"),
            read=lambda name, tokenizer: [name.partition(":")[2].upper(), "  "],
        )
    )
    assert read_text("shout:hello") == ["HELLO"]
