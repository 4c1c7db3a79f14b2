"""`prunesearch cache` and `prunesearch doctor` as a user meets them."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner, Result

from prunesearch.cache import maintenance
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.keys import evaluation_key
from prunesearch.cli.main import cli
from prunesearch.studies import persistence
from tests.support.cli import FAST, refused, run, run_json

SEARCH = ["--drop", 2, "--trials", 8, *FAST]


def invoke(*words: object) -> Result:
    """Also where the exit status is not 0."""
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_a_search_is_seen_shared_and_thinned_out(
    here: Path,
    tiny_folder: Path,
    prose: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    search = ["search", tiny_folder, "--calibration", prose, *SEARCH]
    found = run_json(*search)
    run_json(*search, "--study", "again")
    stats = run_json("cache", "stats")
    assert stats["entries"] == sum(group["entries"] for group in stats["groups"])
    objectives = {group["objective"]: group for group in stats["groups"]}
    assert objectives["calibration"]["entries"] == 9, "eight candidates and the dense model"
    assert objectives["calibration"]["model"] == "tiny-llama", (
        "by the name that the studies know it by"
    )
    uses = {use["study"]: use for use in stats["studies"]}
    assert (uses[found["study"]]["hits"], uses[found["study"]]["computed"]) == (0, 8)
    assert (uses["again"]["hits"], uses["again"]["hit_rate"]) == (8, 1.0)
    assert uses["again"]["saved_seconds"] > 0
    shown = run("cache", "stats").stdout
    assert "100.0%" in shown
    assert "tiny-llama" in shown

    complaint = refused(capsys, monkeypatch, "cache", "export", "missing/all.jsonl")
    assert "there is no folder 'missing'; make it first" in complaint
    assert run_json("cache", "export", "all.jsonl.gz")["entries"] == stats["entries"]
    imported = run_json("cache", "import", "all.jsonl.gz", "all.jsonl.gz", "--cache", "colleague")
    assert imported == {"read": 2 * stats["entries"], "new": stats["entries"], "conflicts": 0}
    third = run_json(*search, "--study", "third", "--cache", "colleague")
    assert (third["hits"], third["computed"]) == (8, 0), "a colleague's evaluations are found"
    assert run_json("cache", "verify")["backends"][0]["sound"] == stats["entries"]
    assert run("cache", "path").stdout.strip() == str(here / "storage" / "cache")
    assert run_json("cache", "gc", "--older-than", "1d")["entries"] == 0
    time.sleep(1.1)
    assert run_json("cache", "gc", "--older-than", "1s")["entries"] == stats["entries"]
    assert run_json("cache", "stats")["entries"] == 0


def test_a_search_through_a_shared_database(here: Path, tiny_folder: Path, prose: Path) -> None:
    url = f"sqlite:///{here}/team.db"
    search = ["search", tiny_folder, "--calibration", prose, *SEARCH, "--storage", url]
    assert run_json(*search, "--cache", f"mine,{url}")["computed"] == 8
    found = run_json(*search, "--cache", f"yours,{url}", "--study", "other")
    assert (found["hits"], found["computed"]) == (8, 0)
    assert run_json("cache", "stats", "--cache", url, "--storage", url)["groups"]
    assert json.loads(invoke("cache", "path", "--cache", url, "--json").stdout)["url"] == url
    assert {s["name"] for s in run_json("study", "list", "--storage", url)} == {
        found["study"],
        "tiny-llama-drop2-kl-pso",
    }


def test_damage_is_found_and_reported(here: Path) -> None:
    with EvaluationCache("storage/cache") as cache:
        for i in range(3):
            cache.put(
                evaluation_key("f" * 64, f"blocks/6:{i}", {"kind": "calibration"}), [[i, 1, 2]]
            )
    with sqlite3.connect("storage/cache/cache.db") as rows:
        rows.execute("UPDATE Cache SET value = replace(value, '[[1,1,2]]', '[[7,1,2]]')")
    found = invoke("cache", "verify")
    assert found.exit_code == 1
    assert "2 entries are sound, 1 damaged and taken out" in found.stdout
    again = invoke("cache", "verify", "--json")
    assert again.exit_code == 0
    assert [incident["kind"] for incident in json.loads(again.stdout)["incidents"]] == ["damage"]
    assert run_json("cache", "stats")["incidents"] == {"damage": 1, "disagreement": 0}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["stats"], "no cache in 'storage/cache': run prunesearch search first"),
        (["verify"], "no cache in 'storage/cache'"),
        (["export", "x.jsonl"], "no cache in 'storage/cache'"),
        (["gc", "--older-than", "1d"], "no cache in 'storage/cache'"),
        (["gc", "--older-than", "soon"], "--older-than 'soon' cannot be read: write 90d"),
        (["import", "missing.jsonl"], "cannot read 'missing.jsonl'"),
        (["path", "--cache", "mysql://h/d"], "unknown database 'mysql'"),
        (["stats", "--cache", "postgresql+psycopg://me:secret@127.0.0.1:9/d"], "does not work"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_in_one_line(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    complaint: str,
) -> None:
    line = refused(capsys, monkeypatch, "cache", *words)
    assert complaint in line
    assert "secret" not in line
    assert list(here.iterdir()) == [], "nothing was made"


def test_the_doctor_examines_a_healthy_machine(here: Path, tiny_folder: Path, prose: Path) -> None:
    run_json("search", tiny_folder, "--calibration", prose, *SEARCH)
    with sqlite3.connect("storage/study.db") as rows:  # as after a kill
        rows.execute("UPDATE trials SET state = 'RUNNING' WHERE number = 7")
    with sqlite3.connect("storage/cache/leases.db") as rows:
        rows.execute("INSERT INTO prunesearch_leases VALUES (?, ?, 1, 0)", ("0" * 64, "1" * 32))
    checks = {check["name"]: check for check in run_json("doctor")["checks"]}
    assert {
        "Python",
        "libraries",
        "SQLite",
        "cache",
        "free space",
        "cache file",
        "leases",
        "studies",
    } <= set(checks)
    assert {"torch threads", "GPU", "unfinished trials"} <= set(checks)
    assert "schema 2, journal delete" in checks["cache file"]["found"]
    assert checks["leases"]["found"] == "0 alive, 1 run out"
    assert "gc" in checks["leases"]["remedy"]
    assert "prunesearch study resume" in checks["unfinished trials"]["remedy"]
    assert "--storage" not in checks["unfinished trials"]["remedy"]
    # The command also works where the database is another than the default.
    elsewhere = f"sqlite:///{here}/storage/study.db"
    named = run_json("doctor", "--storage", elsewhere)["checks"]
    [found] = [check for check in named if check["name"] == "unfinished trials"]
    assert f"--storage {elsewhere}" in found["remedy"]
    assert not any(check["status"] == "broken" for check in checks.values())
    assert run_json("cache", "gc", "--older-than", "365d")["leases"] == 1


def test_the_doctor_names_what_is_broken(here: Path) -> None:
    (here / "storage" / "cache").mkdir(parents=True)
    (here / "storage" / "cache").chmod(0o777)
    found = invoke("doctor")
    assert found.exit_code == 1
    assert "broken cache" in " ".join(found.stdout.split())
    assert "chown it to yourself and chmod 700" in found.stdout
    assert "free" not in found.stderr


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://me:s3cret@127.0.0.1:1/t", "postgresql+asyncpg://me:s3cret@h/t"]
)
def test_the_doctor_goes_on_where_the_database_does_not_answer(
    here: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("PRUNESEARCH_STORAGE", url)
    found = invoke("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(found.stdout)["checks"]}
    assert found.exit_code == 1
    assert checks["studies"]["status"] == "broken"
    assert checks["studies"]["remedy"]
    assert "torch threads" in checks, "what comes after it"
    assert "s3cret" not in found.output


def test_the_cache_commands_start_without_torch_or_optuna(here: Path) -> None:
    with EvaluationCache("storage/cache"):
        pass
    script = (
        "import sys\nfrom prunesearch.cli import cli\n"
        "try: cli(['cache', 'stats'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'optuna', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_complete_study_is_reported_though_another_process_writes_it(
    here: Path,
    tiny_folder: Path,
    prose: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    search = ["search", tiny_folder, "--calibration", prose, *SEARCH]
    found = run_json(*search)
    with sqlite3.connect(
        "storage/study.db"
    ) as rows:  # as the other process is about to evaluate it
        rows.execute("UPDATE trials SET state = 'RUNNING' WHERE number = 7")
    storage = persistence.open_storage("sqlite:///storage/study.db", create=False)
    with persistence.sole_writer(storage, found["study"]):
        again = run_json(*search, "--trials", 7)
        assert (again["value"], again["computed"], again["adopted"]) == (found["value"], 0, 0)
        (listed,) = run_json("study", "list")
        assert (listed["running"], listed["writer"]["pid"]) == (1, os.getpid())
        assert (
            "1 running, by a search that is under way"
            in run("study", "show", found["study"]).stdout
        )
        monkeypatch.setattr(
            "prunesearch.pipeline.session.load_for", lambda *_: pytest.fail("a model was loaded")
        )
        assert f"(pid {os.getpid()} on " in refused(capsys, monkeypatch, *search)
    assert run_json("study", "list")[0]["writer"] is None
    assert "1 left by a search that was stopped" in run("study", "show", found["study"]).stdout


def test_a_model_that_no_study_names_is_called_by_its_name(
    here: Path, tiny_folder: Path, prose: Path
) -> None:
    run_json("evaluate", tiny_folder, "--calibration", prose, "--tokens", 64, "--window", 32)
    (group,) = run_json("cache", "stats")["groups"]
    assert group["model"] == tiny_folder.name
    (name,) = (here / "storage" / "cache" / maintenance.NAMES).iterdir()
    assert name.name == group["fingerprint"]
    name.write_text("a\x1b[31mb")
    assert run_json("cache", "stats")["groups"][0]["model"] == group["fingerprint"][:12]
    assert run_json("cache", "verify")["backends"][0]["file"] == []


def test_studies_of_others_do_not_disturb(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with EvaluationCache("storage/cache") as cache:
        cache.put(evaluation_key("f" * 64, "blocks/6:1", {"kind": "calibration"}), [[1, 1, 2]])
    storage = persistence.open_storage("sqlite:///storage/study.db", create=True)
    odd: list[object] = [
        "sourdough",
        {"a": 1},
        [1],
        None,
        3,
        json.dumps({"model content": ["x"]}),
        "[" * 5000,
    ]
    for number, value in enumerate(odd):
        study = optuna.create_study(storage=storage, study_name=f"theirs{number}")
        study.set_user_attr("recipe", value)
        study.set_user_attr("identity", value)
        trial = study.ask()
        trial.set_user_attr("cache", value)
        trial.set_user_attr("saved_seconds", value)
    found = run_json("cache", "stats")
    assert found["entries"] == 1
    assert [study["hits"] for study in found["studies"]] == [0], (
        "the one whose attributes look like ours"
    )
    checks = {check["name"]: check for check in run_json("doctor")["checks"]}
    assert checks["studies"]["status"] == "fine"
    assert run_json("study", "list") == []


def test_a_span_that_is_longer_than_all_time_removes_nothing(here: Path) -> None:
    with EvaluationCache("storage/cache") as cache:
        cache.put(evaluation_key("f" * 64, "blocks/6:1", {"kind": "calibration"}), [[1, 1, 2]])
    for span in ("999999999d", "9" * 15 + "w"):
        found = run_json("cache", "gc", "--older-than", span)
        assert (found["entries"], found["before"]) == (0, "1970-01-01 00:00:00 UTC")
    Path("storage/cache/alarms.jsonl").write_text(
        '{"kind":"damage","key":"k","detail":"","at":1e300}\n'
    )
    assert run_json("cache", "verify")["incidents"][0]["at"] == "1e+300"
