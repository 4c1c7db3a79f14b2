import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState, create_trial

from prunesearch.config.recipe import Recipe
from prunesearch.errors import (
    RunError,
    StorageError,
    StudyError,
    UnknownNameError,
)
from prunesearch.studies import persistence, places, selection, study_recipe
from prunesearch.studies.summary import summaries, summarise, summarise_trial

RECIPE = Recipe(model="m", drop="2")


EARLIER_RECIPES = json.loads(
    (Path(__file__).parents[1] / "config" / "files" / "flat_recipes.json").read_text()
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/new/study.db"


def test_a_study_of_an_earlier_version_is_resumed(url: str) -> None:
    storage = persistence.open_storage(url, create=True)
    for name, earlier in EARLIER_RECIPES.items():
        study = optuna.create_study(storage=storage, study_name=name)
        study.set_user_attr("identity", json.dumps(earlier["identity"], sort_keys=True))
        study.set_user_attr("recipe", json.dumps(earlier["stored"]))
        now = Recipe(**earlier["given"])
        resumed = persistence.create_or_resume(
            storage, name, now, now.identity(), metrics=["kl"], maximize=[False]
        )
        assert study_recipe.recipe_of(resumed) == now
        with pytest.raises(StudyError, match=r"seed: . in the study, 99 now"):
            study_recipe.refuse_other(resumed, now.with_changes(seed=99).identity())


def test_a_study_is_held_to_its_recipe(url: str) -> None:
    storage = persistence.open_storage(url, create=True)
    identity = {**RECIPE.identity(), "model content": "a" * 64}
    made = persistence.create_or_resume(
        storage, "s", RECIPE, identity, metrics=["kl"], maximize=[True]
    )
    assert made.direction == optuna.study.StudyDirection.MAXIMIZE
    assert (
        persistence.create_or_resume(
            storage, "s", RECIPE, identity, metrics=["kl"], maximize=[True]
        ).study_name
        == "s"
    )
    assert study_recipe.recipe_of(made) == RECIPE
    assert study_recipe.identity_of(made) == identity
    assert made.metric_names == ["kl"]
    with pytest.raises(
        StudyError, match=r"tokens: 1024 in the study, 99 now\).*give `tokens` 1024; .* `study` s-"
    ):
        persistence.create_or_resume(
            storage, "s", RECIPE, identity | {"tokens": 99}, metrics=["kl"], maximize=[True]
        )
    with pytest.raises(StudyError, match=r"model content: aaaaaaaaaaaa\.\.\. in the study"):
        persistence.create_or_resume(
            storage,
            "s",
            RECIPE,
            identity | {"model content": "b" * 64},
            metrics=["kl"],
            maximize=[True],
        )
    with pytest.raises(
        StudyError,
        match=r"to resume it give `tokens` 1024, the model as it was when m was searched",
    ):
        persistence.create_or_resume(
            storage,
            "s",
            RECIPE,
            identity | {"tokens": 99, "model content": "b"},
            metrics=["kl"],
            maximize=[True],
        )


def test_what_is_known_before_loading_is_refused_before_it(url: str) -> None:
    persistence.refuse_others(url, [("s", RECIPE)])
    storage = persistence.open_storage(url, create=True)
    identity = {**RECIPE.identity(), "model content": "a" * 64, "numerics": "cpu"}
    persistence.create_or_resume(storage, "s", RECIPE, identity, metrics=["kl"], maximize=[False])
    persistence.refuse_others(url, [("s", RECIPE), ("other", RECIPE)])
    with pytest.raises(
        StudyError,
        match=r"seed: 0 in the study, 3 now\): to resume it give `seed` 0; .* `study` s-",
    ):
        persistence.refuse_others(url, [("s", RECIPE.with_changes(seed=3))])


def test_a_model_is_found_from_every_folder(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model", "elsewhere/model"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(model="model", drop="2", calibration="owner/texts", revision="main")
    storage = persistence.open_storage(url, create=True)
    study = persistence.create_or_resume(storage, "s", recipe, {}, metrics=["kl"], maximize=[False])
    places.remember_places(study, recipe)
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = places.located(study, {})
    assert (found.model.path, found.data.calibration) == (str(tmp_path / "model"), "owner/texts")
    given = places.located(study, {"model": "model"})
    assert (given.model.path, given.model.revision) == ("model", None)
    (tmp_path / "model").rmdir()
    assert places.located(study, {}).model.path == "model", "as it was typed: its content decides"
    monkeypatch.chdir(tmp_path / "new")
    with pytest.raises(
        StudyError,
        match=rf"'model' of study 's' is not here \(it was {tmp_path}/model\): give `model` PATH",
    ):
        places.located(study, {})


def test_somebody_elses_study_is_left_alone(url: str) -> None:
    storage = persistence.open_storage(url, create=True)
    foreign = optuna.create_study(storage=storage, study_name="theirs")
    foreign.add_trial(create_trial(value=1.0))
    with pytest.raises(StudyError, match="not made by prunesearch"):
        persistence.create_or_resume(
            storage, "theirs", RECIPE, {}, metrics=["kl"], maximize=[False]
        )
    with pytest.raises(StudyError, match="holds no recipe"):
        study_recipe.recipe_of(foreign)
    assert summaries(storage) == []


def test_a_study_whose_making_was_killed_is_completed(url: str) -> None:
    storage = persistence.open_storage(url, create=True)
    optuna.create_study(storage=storage, study_name="s")
    assert (
        study_recipe.recipe_of(
            persistence.create_or_resume(
                storage, "s", RECIPE, {"a": 1}, metrics=["kl"], maximize=[False]
            )
        )
        == RECIPE
    )


def test_a_study_has_one_writer(url: str) -> None:
    storage = persistence.open_storage(url, create=True)
    persistence.create_or_resume(storage, "s", RECIPE, {}, metrics=["kl"], maximize=[False])
    with persistence.sole_writer(storage, "s"):
        with persistence.sole_writer(storage, "other"):
            pass
        with pytest.raises(StudyError, match="another process"):
            persistence.delete(storage, "s")
        with (
            pytest.raises(StudyError, match="'s' is being searched by another process"),
            persistence.sole_writer(storage, "s"),
        ):
            pass
    with persistence.sole_writer(storage, "s"):
        pass


def test_a_database_that_fails_under_way_is_said_in_one_line() -> None:
    with (
        pytest.raises(RunError, match=r"database of study 's' failed \(disk full\)"),
        persistence.database_failures("s"),
    ):
        try:
            raise OSError("disk full")
        except OSError as cause:
            raise StorageInternalError("An exception is raised during the commit.") from cause


@pytest.mark.parametrize("maximize", [False, True])
def test_the_best_come_first_and_failures_are_counted(url: str, maximize: bool) -> None:
    storage = persistence.open_storage(url, create=True)
    study = persistence.create_or_resume(
        storage, "s", RECIPE, {}, metrics=["kl"], maximize=[maximize]
    )
    assert persistence.last_failure(study) == "none failed"
    for value in (0.3, 0.1, 0.2, 0.1):
        study.add_trial(create_trial(value=value, user_attrs={"dropped": f"{value}"}))
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"failure": "out of memory"}))
    assert [t.number for t in selection.best_trials(study, 3)] == (
        [0, 2, 1] if maximize else [1, 3, 2]
    )
    summary = summarise(study)
    assert (summary.trials, summary.failed, summary.best_value) == (4, 1, 0.3 if maximize else 0.1)
    assert persistence.last_failure(study) == "out of memory"
    assert summarise_trial(selection.best_trials(study, 1)[0]).dropped == summary.best_dropped


def test_a_recipe_of_another_version_is_said_and_passed_over_in_lists(url: str) -> None:
    storage = persistence.open_storage(url, create=True)
    study = persistence.create_or_resume(storage, "s", RECIPE, {}, metrics=["kl"], maximize=[False])
    study.set_user_attr(study_recipe.RECIPE_ATTR, '{"model": "m", "from_the_future": 1}')
    with pytest.raises(StudyError, match="another version of prunesearch"):
        study_recipe.recipe_of(study)
    assert summaries(storage) == []


def test_a_remembered_value_never_changes(url: str) -> None:
    study = persistence.create_or_resume(
        persistence.open_storage(url, create=True),
        "s",
        RECIPE,
        {},
        metrics=["kl"],
        maximize=[False],
    )
    assert persistence.get_or_set_attr(study, "x", lambda: {"a": 1}) == {"a": 1}
    assert persistence.get_or_set_attr(study, "x", lambda: {"a": 2}) == {"a": 1}


def test_studies_are_found_by_name_and_deleted(url: str) -> None:
    storage = persistence.open_storage(url, create=True)
    persistence.create_or_resume(
        storage, "llama-drop8", RECIPE, {}, metrics=["kl"], maximize=[False]
    )
    with pytest.raises(UnknownNameError, match="did you mean 'llama-drop8'"):
        persistence.load(storage, "llama-drop")
    persistence.delete(storage, "llama-drop8")
    assert summaries(storage) == []


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("notaurl", "not a URL"),
        ("foo://x", "unknown database 'foo'"),
        ("redis://localhost", "unknown database 'redis'"),
        ("mysql://localhost/x", "unknown database 'mysql'"),
        ("sqlite:////proc/nowhere/study.db", "cannot write"),
    ],
)
def test_impossible_storage_is_refused(url: str, complaint: str) -> None:
    with pytest.raises(StorageError, match=complaint):
        persistence.open_storage(url, create=True)


def test_processes_that_start_together_share_a_new_database(url: str) -> None:
    code = f"from prunesearch.studies.persistence import open_storage; open_storage({url!r}, create=True)"
    started = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [process.communicate()[1] for process in started] == [""] * 4


def test_looking_does_not_make_a_database(url: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="run prunesearch search first"):
        persistence.open_storage(url, create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_newer_schema_is_refused_with_the_remedy(url: str) -> None:
    persistence.open_storage(url, create=True)
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        database.execute("UPDATE version_info SET schema_version = 999")
        database.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    with pytest.raises(StorageError, match="upgrade prunesearch, or run: optuna storage upgrade"):
        persistence.open_storage(url, create=False)
    (Path(url.removeprefix("sqlite:///"))).write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match="cannot open `storage`"):
        persistence.open_storage(url, create=False)


def test_a_trials_figures_are_metrics_and_not_what_the_search_took() -> None:
    study = optuna.create_study()
    dense = {"metric": "kl", "metrics": {"kl": 0.0, "perplexity": 20.0}}
    study.set_user_attr(selection.DENSE_ATTR, json.dumps(dense))
    kept = {
        "kl": 0.5,
        "kl_stderr": 0.01,
        "perplexity": 30.0,
        "seconds": 0.2,
        "latency_ms": 12.5,
        "dropped": "1",
    }
    study.add_trial(create_trial(value=0.5, user_attrs=kept))
    assert selection.figures(study, study.trials[0]) == {
        "metrics": {"kl": 0.5, "perplexity": 30.0},
        "stderr": {"kl": 0.01},
        "dense_metrics": {"kl": 0.0, "perplexity": 20.0},
    }
