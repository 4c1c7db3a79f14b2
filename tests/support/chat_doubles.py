"""Language models that reply from a list, from a function, or not at all."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from prunesearch.cache.keys import Key
from prunesearch.llm.chat import ChatReply, ChatRequest, LanguageModelError


class FunctionChat:
    """Replies with what a function of the request says."""

    model = "listed"

    def __init__(self, reply: Callable[[ChatRequest], str]) -> None:
        self.asked: list[ChatRequest] = []
        self._reply = reply

    def complete(self, request: ChatRequest) -> ChatReply:
        """Return the next text."""
        self.asked.append(request)
        return ChatReply(self._reply(request), 100, 20, 0, 0.5)

    def close(self) -> None:
        """Do nothing."""


class ListedChat(FunctionChat):
    """Replies with the texts of a list, in order."""

    def __init__(self, texts: Sequence[str]) -> None:
        left = list(texts)
        super().__init__(lambda request: left.pop(0))


class FailingChat:
    """Never answers."""

    model = "listed"

    def __init__(self) -> None:
        self.asked = 0

    def complete(self, request: ChatRequest) -> ChatReply:
        """Fail."""
        self.asked += 1
        raise LanguageModelError("no answer")

    def close(self) -> None:
        """Do nothing."""


class MemoryRecords:
    """Keeps replies in memory, as the texts that a cache would store."""

    def __init__(self) -> None:
        self.stored: dict[str, str] = {}

    def once(self, key: Key, compute: Callable[[], Any]) -> Any:  # noqa: ANN401 (any JSON value)
        """Return the value of a key, and compute it if it is not stored."""
        if key.digest not in self.stored:
            self.stored[key.digest] = json.dumps(compute())
        return json.loads(self.stored[key.digest])
