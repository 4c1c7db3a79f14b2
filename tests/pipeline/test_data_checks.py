"""Data that cannot be read are refused before a model is loaded or searched."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from prunesearch.config.data import DataSection
from prunesearch.config.objective import ObjectiveSection
from prunesearch.config.recovery import HealRecipe, Recovery
from prunesearch.errors import DataError, InputError, PruneSearchError, UnknownNameError
from prunesearch.pipeline.data_checks import (
    check_data,
    check_held_out,
    check_recovery,
    check_text,
)
from prunesearch.pipeline.held_out_data import HeldOutOptions
from tests.support.cli import refused
from tests.support.texts import hellaswag_rows, write_lines


@pytest.mark.parametrize(
    ("make", "kind", "complaint"),
    [
        (lambda folder: "nope.txt", DataError, "no calibration file 'nope.txt'"),
        (lambda folder: str(folder / "a.zip"), DataError, "is a .zip file"),
        (lambda folder: str(folder / "latin.txt"), DataError, "cannot read"),
        (lambda folder: str(folder / "no.jsonl.gz"), DataError, "cannot read"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused(
    tmp_path: Path, make: Callable[[Path], str], kind: type[PruneSearchError], complaint: str
) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "no.jsonl.gz").write_bytes(b"{}")
    with pytest.raises(kind, match=complaint):
        check_text(make(tmp_path))


def test_texts_that_can_be_read_are_accepted(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("é" * 100_000)
    # A dataset is looked for when it is read.
    accepted = []
    for name in ("builtin", str(text), "owner/texts:config:train"):
        check_text(name)
        accepted.append(name)
    assert len(accepted) == 3


def test_a_task_and_its_data_are_checked(tmp_path: Path) -> None:
    documents = str(write_lines(tmp_path / "hellaswag.jsonl", hellaswag_rows(2)))
    task = ObjectiveSection.of({"task": "hellaswag"})
    check_data(task, DataSection(task_data=documents))
    with pytest.raises(DataError, match=r"nope\.jsonl"):
        check_data(task, DataSection(task_data="nope.jsonl"))
    with pytest.raises(DataError, match="no folder 'nope'"):
        check_data(task, DataSection(include_path="nope"))
    with pytest.raises(UnknownNameError, match="did you mean 'hellaswag'"):
        check_data(ObjectiveSection.of({"task": "helaswag"}), DataSection())
    with pytest.raises(UnknownNameError, match="did you mean 'hellaswag'"):
        check_data(ObjectiveSection(name="kl=1,helaswag=2"), DataSection())
    with pytest.raises(InputError, match="'mmlu' is a group of several"):
        check_data(ObjectiveSection.of({"task": "mmlu"}), DataSection(task_data=documents))


def test_what_follows_a_search_is_checked_too() -> None:
    check_recovery(None)
    check_recovery(Recovery(heal=None))
    check_held_out(HeldOutOptions())
    with pytest.raises(DataError, match=r"nope\.txt"):
        check_recovery(Recovery(heal=HealRecipe(data="nope.txt")))
    with pytest.raises(DataError, match=r"nope\.txt"):
        check_recovery(Recovery(heal=HealRecipe(held_out="nope.txt")))
    with pytest.raises(DataError, match=r"nope\.txt"):
        check_held_out(HeldOutOptions(text="nope.txt"))
    with pytest.raises(DataError, match=r"nope\.jsonl"):
        check_held_out(HeldOutOptions(documents="nope.jsonl"))


def test_a_pipe_is_not_read_twice(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    rows = write_lines(tmp_path / "rows.jsonl", hellaswag_rows(2)).read_bytes()
    writer = threading.Thread(target=pipe.write_bytes, args=(rows,), daemon=True)
    writer.start()
    check_data(ObjectiveSection.of({"task": "hellaswag"}), DataSection(task_data=str(pipe)))
    assert pipe.read_bytes() == rows
    writer.join(60)


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "tiny", "--calibration", "nope"),
        ("evaluate", "tiny", "--protocol", "wikitext2-2048", "--protocol-data", "nope"),
        ("evaluate", "tiny", "--task", "hellaswag", "--task-data", "nope"),
        ("search", "tiny", "--drop", "2", "--calibration", "nope"),
        ("compensate", "tiny", "--layers", "2", "--calibration", "nope", "--out", "o"),
        ("compensate", "tiny", "--layers", "2", "--held-out", "nope", "--out", "o"),
        ("heal", "tiny", "--layers", "2", "--data", "nope", "--out", "o"),
        ("heal", "tiny", "--layers", "2", "--held-out", "nope", "--out", "o"),
        ("run", "heal.yaml"),
        ("run", "calibration.yaml"),
        ("run", "evaluation.yaml"),
    ],
)
def test_a_command_with_data_that_cannot_be_read_loads_nothing(
    tmp_path: Path,
    words: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = "model: tiny\nsearch: {drop: 2}\n"
    Path("heal.yaml").write_text(recipe + "recover: {heal: {data: nope.txt}}\n")
    Path("calibration.yaml").write_text(recipe + "data: {calibration: nope.txt}\n")
    evaluation = "recover: {evaluate: {task: hellaswag, task_data: nope.txt}}\n"
    Path("evaluation.yaml").write_text(recipe + evaluation)
    # No model is called tiny, so a command that loads one fails with another message.
    given = [word.replace("nope", "nope.txt") for word in words]
    assert "nope.txt" in refused(capsys, monkeypatch, *given)
    assert not (tmp_path / "storage").exists()
