import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
from optuna_dashboard import get_note, save_note

from prunesearch.config.objective import ScoreWeights
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.evaluation.scalarization import TrialScalarizer
from prunesearch.execution.latency import LatencyModel
from prunesearch.models.sizes import Sizes
from prunesearch.pipeline.search_loop import search
from prunesearch.report import notes as notes_module
from prunesearch.report.notes import Noter
from prunesearch.samplers import build
from prunesearch.space import SearchSpace
from prunesearch.studies import notes
from prunesearch.studies.optuna_internals.access import as_live_trial
from prunesearch.studies.persistence import open_storage
from tests.support.models import N_LAYERS
from tests.support.table_engine import TableEngine

SPACE = SearchSpace(N_LAYERS, 2)


@pytest.fixture
def scalarizer() -> TrialScalarizer:
    ones = (1,) * N_LAYERS
    latency = LatencyModel((1.0,) * N_LAYERS, (0.4,) * N_LAYERS, 1.0)
    return TrialScalarizer("kl", False, ScoreWeights(), Sizes(ones, ones, 1, 2), latency)


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    made = optuna.create_study(
        storage=open_storage(f"sqlite:///{tmp_path}/study.db", create=True), study_name="s"
    )
    for value in (2.0, 1.0):
        made.add_trial(optuna.create_trial(value=value, user_attrs={"dropped": "3,4", "kl": value}))
    return made


def note_of(study: optuna.Study, number: int) -> str:
    return str(get_note(as_live_trial(study, study.trials[number])))


def test_notes_follow_the_best_trial(study: optuna.Study) -> None:
    first, second = study.trials
    notes.write(study, notes.Notes("so far", first, "the best"))
    assert (get_note(study), note_of(study, 0), note_of(study, 1)) == ("so far", "the best", "")
    notes.write(study, notes.Notes("at last", second, "better"))
    assert (get_note(study), note_of(study, 0), note_of(study, 1)) == ("at last", "", "better")


def test_what_somebody_wrote_in_the_dashboard_stays(study: optuna.Study) -> None:
    first, second = study.trials
    notes.write(study, notes.Notes("ours", first, "ours"))
    save_note(study, "theirs")
    save_note(as_live_trial(study, first), "theirs")
    notes.write(study, notes.Notes("ours again", second, "ours"))
    assert (get_note(study), note_of(study, 0), note_of(study, 1)) == ("theirs", "theirs", "ours")


def noter(study: optuna.Study, storage: str = "sqlite:///storage/study.db") -> Noter:
    recipe = Recipe(model="/home/me/secret-place/tiny", drop="2", calibration="/home/me/my.txt")
    return Noter(
        study, recipe, RunOptions(storage=storage, trials=160), {"kl": 0.0, "bytes": 2**30}
    )


def test_the_notes_say_what_was_found_and_what_comes_next(study: optuna.Study) -> None:
    noter(study).write()
    for text in (get_note(study), note_of(study, 1)):
        assert "drops layers 3,4" in text
        assert "| KL to dense (nats/token) | 0.0000 | 1.0000 |" in text
        assert "prunesearch export s --out s" in text
        assert len(text) < 2000
    assert "2 of 160 trials" in get_note(study)
    assert "prunesearch study layers s" in get_note(study)
    assert "/home/me" not in get_note(study)
    assert note_of(study, 0) == ""


def test_no_secret_is_in_a_note(study: optuna.Study) -> None:
    noter(study, "postgresql+psycopg://me:s3cret@host/team").write()
    for text in (get_note(study), note_of(study, 1)):
        assert "s3cret" not in text
        assert '--storage "$PRUNESEARCH_STORAGE"' in text


def test_a_front_has_a_note_and_no_best_trial(tmp_path: Path) -> None:
    study = optuna.create_study(directions=["minimize", "minimize"], study_name="p")
    for values in ([1.0, 9.0], [2.0, 5.0], [3.0, 7.0]):
        study.add_trial(optuna.create_trial(values=values, user_attrs={"dropped": "1"}))
    noter(study).write()
    assert "2 trials are on the front" in get_note(study)
    assert all(note_of(study, trial.number) == "" for trial in study.trials)


def test_notes_change_no_trial(
    tmp_path: Path, scalarizer: TrialScalarizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searched with notes after every generation, and killed half-way, the trials are those of a
    search without.
    """
    monkeypatch.setattr(notes_module, "_SECONDS", 0.0)

    def trials(name: str, patiences: Sequence[int], noted: bool) -> list[object]:
        for patience in patiences:
            storage = open_storage(f"sqlite:///{tmp_path}/{name}.db", create=True)
            study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
            after = noter(study).now_and_then if noted else (lambda: None)
            sampler, engine = build("pso", SPACE, seed=0, population=4), TableEngine(patience)
            with suppress(KeyboardInterrupt):
                asyncio.run(search(study, sampler, engine, scalarizer, 10, after_generation=after))
        assert (get_note(study) != "") == noted
        return [(t.number, t.params, t.values, t.user_attrs, t.system_attrs) for t in study.trials]

    assert trials("plain", [100], False) == trials("noted", [5, 100], True)
