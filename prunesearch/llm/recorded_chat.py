"""Replies that are recorded before they are used.

A reply is kept in the evaluation cache under a key of its request. So a search that is resumed or
repeated, also by a colleague, gets the same reply and pays nothing twice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from prunesearch.cache.keys import Key, chat_key
from prunesearch.llm.chat import Chat, ChatReply, ChatRequest, LanguageModelError
from prunesearch.llm.client import interruptibly
from prunesearch.llm.limits import CircuitBreaker, Limits, Price, Spent
from prunesearch.runtime.closing import Closing
from prunesearch.runtime.json_values import JsonObject


class Records(Protocol):
    """Where replies are kept. `EvaluationCache` is one."""

    def once(self, key: Key, compute: Callable[[], Any]) -> Any:  # noqa: ANN401 (any JSON value)
        """Return the value of a key, and compute it if it is neither stored nor being computed."""
        ...


@dataclass(frozen=True)
class Answer:
    """A reply, and whether it was paid.

    Attributes:
        reply: the reply.
        replayed: True if the reply was recorded before.
    """

    reply: ChatReply
    replayed: bool


class RecordedChat(Closing):
    """Asks a language model, and each request only once.

    Args:
        chat: the language model.
        records: evaluation cache, which keeps the replies.
        limits: what may be spent.
        price: price of the tokens; None if it is not known.
        breaker: keeps calls from a model that fails.
    """

    def __init__(
        self,
        chat: Chat,
        records: Records,
        limits: Limits | None = None,
        price: Price | None = None,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self.price = price
        self._chat, self._records = chat, records
        self._limits = limits or Limits()
        self._breaker = breaker or CircuitBreaker()

    @property
    def model(self) -> str:
        """Name of the model, as `ChatRequest` has it."""
        return self._chat.model

    def ask(self, request: ChatRequest, spent: Spent) -> Answer:
        """Return the reply to a request. If it is not recorded, the model is asked.

        Args:
            request: the request.
            spent: what the study has spent so far. A recorded reply costs nothing.

        Raises:
            LanguageModelError: the model does not answer, the budget is spent, or the model has
                failed too often just now.
        """
        paid = False

        def call() -> JsonObject:
            nonlocal paid
            reply = self._call(request, spent)
            paid = True
            return reply.as_json()

        value = self._records.once(chat_key(request.model, request.fields()), call)
        try:
            return Answer(ChatReply.from_json(value), not paid)
        except ValueError as error:
            raise LanguageModelError(f"a recorded reply cannot be used: {error}") from None

    def _call(self, request: ChatRequest, spent: Spent) -> ChatReply:
        """Ask the model, if the budget and the breaker allow it."""
        # A recorded reply would have been found by now, so this call is paid.
        reached = self._limits.reached(spent)
        if reached is not None:
            raise LanguageModelError(reached, final=True)
        if left := self._breaker.seconds_left():
            raise LanguageModelError(
                f"the language model {self.model} has failed several times in a row, and is not "
                f"asked for {left:.0f} s"
            )
        try:
            reply = interruptibly(lambda: self._chat.complete(request))
        except LanguageModelError as error:
            self._breaker.failed(final=error.final)
            raise
        self._breaker.succeeded()
        return reply

    def close(self) -> None:
        """Release the model."""
        self._chat.close()
