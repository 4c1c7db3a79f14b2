"""Data that cannot be read are refused before a model is loaded or searched."""

from collections.abc import Callable
from pathlib import Path

import pytest

from prunesearch.config.data import DataSection
from prunesearch.config.objective import ObjectiveSection
from prunesearch.config.recovery import EvaluationSection, HealRecipe, Recovery
from prunesearch.errors import DataError, InputError, PruneSearchError, UnknownNameError
from prunesearch.pipeline import session
from prunesearch.pipeline.data_checks import check_data, check_recovery, check_text
from tests.support.cli import refused
from tests.support.texts import hellaswag_rows, write_lines

MODEL_IS_LOADED = "the model was loaded"


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model can be loaded."""

    def fail(*_: object) -> None:
        raise AssertionError(MODEL_IS_LOADED)

    monkeypatch.setattr(session, "load_for", fail)


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
    for name in ("builtin", str(text), "owner/texts:config:train"):
        check_text(name)


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
    with pytest.raises(DataError, match=r"nope\.txt"):
        check_recovery(Recovery(heal=HealRecipe(data="nope.txt")))
    with pytest.raises(DataError, match=r"nope\.txt"):
        check_recovery(Recovery(heal=HealRecipe(held_out="nope.txt")))
    with pytest.raises(UnknownNameError, match="helaswag"):
        check_recovery(Recovery(evaluate=EvaluationSection(task="helaswag")))


def test_a_run_with_a_wrong_text_for_healing_searches_nothing(
    tmp_path: Path,
    unloadable: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Path("recipe.yaml")
    recipe.write_text("model: tiny\nsearch: {drop: 2}\nrecover: {heal: {data: nope.txt}}\n")
    assert "nope.txt" in refused(capsys, monkeypatch, "run", str(recipe))
    recipe.write_text("model: tiny\nsearch: {drop: 2}\ndata: {calibration: nope.txt}\n")
    assert "nope.txt" in refused(capsys, monkeypatch, "run", str(recipe))
    assert list(tmp_path.iterdir()) == [tmp_path / "recipe.yaml"]
