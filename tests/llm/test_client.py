"""The chat client against a scripted endpoint on loopback."""

import json
import logging
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from prunesearch.errors import InputError
from prunesearch.llm import waits
from prunesearch.llm.chat import ChatRequest, LanguageModelError
from prunesearch.llm.client import ChatClient
from prunesearch.llm.endpoint import Endpoint, check_endpoint_url
from prunesearch.llm.limited_body import FailureLimiter
from prunesearch.llm.waits import pause_seconds
from tests.support.chat_endpoint import Body, Scripted, chat_endpoint

REQUEST = ChatRequest("m", "s", "u", 0.7, 5, 64, {"type": "object"})
KEY = "sk-secret-0123456789"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PRUNESEARCH_LLM_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that are asked for, instead of waiting."""
    found: list[float] = []
    monkeypatch.setattr("prunesearch.llm.client.wait", found.append)
    return found


def client(url: str, timeout: float = 5.0, retries: int = 2) -> ChatClient:
    return ChatClient(Endpoint.of(url, "m"), timeout, retries)


def test_a_reply_has_its_text_and_its_tokens() -> None:
    with chat_endpoint(lambda number, body: Scripted(text="hello")) as endpoint:
        reply = client(endpoint.url).complete(REQUEST)
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("hello", 100, 20)
    assert reply.complete
    sent = endpoint.requests[0]
    assert (sent["model"], sent["temperature"], sent["seed"], sent["max_tokens"]) == (
        "m",
        0.7,
        5,
        64,
    )
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]


def test_a_reply_that_was_cut_off_says_so() -> None:
    with chat_endpoint(lambda number, body: Scripted(text="[1", finish="length")) as endpoint:
        assert not client(endpoint.url).complete(REQUEST).complete


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failures_that_may_pass_are_tried_again(status: int, pauses: list[float]) -> None:
    def script(number: int, body: Body) -> Scripted:
        if number == 0:
            return Scripted(status, "busy", {"Retry-After": "7"})
        return Scripted(text="ok")

    with chat_endpoint(script) as endpoint:
        assert client(endpoint.url).complete(REQUEST).text == "ok"
    assert pauses == [7.0]


def test_without_retry_after_the_pause_doubles(pauses: list[float]) -> None:
    with (
        chat_endpoint(lambda number, body: Scripted(500, "broken")) as endpoint,
        pytest.raises(LanguageModelError, match=r"failed 3 times: status 500: .*broken"),
    ):
        client(endpoint.url).complete(REQUEST)
    assert pauses == [0.5, 1.0]
    assert len(endpoint.requests) == 3


def test_an_endpoint_that_asks_for_a_long_pause_is_not_waited_for(pauses: list[float]) -> None:
    slow = Scripted(429, "later", {"Retry-After": "3600"})
    with (
        chat_endpoint(lambda number, body: slow) as endpoint,
        pytest.raises(LanguageModelError, match="failed 1 time: status 429"),
    ):
        client(endpoint.url).complete(REQUEST)
    assert pauses == []


@pytest.mark.parametrize(
    "answer",
    [
        Scripted(seconds=0.6),
        Scripted(text="x" * 4000, cut=True),
        Scripted(body=b"<html>no json</html>"),
        Scripted(body=b"[" * 100_000),
        Scripted(body=b'{"choices": []}'),
        Scripted(body=b'{"choices": [{"message": {"content": null}}]}'),
        Scripted(body=b'{"choices": [7]}'),
    ],
    ids=["slow", "cut", "html", "deep", "empty", "null", "odd"],
)
def test_answers_that_are_no_replies_fail_in_one_line(
    answer: Scripted, pauses: list[float]
) -> None:
    with (
        chat_endpoint(lambda number, body: answer) as endpoint,
        pytest.raises(LanguageModelError) as caught,
    ):
        client(endpoint.url, timeout=0.3, retries=1).complete(REQUEST)
    assert "\n" not in str(caught.value)
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize("status", [400, 422])
def test_structure_is_given_up_step_by_step_and_remembered(status: int) -> None:
    def script(number: int, body: Body) -> Scripted:
        if "response_format" in body:
            return Scripted(status, "no response_format")
        return Scripted(text="plain")

    with chat_endpoint(script) as endpoint:
        asked = client(endpoint.url)
        assert asked.complete(REQUEST).text == "plain"
        assert asked.complete(REQUEST).text == "plain"
    kinds = [body.get("response_format", {}).get("type") for body in endpoint.requests]
    assert kinds == ["json_schema", "json_object", None, None]


def test_a_request_that_is_refused_for_another_reason_keeps_the_structure() -> None:
    with chat_endpoint(lambda number, body: Scripted(400, "too long")) as endpoint:
        asked = client(endpoint.url)
        with pytest.raises(LanguageModelError, match="too long") as caught:
            asked.complete(REQUEST)
    assert caught.value.final
    assert asked.structure == "json_schema"


def test_a_parameter_that_the_endpoint_does_not_know_is_replaced() -> None:
    def script(number: int, body: Body) -> Scripted:
        for name in ("max_tokens", "temperature", "seed"):
            if name in body:
                error = {"error": {"message": f"unsupported {name}", "param": name}}
                return Scripted(400, body=json.dumps(error).encode())
        return Scripted(text="ok")

    with chat_endpoint(script) as endpoint:
        assert client(endpoint.url).complete(REQUEST).text == "ok"
    assert endpoint.requests[-1]["max_completion_tokens"] == 64
    assert "response_format" in endpoint.requests[-1]


def test_a_wrong_key_is_final_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PRUNESEARCH_LLM_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with (
        chat_endpoint(lambda number, body: Scripted(401, f"bad key {KEY}")) as endpoint,
        pytest.raises(LanguageModelError, match=r"\(401\).*bad key \*\*\*") as caught,
    ):
        client(endpoint.url).complete(REQUEST)
    assert caught.value.final
    assert endpoint.keys == [f"Bearer {KEY}"]
    assert KEY not in str(caught.value) + caplog.text + repr(Endpoint.of(endpoint.url, "m"))


@pytest.mark.parametrize("status", [302, 401, 500])
def test_the_body_of_a_failure_is_not_read_to_its_end(status: int) -> None:
    body = bytes(2**26)
    with chat_endpoint(lambda number, asked: Scripted(status=status, body=body)) as endpoint:
        asking = client(endpoint.url, retries=0)
        tracemalloc.start()
        try:
            with pytest.raises(LanguageModelError, match=f"{status}"):
                asking.complete(REQUEST)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert most < 2**25


def test_the_body_of_a_failure_that_comes_slowly_is_cut_off() -> None:
    read = []

    class Drops(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            for number in range(1000):
                read.append(number)
                yield b"a"

    response = httpx2.Response(500, stream=Drops())
    FailureLimiter(seconds=0.0)(response)
    assert response.read() == b"a"
    assert read == [0]


def test_a_reply_that_repeats_the_key_is_recorded_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PRUNESEARCH_LLM_KEY", KEY)
    with chat_endpoint(lambda number, body: Scripted(text=f"[1] {KEY}")) as endpoint:
        assert client(endpoint.url).complete(REQUEST).text == "[1] ***"


def test_redirections_are_not_followed() -> None:
    away = Scripted(307, "", {"Location": "http://127.0.0.1:1/v1/chat/completions"})
    with (
        chat_endpoint(lambda number, body: away) as endpoint,
        pytest.raises(LanguageModelError, match="307"),
    ):
        client(endpoint.url).complete(REQUEST)


def test_the_usual_key_is_not_sent_unencrypted_to_another_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert Endpoint.of("http://example.org/v1", "m").key is None
    assert Endpoint.of("https://example.org/v1", "m").key == KEY
    assert Endpoint.of("http://127.0.0.1:9/v1", "m").key == KEY
    monkeypatch.setenv("PRUNESEARCH_LLM_KEY", KEY + "2")
    assert Endpoint.of("http://example.org/v1", "m").key == KEY + "2"


@pytest.mark.parametrize(
    "url",
    [
        "api.openai.com/v1",
        "ftp://host/v1",
        f"https://user:{KEY}@host/v1",
        f"https://{KEY}@host/v1",
        f"https://host/v1?api_key={KEY}",
        "http://host:port/v1",
        "http://[::1/v1",
    ],
)
def test_urls_that_are_refused_are_shown_without_secrets(url: str) -> None:
    with pytest.raises(InputError, match="llm_url") as caught:
        check_endpoint_url(url)
    assert KEY not in str(caught.value)


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunesearch.llm.client.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "prunesearch\[llm\]"'):
        client("http://127.0.0.1:1/v1")


def test_nothing_but_the_client_imports_openai() -> None:
    folder = Path(sys.modules["prunesearch.llm.client"].__file__ or "").parent
    for file in folder.glob("*.py"):
        assert "\nimport openai" not in file.read_text(), file.name


@pytest.mark.parametrize(
    ("headers", "attempt", "expected"),
    [
        ({"retry-after": "1.5"}, 3, 1.5),
        ({"retry-after": "-3"}, 0, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0, 0.0),
        ({"retry-after": "soon"}, 1, 1.0),
        ({}, 20, 60.0),
    ],
)
def test_pauses(headers: dict[str, str], attempt: int, expected: float) -> None:
    assert pause_seconds(headers, attempt) == expected


def test_a_wait_takes_its_time() -> None:
    begun = time.monotonic()
    waits.wait(0.01)
    assert time.monotonic() - begun >= 0.01
