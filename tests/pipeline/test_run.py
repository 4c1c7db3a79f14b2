"""`prunesearch.run`: events, and the arguments of earlier versions."""

from pathlib import Path

import pytest

import prunesearch
from prunesearch.events import Event, SearchProgress, StageProgress


@pytest.fixture
def recipe(tiny_folder: Path, prose: Path) -> prunesearch.Recipe:
    return prunesearch.Recipe(
        model=str(tiny_folder),
        drop="2",
        calibration=str(prose),
        tokens=128,
        window=64,
        population=2,
    )


@pytest.fixture
def options(tmp_path: Path) -> prunesearch.RunOptions:
    return prunesearch.RunOptions(
        trials=3, storage=f"sqlite:///{tmp_path}/study.db", cache=str(tmp_path / "cache")
    )


def test_a_handler_receives_all_events_of_a_run(
    recipe: prunesearch.Recipe, options: prunesearch.RunOptions, tmp_path: Path
) -> None:
    seen: list[Event] = []
    prunesearch.run(recipe, options, tmp_path / "out", on_event=seen.append)
    searched = [event for event in seen if isinstance(event, SearchProgress)]
    assert (searched[0].done, searched[-1].done, searched[-1].total) == (0, 3, 3)
    stages = [event.name for event in seen if isinstance(event, StageProgress)]
    assert stages[0] == f"loading the model {recipe.model.path}"
    assert f"writing the checkpoint to {tmp_path / 'out'}" in stages


def test_a_listener_still_works_and_is_deprecated(
    recipe: prunesearch.Recipe, options: prunesearch.RunOptions, tmp_path: Path
) -> None:
    class Listener(list[SearchProgress]):
        def progress(self, progress: SearchProgress) -> None:
            self.append(progress)

    heard = Listener()
    with pytest.warns(DeprecationWarning, match="give on_event"):
        prunesearch.run(recipe, options, tmp_path / "out", listener=heard)
    assert heard[-1].done == 3
