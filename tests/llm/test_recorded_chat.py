"""Replies that are recorded before they are used, and the limits of what is spent."""

from pathlib import Path

import pytest

from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.keys import chat_key
from prunesearch.llm.chat import ChatReply, ChatRequest, LanguageModelError
from prunesearch.llm.limits import CircuitBreaker, Limits, Price, Spent
from prunesearch.llm.recorded_chat import RecordedChat
from tests.support.chat_doubles import FailingChat, ListedChat

REQUEST = ChatRequest("listed", "s", "u", 0.7, 5, 64)


def test_a_request_is_asked_once(tmp_path: Path) -> None:
    chat = ListedChat(["one", "two"])
    with EvaluationCache(tmp_path) as cache, RecordedChat(chat, cache) as recorded:
        first = recorded.ask(REQUEST, Spent())
        again = recorded.ask(REQUEST, Spent())
        other = recorded.ask(ChatRequest("listed", "s", "u", 0.7, 5, 64, attempt=1), Spent())
    assert (first.reply.text, first.replayed) == ("one", False)
    assert (again.reply, again.replayed) == (first.reply, True)
    assert other.reply.text == "two"
    assert len(chat.asked) == 2


def test_another_process_finds_the_reply(tmp_path: Path) -> None:
    with EvaluationCache(tmp_path) as cache:
        RecordedChat(ListedChat(["one"]), cache).ask(REQUEST, Spent())
    chat = ListedChat([])
    with EvaluationCache(tmp_path) as cache:
        answer = RecordedChat(chat, cache, Limits(calls=0)).ask(REQUEST, Spent())
    assert (answer.reply.text, answer.replayed, chat.asked) == ("one", True, [])


def test_a_failure_is_not_recorded(tmp_path: Path) -> None:
    with EvaluationCache(tmp_path) as cache:
        failing = RecordedChat(FailingChat(), cache)
        with pytest.raises(LanguageModelError, match="no answer"):
            failing.ask(REQUEST, Spent())
        assert cache.get(chat_key(REQUEST.model, REQUEST.fields())) is None
        assert RecordedChat(ListedChat(["one"]), cache).ask(REQUEST, Spent()).reply.text == "one"


@pytest.mark.parametrize(
    ("limits", "spent", "words"),
    [
        (Limits(calls=2), Spent(calls=2), "2 of 2 calls"),
        (Limits(tokens=100), Spent(tokens=120), "120 of 100 tokens"),
        (Limits(cost=0.5), Spent(cost=0.5), "a cost of 0.5 of 0.5"),
        (Limits(seconds=9), Spent(seconds=10), "10 of 9 s"),
    ],
)
def test_a_spent_budget_ends_the_calls(
    tmp_path: Path, limits: Limits, spent: Spent, words: str
) -> None:
    chat = ListedChat(["one"])
    with EvaluationCache(tmp_path) as cache:
        recorded = RecordedChat(chat, cache, limits)
        with pytest.raises(LanguageModelError, match=words) as caught:
            recorded.ask(REQUEST, spent)
    assert caught.value.final
    assert chat.asked == []


def test_the_cost_of_an_unknown_price_is_null() -> None:
    reply = ChatReply("x", prompt_tokens=1_000_000, completion_tokens=500_000, seconds=2.0)
    assert Spent().plus(reply, None) == Spent(1, 1_500_000, None, 2.0)
    assert Spent().plus(reply, Price(2.5, 10.0)) == Spent(1, 1_500_000, 7.5, 2.0)


def test_the_breaker_opens_and_probes_again(tmp_path: Path) -> None:
    now = 100.0
    breaker = CircuitBreaker(2, 30.0, lambda: now)
    chat = FailingChat()
    with EvaluationCache(tmp_path) as cache:
        recorded = RecordedChat(chat, cache, breaker=breaker)
        for words in ("no answer", "no answer", "not asked for 30 s"):
            with pytest.raises(LanguageModelError, match=words):
                recorded.ask(REQUEST, Spent())
        assert chat.asked == 2
        # One call is tried when the time is over. It fails, so the next pause is longer.
        now += 30.0
        with pytest.raises(LanguageModelError, match="no answer"):
            recorded.ask(REQUEST, Spent())
        assert breaker.seconds_left() == 60.0
        breaker.succeeded()
        assert breaker.seconds_left() == 0.0


def test_the_breaker_opens_at_once_for_a_final_failure() -> None:
    breaker = CircuitBreaker(5, 30.0, lambda: 0.0)
    breaker.failed(final=True)
    assert breaker.seconds_left() == 30.0


def test_the_breaker_stays_open_for_a_limited_time() -> None:
    breaker = CircuitBreaker(1, 1.0, lambda: 0.0)
    for _ in range(10):
        breaker.failed()
    assert breaker.seconds_left() == CircuitBreaker.LONGEST


def test_a_record_holds_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNESEARCH_LLM_KEY", "sk-never-stored-123")
    with EvaluationCache(tmp_path) as cache:
        RecordedChat(ListedChat(["one"]), cache).ask(REQUEST, Spent())
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert b"sk-never-stored-123" not in file.read_bytes()


def test_the_key_of_a_reply_names_all_that_changes_it() -> None:
    base = {
        "model": "m",
        "system": "s",
        "user": "u",
        "temperature": 0.5,
        "seed": 1,
        "max_tokens": 9,
        "schema": {},
        "attempt": 0,
    }
    changes = {
        "model": "n",
        "system": "t",
        "user": "v",
        "temperature": 0.6,
        "seed": 2,
        "max_tokens": 8,
        "schema": {"type": "object"},
        "attempt": 1,
    }
    digests = set()
    for changed in (None, *changes):
        fields = dict(base)
        if changed is not None:
            fields[changed] = changes[changed]
        request = ChatRequest(**fields)  # type: ignore[arg-type]
        digests.add(chat_key(request.model, request.fields()).digest)
    assert len(digests) == len(changes) + 1
