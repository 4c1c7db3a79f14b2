"""Searches that a language model guides, from the command line, with an endpoint on loopback."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunesearch.llm.chat import LanguageModelError
from tests.support.chat_endpoint import Body, Scripted, chat_endpoint
from tests.support.cli import FAST, refused, run, run_json

KEY = "sk-not-to-be-seen-0123456789"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRUNESEARCH_LLM_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)


def candidates(number: int, body: Body) -> Scripted:
    """Random candidates in the form of the schema that the request has."""
    rng = random.Random(body["seed"])
    schema = body["response_format"]["json_schema"]["schema"]
    lists = schema["properties"]["candidates"]["items"]["properties"]
    found = []
    for _ in range(4):
        candidate: dict[str, Any] = {"parents": []}
        for name in set(lists) - {"parents"}:
            largest = lists[name]["items"]["maximum"]
            length = lists[name]["maxItems"]
            candidate[name] = [rng.randint(0, largest) for _ in range(length)]
            if name == "removed":
                candidate[name] = rng.sample(range(largest + 1), length)
        found.append(candidate)
    return Scripted(text=json.dumps({"candidates": found}))


def words(model: Path, url: str, *others: object) -> list[object]:
    return ["search", model, "--sampler", "llm", "--llm-url", url, "--llm-model", "scripted",
            *FAST, *others]  # fmt: skip


def test_a_search_is_guided_recorded_and_reported(make_model: Callable[..., Path]) -> None:
    model = make_model(num_hidden_layers=8)
    with chat_endpoint(candidates) as endpoint:
        options = ("--drop", 3, "--trials", 12, "--llm-price", "1000/2000")
        report = run_json(*words(model, endpoint.url, *options))
        asked = len(endpoint.requests)
        # It is resumed with other limits, which are not part of it.
        run(*words(model, endpoint.url, "--drop", 3, "--trials", 16, "--llm-calls", 0))
        assert len(endpoint.requests) == asked
    assert set(endpoint.keys) == {f"Bearer {KEY}"}
    assert "harm(influence)" in endpoint.requests[0]["messages"][1]["content"]
    found = report["sources"]
    assert found["first"] == 2
    assert found["model"] + found["repaired"] + found["fallback"] == 10
    assert found["model"] > 0
    assert found["replies"]["calls"] == asked
    assert found["replies"]["cost"] == pytest.approx(asked * (100 * 1000 + 20 * 2000) / 1e6)
    shown = run("study", "show", report["study"]).output
    assert f"language model: {asked} replies" in shown
    assert re.search(r"candidates: 2 first candidates \(\d+%\), \d+ from the model", shown)
    details = run_json("study", "show", report["study"])
    assert details["sources"]["trials"] == 16
    assert details["sources"]["fallback"] >= 4
    assert KEY not in shown + json.dumps([report, details])
    for file in Path().rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file


def test_widths_are_guided_too(make_model: Callable[..., Path]) -> None:
    model = make_model(num_hidden_layers=6, intermediate_size=64)
    with chat_endpoint(candidates) as endpoint:
        space = ("--space", "widths", "--target", "10%", "--align", 8, "--trials", 16)
        report = run_json(*words(model, endpoint.url, *space, "--llm-max-repair", 2))
    found = report["sources"]
    assert found["repaired"] > 0
    assert found["trials"] == 16
    text = endpoint.requests[0]["messages"][1]["content"]
    assert "influence outliers mlp attention" in text


def test_an_endpoint_that_fails_does_not_stop_the_search(
    make_model: Callable[..., Path],
) -> None:
    model = make_model(num_hidden_layers=8)
    with chat_endpoint(lambda number, body: Scripted(401, f"wrong key {KEY}")) as endpoint:
        options = ("--drop", 3, "--trials", 8)
        done = run(*words(model, endpoint.url, *options, "--json"))
        assert done.exit_code == 0
        assert done.stderr.count("an evolutionary operator proposes instead") == 1
        assert KEY not in done.output + done.stderr
        assert json.loads(done.stdout)["sources"]["fallback"] == 6
        # A required model stops it, and what is finished is kept.
        with pytest.raises(LanguageModelError, match=r"refuses the request \(401\): ") as stopped:
            run(*words(model, endpoint.url, *options, "--llm-required", "--seed", 1))
        assert KEY not in str(stopped.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "--sampler llm asks a language model: give --llm-url and --llm-model"),
        (["--llm-url", "http://127.0.0.1:1/v1"], "name its model with --llm-model"),
        (["--llm-model", "absent.gguf"], "--llm-model absent.gguf does not exist"),
        (
            ["--llm-url", f"https://me:{KEY}@host/v1", "--llm-model", "m"],
            "put the key into the environment variable PRUNESEARCH_LLM_KEY",
        ),
        (["--llm-model", "m", "--llm-cost", "3"], "--llm-cost needs the price of the tokens"),
        (["--llm-model", "m", "--llm-price", "cheap"], "--llm-price 'cheap' cannot be read"),
        (["--llm-model", "m", "--llm-temperature", "9"], "temperature = 9.0: it must be at most 2"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(
    make_model: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    expected: str,
) -> None:
    model = make_model(num_hidden_layers=8)
    line = refused(
        capsys, monkeypatch, "search", model, "--drop", 3, "--sampler", "llm", *FAST, *options
    )
    assert expected in line
    assert KEY not in line
