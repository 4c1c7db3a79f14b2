"""`prunesearch.run`: events, and the arguments of earlier versions."""

import pickle
from pathlib import Path

import pytest

import prunesearch
from prunesearch.config.recovery import EvaluationSection, HealRecipe, Recovery
from prunesearch.errors import InputError
from prunesearch.events import Event, Message, SearchProgress, StageProgress


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
    raced = recipe.with_changes(race=True)
    prunesearch.run(raced, options, tmp_path / "out", on_event=seen.append)
    searched = [event for event in seen if isinstance(event, SearchProgress)]
    assert (searched[0].done, searched[-1].done, searched[-1].total) == (0, 3, 3)
    stages = [event.name for event in seen if isinstance(event, StageProgress)]
    assert stages[0] == f"loading the model {recipe.model.path}"
    assert f"writing the checkpoint to {tmp_path / 'out'}" in stages
    # All data are one chunk, which a race cannot save a part of.
    told = [event.text for event in seen if isinstance(event, Message)]
    assert any("a race has nothing to save here" in text for text in told)


def test_a_run_returns_the_search_the_export_the_recovery_and_the_evaluation(
    recipe: prunesearch.Recipe, options: prunesearch.RunOptions, tmp_path: Path
) -> None:
    plain = prunesearch.run(recipe, options, tmp_path / "plain")
    outcome, exported = plain
    assert exported is not None
    assert (outcome, exported) == (plain.outcome, plain.exported)
    assert list(plain) == [outcome, exported]
    assert exported.folder == tmp_path / "plain"
    assert (plain.recovery, plain.evaluation) == (None, None)
    assert outcome.block_code == "own"
    # With a recovery and an evaluation.
    text = recipe.data.calibration
    healing = HealRecipe(data=text, held_out_tokens=64, window=32, steps=2, batch_size=2)
    recovered = recipe.model_copy(
        update={
            "recover": Recovery(
                compensate=False,
                heal=healing,
                evaluate=EvaluationSection(calibration=text, tokens=256),
            )
        }
    )
    found = prunesearch.run(recovered, options, tmp_path / "recovered")
    assert found.outcome.best.candidate == outcome.best.candidate
    assert found.outcome.block_code is None  # all was in the cache
    assert found.recovery is not None
    assert found.recovery.dropped == outcome.best.candidate.text
    assert found.evaluation is not None
    assert found.evaluation.model == str(tmp_path / "recovered")
    assert found.evaluation.metrics["perplexity"] > 1.0
    # The results survive a copy, as to another process.
    copied = pickle.loads(pickle.dumps(found))
    assert copied.evaluation == found.evaluation
    # An equal export is not repeated, and its recovery is returned.
    again = prunesearch.run(recovered, options, tmp_path / "recovered")
    assert again.exported is None
    assert again.recovery is not None
    assert again.recovery.digest == found.recovery.digest


@pytest.mark.parametrize("by_name", [True, False])
def test_a_listener_still_works_and_is_deprecated(
    recipe: prunesearch.Recipe, options: prunesearch.RunOptions, tmp_path: Path, by_name: bool
) -> None:
    class Listener(list[SearchProgress]):
        def progress(self, progress: SearchProgress) -> None:
            self.append(progress)

    heard = Listener()
    with pytest.warns(DeprecationWarning, match="give on_event"):
        if by_name:
            prunesearch.run(recipe, options, tmp_path / "out", listener=heard)
        else:
            prunesearch.run(recipe, options, tmp_path / "out", heard)
    assert heard[-1].done == 3


def test_a_handler_that_cannot_be_called_is_refused_before_any_work(
    recipe: prunesearch.Recipe, options: prunesearch.RunOptions, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="`on_event` = 3: give a function"):
        prunesearch.run(recipe, options, tmp_path / "out", 3)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
