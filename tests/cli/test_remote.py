"""The commands that talk to a server, as a user runs them."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunesearch.cli import main as program
from prunesearch.service import client as client_module
from prunesearch.service import following
from tests.support.cli import refused, run, run_json
from tests.support.job_server import (
    FILES,
    JOB_ID,
    TOKEN,
    Answer,
    Asked,
    JobServer,
    job_document,
    job_server,
    offer,
    sse,
)

JOB = f"GET /v1/jobs/{JOB_ID}"
RECIPE = "model: tiny\nsearch: {drop: 2, sampler: woa}\nrun: {trials: 8}\n"


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch, here: Path) -> Iterator[JobServer]:
    monkeypatch.setattr(client_module, "_WAITS", (0.0, 0.0))
    monkeypatch.setattr(following, "_FIRST_WAIT", 0.0)
    monkeypatch.setenv("PRUNESEARCH_TOKEN", TOKEN)
    Path("recipe.yaml").write_text(RECIPE)
    with job_server() as running:
        monkeypatch.setenv("PRUNESEARCH_SERVER", running.url)
        yield running


def ending(state: str, **changes: object) -> list[Answer]:
    """The events of a job that ends in a state."""
    return [
        Answer.of_events(sse(1, "state", state="running"), sse(2, "message", text="hello")),
        Answer.of_events(sse(3, "state", state=state, **changes)),
    ]


def test_a_recipe_file_is_submitted(double: JobServer) -> None:
    double.on("POST /v1/jobs", Answer.of_json(job_document("queued"), 201))
    shown = run("submit", "recipe.yaml").stdout
    assert f"{JOB_ID} is queued" in shown
    assert f"prunesearch watch {JOB_ID}" in shown
    (asked,) = double.asked
    body = json.loads(asked.body)
    assert (body["command"], body["trials"], "study" in body) == ("run", 8, False)
    assert body["recipe"]["model"]["path"] == "tiny"
    assert body["recipe"]["search"]["sampler"] == "woa"
    assert len(asked.headers["Idempotency-Key"]) == 32
    assert asked.headers["Authorization"] == f"Bearer {TOKEN}"


def test_the_options_of_search_are_submitted(double: JobServer) -> None:
    double.on("POST /v1/jobs", Answer.of_json(job_document("queued"), 201))
    words = "tiny --drop 2 --tokens 256 --seed 3 --command search --study mine"
    found = run_json("submit", *words.split(), "--idempotency-key", "k1")
    assert found["id"] == JOB_ID
    body = json.loads(double.asked[0].body)
    assert (body["command"], body["study"]) == ("search", "mine")
    assert body["recipe"]["data"]["tokens"] == 256
    assert body["recipe"]["search"]["seed"] == 3
    assert double.asked[0].headers["Idempotency-Key"] == "k1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit"], "give a RECIPE.yaml, or MODEL and --drop"),
        (["submit", "tiny"], "give a RECIPE.yaml, or MODEL and --drop"),
        (["submit", "recipe.yaml", "--drop", "3"], "--drop goes without RECIPE"),
        (["submit", "nothing.yaml"], "cannot read recipe"),
        (["submit", "tiny", "--drop", "2,3"], "submit each by itself"),
        (["submit", "tiny", "--drop", "2", "--sampler", "psso"], "did you mean 'pso'"),
        (["watch", "../etc"], "is not a job"),
        (["jobs", "--server", "somewhere"], "give the URL of a server"),
        (["jobs", "--server", "http://example.org"], "--insecure-http"),
        (["jobs", "--token-file", "recipe.yaml"], "chmod 600"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_sent(
    double: JobServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
) -> None:
    assert said in refused(capsys, monkeypatch, *words)
    assert not double.asked


def test_a_refused_recipe_names_its_flags_and_escapes_the_servers_text(
    double: JobServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = {"detail": "model '\x1b[2Jx' is not there: `drop` 99 is too many", "errors": []}
    double.on("POST /v1/jobs", Answer.of_json(problem, 422))
    line = refused(capsys, monkeypatch, "submit", "recipe.yaml")
    assert "--drop 99 is too many" in line
    assert "\x1b" not in line


def test_a_lost_reply_says_how_to_submit_without_a_second_job(
    double: JobServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    double.on("POST /v1/jobs", Answer(cut=True))
    status, _, err = ended(capsys, monkeypatch, "submit", "recipe.yaml")
    key = double.asked[0].headers["Idempotency-Key"]
    assert status == 1
    assert f"--idempotency-key {key}" in err
    assert TOKEN not in err


def ended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[int, str, str]:
    """Run as the installed command does; return exit status, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["prunesearch", *words])
    status = 0
    try:
        program.main()
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    shown = capsys.readouterr()
    return status, shown.out, shown.err


@pytest.mark.parametrize(("state", "expected"), [("finished", 0), ("failed", 1), ("cancelled", 3)])
def test_watch_ends_with_the_outcome_of_the_job(
    double: JobServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    expected: int,
) -> None:
    double.on(f"{JOB}/events", *ending(state))
    double.on(JOB, Answer.of_json(job_document()), Answer.of_json(job_document()))
    double.on(JOB, Answer.of_json(job_document(state, exported=True, error=None)))
    double.on(f"{JOB}/result", Answer.of_json({"best": 0.5}))
    status, out, err = ended(capsys, monkeypatch, "watch", JOB_ID, "--json")
    assert status == expected
    document = json.loads(out)
    assert (document["state"], document["result"]) == (state, {"best": 0.5})
    assert "hello" in err


def test_watch_shows_how_good_the_best_candidate_is(
    double: JobServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    double.on(f"{JOB}/events", *ending("finished"))
    double.on(JOB, Answer.of_json(job_document("finished")))
    dense = {"metrics": {"kl": 0.0, "perplexity": 10.0}, "cost": {"params": 200}}
    best = {"metrics": {"kl": 0.5, "\x1b[2J": 1.0, "perplexity": 15.0}, "cost": {"params": 150}}
    result = {"dense": dense, "best": best}
    double.on(f"{JOB}/result", Answer.of_json(result))
    _, out, _ = ended(capsys, monkeypatch, "watch", JOB_ID)
    assert re.search(r"perplexity +10\.0000 +15\.0000 +1\.500", out)
    assert re.search(r"parameters +200 +150 +0\.750", out)
    assert "\x1b[2J" not in out


def test_submit_can_watch(
    double: JobServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    double.on("POST /v1/jobs", Answer.of_json(job_document("queued"), 201))
    double.on(f"{JOB}/events", *ending("failed", error="the model is damaged"))
    double.on(JOB, Answer.of_json(job_document("failed", error="the model is damaged")))
    status, out, err = ended(capsys, monkeypatch, "submit", "recipe.yaml", "--watch")
    assert status == 1
    assert f"submitted {JOB_ID}" in err
    assert "the model is damaged" in out


def test_ctrl_c_leaves_the_job_running_and_says_so(
    double: JobServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    double.on(JOB, Answer.of_json(job_document()))

    def interrupt(client: object, job_id: str, **settings: object) -> Iterator[object]:
        raise KeyboardInterrupt

    monkeypatch.setattr("prunesearch.service.watching.follow", interrupt)
    status, _, err = ended(capsys, monkeypatch, "watch", JOB_ID, "--server", double.url)
    assert status == 130
    assert "the job was left as it is" in err
    assert f"prunesearch watch {JOB_ID} --server {double.url}" in err


@pytest.mark.parametrize("verb", ["pause", "resume", "stop", "cancel"])
def test_a_verb_changes_a_job(double: JobServer, verb: str) -> None:
    state = {"pause": "paused", "cancel": "cancelled"}.get(verb, "running")
    double.on(f"POST /v1/jobs/{JOB_ID}/{verb}", Answer.of_json(job_document(state)))
    line = f"{JOB_ID} is {state}"
    if verb == "stop":
        line = f"the search of {JOB_ID} ends"
    assert run(verb, JOB_ID).stdout.startswith(line)
    assert run_json(verb, JOB_ID)["state"] == state


def test_jobs_are_listed_and_shown(double: JobServer) -> None:
    bad = job_document(submitted_by="\x1b[31meve", study="a\nb")
    double.on("GET /v1/jobs", Answer.of_json({"jobs": [bad], "next": None}))
    double.on(JOB, Answer.of_json(job_document()))
    shown = run("jobs", "--state", "running").stdout
    assert JOB_ID in shown
    assert "3/8 trials" in shown
    assert "\x1b" not in shown
    assert len(shown.strip().splitlines()) == 5
    assert run_json("jobs")["jobs"][0]["id"] == JOB_ID
    assert "searching 3/8 trials" in run("jobs", JOB_ID).stdout
    assert run_json("jobs", JOB_ID)["trials"] == 8
    # In a job that does not run, no stage and no step does.
    double.on(JOB, Answer.of_json(job_document("paused")))
    lines = [line.split() for line in run("jobs", JOB_ID).stdout.splitlines()]
    assert ["search", "paused", "-"] in lines
    assert not any("searching" in line for line in lines)
    double.on("GET /v1/jobs", Answer.of_json({"jobs": [], "next": None}))
    assert "prunesearch submit" in run("jobs").stdout


def test_an_export_is_fetched(double: JobServer) -> None:
    offer(double, FILES)
    shown = run("fetch", JOB_ID, "--out", "pruned").stdout
    assert "4 files" in shown
    assert "prunesearch verify pruned" in shown
    assert Path("pruned/config.json").read_bytes() == FILES["config.json"]
    assert run_json("fetch", JOB_ID, "--out", "again")["bytes"] == sum(map(len, FILES.values()))


def test_a_run_section_of_another_machine_is_mentioned(double: JobServer) -> None:
    Path("recipe.yaml").write_text(RECIPE.replace("trials: 8", "trials: 8, device: cuda:7"))
    double.on("POST /v1/jobs", Answer.of_json(job_document("queued"), 201))
    assert "the server decides about device" in run("submit", "recipe.yaml").stderr
    assert asked_for(double.asked[-1]).keys() == {"recipe", "command", "trials"}


def test_the_share_that_confirms_is_submitted(double: JobServer) -> None:
    double.on("POST /v1/jobs", Answer.of_json(job_document("queued"), 201))
    Path("recipe.yaml").write_text(RECIPE.replace("trials: 8", "trials: 8, confirm: 0.3"))
    assert run("submit", "recipe.yaml").stderr == ""
    assert asked_for(double.asked[-1])["confirm"] == 0.3
    run("submit", "tiny", "--drop", "2", "--confirm", "0")
    assert asked_for(double.asked[-1])["confirm"] == 0


def asked_for(asked: Asked) -> dict[str, object]:
    found: dict[str, object] = json.loads(asked.body)
    return found
