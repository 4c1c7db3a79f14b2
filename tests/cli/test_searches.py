"""Searches of every kind from the command line."""

from pathlib import Path

import optuna
import pytest

from tests.support.cli import FAST, refused, run, run_json


def test_a_grid_is_searched_at_once(
    here: Path,
    tiny_folder: Path,
    prose: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = [
        "search",
        str(tiny_folder),
        "--sampler",
        "pso,random",
        "--calibration",
        str(prose),
        *FAST,
    ]
    for bad, complaint in {"1,1": "would be searched twice", "1,9": "9", "1,": "drop"}.items():
        assert complaint in refused(capsys, monkeypatch, *grid, "--drop", bad)
    assert "leave it out" in refused(capsys, monkeypatch, *grid, "--drop", "1,2", "--study", "s")
    assert not (here / "storage" / "study.db").exists(), "nothing was begun"
    together = run_json(*grid, "--drop", "1,2", "--trials", 6)["searches"]
    assert {s["study"] for s in together} == {
        f"tiny-llama-drop{k}-kl-{s}" for k in (1, 2) for s in ("pso", "random")
    }
    assert all(s["trials"] == 6 for s in together)
    one = [
        "search",
        tiny_folder,
        "--drop",
        2,
        "--calibration",
        prose,
        *FAST,
        "--trials",
        6,
        "--study",
        "alone",
    ]
    alone = run_json(*one)
    (same,) = (s for s in together if s["study"] == "tiny-llama-drop2-kl-pso")
    assert alone["best"]["metrics"] == same["best"]["metrics"], (
        "searching together changes no trial"
    )
    assert alone["hits"] == 6, "and what was scored together is found"
    assert "4 studies over one engine" in run(*grid, "--drop", "1,2", "--trials", 6).stdout


def test_a_task_search_and_evaluation(here: Path, tiny_folder: Path, hellaswag_like: Path) -> None:
    task = ["--task", "hellaswag", "--task-data", hellaswag_like, "--limit", 8]
    found = run_json("search", tiny_folder, "--drop", 2, "--trials", 4, "--population", 4, *task)
    assert found["study"] == "tiny-llama-drop2-hellaswag-pso"
    assert found["value"] == found["best"]["metrics"]["acc_norm"]
    study = optuna.load_study(study_name=found["study"], storage="sqlite:///storage/study.db")
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    measured = run_json("evaluate", tiny_folder, "--layers", found["best"]["dropped"], *task)
    assert measured["cached"]
    assert measured["stderr"]["acc_norm"] == found["best"]["stderr"]["acc_norm"]
    assert "acc_norm" in run("evaluate", tiny_folder, *task).stdout


def test_too_few_trials_for_a_result_are_refused_with_the_number(
    here: Path,
    tiny_folder: Path,
    prose: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["search", tiny_folder, "--drop", 2, "--calibration", prose, *FAST]
    said = refused(capsys, monkeypatch, *words, "--sampler", "greedy", "--trials", 6)
    assert "takes 7 trials here until the first result and 11 in all: give --trials 11" in said
    assert "until the first result and 7 in all" in refused(
        capsys, monkeypatch, *words, "--ranking", "single", "--trials", 6
    )
    assert not (here / "storage" / "study.db").exists()
    part = run(*words, "--sampler", "greedy", "--trials", 8).stdout
    assert "not finished: greedy has 3 trials of its rounds to go" in part
    assert "--trials 11" in part
    assert run_json(*words, "--sampler", "greedy", "--trials", 8)["missing"] == 3
    assert run_json(*words, "--sampler", "greedy", "--trials", 11)["missing"] == 0


def test_a_front_is_searched_shown_and_chosen_from(
    here: Path, tiny_folder: Path, prose: Path
) -> None:
    search = [
        "search",
        tiny_folder,
        "--drop",
        "pareto:4",
        "--trials",
        24,
        "--calibration",
        prose,
        *FAST,
    ]
    found = run_json(*search)
    name = found["study"]
    assert name == "tiny-llama-droppareto4-kl-pso"
    front = found["front"]
    assert len(front) >= 2
    assert [t["values"][0] for t in front] == sorted(t["values"][0] for t in front)
    assert [t["values"][1] for t in front] == sorted((t["values"][1] for t in front), reverse=True)
    assert found["best"]["dropped"] in {t["dropped"] for t in front}
    study = optuna.load_study(study_name=name, storage="sqlite:///storage/study.db")
    assert {t.user_attrs["dropped"] for t in study.best_trials} >= {t["dropped"] for t in front}

    text = run(*search).stdout
    assert "0 evaluated, 0 cache hits" in text
    assert f"prunesearch study best {name} --max-loss 10%" in text
    shown = run("study", "show", name).stdout
    assert all(t["dropped"] in shown for t in front)
    assert run_json("study", "show", name)["best"] == front

    trials = [t for t in study.trials if t.values]
    limit = sorted(t.user_attrs["bytes"] for t in trials)[len(trials) // 2]
    within = min(
        (t for t in trials if t.user_attrs["bytes"] <= limit), key=lambda t: (t.values[0], t.number)
    )
    assert (
        run("study", "best", name, "--max-size", limit).stdout.strip()
        == within.user_attrs["dropped"]
    )
    loose = run_json("study", "best", name, "--max-loss", "1000%")
    assert loose["attributes"]["bytes"] == min(t.user_attrs["bytes"] for t in trials)
    tight = front[0]["values"][0] + 1e-9
    assert run_json("study", "best", name, "--max-loss", f"{tight:.9f}")["values"][0] <= tight
    exported = run_json("export", name, "--max-size", limit, "--out", "out")
    assert exported["dropped"] == within.user_attrs["dropped"]
    assert exported["bytes"] <= limit


def test_sublayers_are_searched_and_evaluated_but_not_exported(
    here: Path,
    tiny_folder: Path,
    prose: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [
        tiny_folder,
        "--drop",
        3,
        "--units",
        "sublayers",
        "--trials",
        8,
        "--calibration",
        prose,
        *FAST,
    ]
    found = run_json("search", *words)
    assert found["study"] == "tiny-llama-drop3-sublayers-kl-pso"
    assert any(letter in found["best"]["dropped"] for letter in "am")
    measured = run_json(
        "evaluate",
        tiny_folder,
        "--layers",
        found["best"]["dropped"],
        "--calibration",
        prose,
        *FAST[:4],
    )
    assert measured["metrics"]["kl"] == found["value"]
    assert measured["params"] == found["best"]["cost"]["params"]
    assert "--as zeroed" in refused(capsys, monkeypatch, "export", found["study"], "--out", "out")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("sampler", "partial"),
    [
        ("greedy", 6),
        ("one-shot", 6),
        ("evolution", 0),
        ("cmaes", 0),
        ("woa --encoding keys", 0),
        ("pso --asynchronous", 0),
    ],
)
def test_every_kind_of_sampler_runs_from_the_command_line(
    here: Path, tiny_folder: Path, prose: Path, sampler: str, partial: int
) -> None:
    search = ["search", tiny_folder, "--drop", 2, "--trials", 9, "--calibration", prose, *FAST]
    found = run_json(*search, "--sampler", *sampler.split(), "--study", "s")
    assert found["trials"] == 9
    (summary,) = run_json("study", "list")
    assert (summary["partial_subsets"], summary["trials"]) == (partial, 9 - partial)
    assert len(found["best"]["dropped"].split(",")) == 2
    assert run_json(*search, "--sampler", *sampler.split(), "--study", "s")["computed"] == 0


@pytest.mark.parametrize("ranking", ["magnitude", "taylor", "single", "none"])
def test_searches_start_from_any_ranking(
    here: Path, tiny_folder: Path, prose: Path, ranking: str
) -> None:
    words = [
        "search",
        tiny_folder,
        "--drop",
        2,
        "--trials",
        8,
        "--calibration",
        prose,
        *FAST,
        "--ranking",
        ranking,
    ]
    assert run_json(*words)["trials"] == 8
    assert run_json(*words)["computed"] == 0
    study = optuna.load_study(
        study_name="tiny-llama-drop2-kl-pso", storage="sqlite:///storage/study.db"
    )
    assert ("ranking" in study.user_attrs) == (ranking in ("magnitude", "taylor"))


def test_an_enqueued_subset_is_evaluated(here: Path, tiny_folder: Path, prose: Path) -> None:
    words = ["search", tiny_folder, "--drop", 2, "--calibration", prose, *FAST]
    name = run_json(*words, "--trials", 3)["study"]
    study = optuna.load_study(study_name=name, storage="sqlite:///storage/study.db")
    study.enqueue_trial({f"drop_{i:02d}": int(i in (1, 5)) for i in range(6)})
    study.enqueue_trial({"drop_00": 1})
    run(*words, "--trials", 9)
    states = [t.state.name for t in study.trials]
    assert states == ["COMPLETE"] * 4 + ["FAIL"] + ["COMPLETE"] * 4
    assert study.trials[3].user_attrs["dropped"] == "1,5"
    sizes = {trial.user_attrs["bytes"] for trial in study.trials if trial.state.name == "COMPLETE"}
    assert len(sizes) == 1, "an enqueued trial says its size as the others do"
    assert "no parameter drop_01" in study.trials[4].user_attrs["failure"]
