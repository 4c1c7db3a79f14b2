"""A search that starts from another study, from the command line."""

from pathlib import Path

import optuna
import pytest

from prunesearch.config.recipe import Recipe
from tests.support.cli import FAST, refused, run, run_json


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"sampler": "random"}, "goes with `sampler` pso"),
        ({"ranking": "influence"}, "takes the place of `ranking` influence"),
        ({"preselect": False}, "informs the surrogate"),
        ({"drop": "", "space": "widths", "target": "20%"}, "not with `space` widths"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    settings: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        Recipe(model="m", search={"drop": "2", "warm_start": "a", **settings})


def test_a_warm_start_is_part_of_the_recipe_only_if_it_is_asked_for() -> None:
    recipe = Recipe(model="m", drop="2")
    assert "warm_start" not in recipe.identity()
    warm = recipe.with_changes(warm_start="a")
    assert (warm.identity()["warm_start"], warm.search.start) == ("a", "none")


def test_a_search_starts_warm_and_resumes_without_the_other_study(
    here: Path,
    tiny_folder: Path,
    prose: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["search", str(tiny_folder), "--calibration", str(prose), *FAST]
    other = "sqlite:///other.db"
    run_json(*words, "--drop", "2", "--trials", 12, "--study", "first", "--storage", other)
    warm = [*words, "--drop", "1", "--warm-start", "first", "--warm-start-storage", other]
    # What cannot be is refused before anything is made.
    assert "no study database" in refused(
        capsys, monkeypatch, *words, "--drop", "1", "--warm-start", "first"
    )
    assert "goes with" in refused(
        capsys, monkeypatch, *words, "--drop", "1", "--warm-start-storage", other
    )
    assert not (here / "storage" / "study.db").exists()
    found = run_json(*warm, "--trials", 3)
    assert found["study"].endswith("-warm")
    assert found["warm_start"] == {"study": "first", "trials": 12}
    assert found["trials"] == 3, "the trials of the other study do not count here"
    assert "warm start: 12 trials of study first" in run("study", "show", found["study"]).stdout
    # It goes on alone, with the trials of an unbroken search.
    unbroken = run_json(*warm, "--trials", 6, "--study", "unbroken")
    (here / "other.db").unlink()
    run_json("study", "resume", found["study"], "--trials", 6)
    storage = "sqlite:///storage/study.db"
    trials = []
    for name in (found["study"], unbroken["study"]):
        study = optuna.load_study(storage=storage, study_name=name)
        trials.append([t.user_attrs["dropped"] for t in study.trials])
    assert trials[0] == trials[1]
