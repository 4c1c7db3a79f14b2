"""A colleague's study goes on where the model and the data have other names, if their content is
the same.
"""

import shutil
import socket
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.support.cli import FAST, refused, run, run_json
from tests.support.models import byte_tokenizer

STUDY = "tiny-llama-drop2-kl-pso"


@pytest.fixture
def team(here: Path, tiny_folder: Path, prose: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a colleague with another host, a copy of the model and one of the text.

    The study was made in a folder that is gone.
    """
    monkeypatch.setenv("PRUNESEARCH_STORAGE", f"sqlite:///{here}/team.db")
    monkeypatch.setenv("PRUNESEARCH_CACHE", str(here / "team"))
    theirs, ours = here / "theirs", here / "ours"
    shutil.copytree(tiny_folder, theirs / "models" / "tiny-llama")
    shutil.copy(prose, theirs / "text.txt")
    monkeypatch.chdir(theirs)
    data = ["--calibration", "text.txt", *FAST]
    run("search", "models/tiny-llama", "--drop", 2, "--trials", 4, *data)
    # The copy has other files: the same tensors in several.
    model = AutoModelForCausalLM.from_pretrained(theirs / "models" / "tiny-llama")
    model.save_pretrained(ours / "copy", max_shard_size="60KB")
    byte_tokenizer().save_pretrained(ours / "copy")
    (theirs / "text.txt").rename(ours / "renamed.txt")
    shutil.rmtree(theirs)
    monkeypatch.setattr(socket, "gethostname", lambda: "another-host")
    monkeypatch.chdir(ours)
    return ours


def test_a_colleagues_study_goes_on_with_copies_of_another_name(
    team: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refused(capsys, monkeypatch, "study", "resume", STUDY)
    assert "the model 'models/tiny-llama' and the calibration 'text.txt' of study" in said
    assert "give --model PATH and --calibration PATH" in said
    elsewhere = ["--model", "copy", "--calibration", "renamed.txt"]
    found = run_json("study", "resume", STUDY, "--trials", 6, *elsewhere)
    assert (found["trials"], found["computed"]) == (6, 2)
    # From now on the places are known on this host, in every folder.
    (team / "deep").mkdir()
    monkeypatch.chdir(team / "deep")
    assert run_json("study", "resume", STUDY, "--trials", 7)["computed"] == 1
    # The plain command resumes it by its name.
    words = ["--drop", 2, "--calibration", "../renamed.txt", *FAST, "--study", STUDY]
    assert run_json("search", "../copy", *words, "--trials", 8)["computed"] == 1
    assert run_json("export", STUDY, "--out", "out")["dropped"] == found["best"]["dropped"]
    # Other content is refused, and the message says which.
    text = Path("other.txt")
    text.write_text((team / "renamed.txt").read_text().replace("e", "a"))
    said = refused(capsys, monkeypatch, "study", "resume", STUDY, "--calibration", text)
    assert "(data content: " in said
    assert "give the text as it was when text.txt was read" in said


def test_a_recipe_file_resumes_a_colleagues_study(team: Path) -> None:
    Path("recipe.yaml").write_text(
        "model: copy\n"
        "data: {calibration: renamed.txt, tokens: 256, window: 64}\n"
        "search: {drop: 2, population: 4}\n"
        f"run: {{study: {STUDY}, trials: 5}}\n"
    )
    report = run_json("run", "recipe.yaml", "--out", "out")
    assert (report["study"], report["trials"], report["computed"]) == (STUDY, 5, 1)
