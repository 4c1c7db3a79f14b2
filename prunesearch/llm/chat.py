"""What is sent to a language model, and what it replies."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Protocol, Self

from prunesearch.errors import RunError
from prunesearch.runtime.json_values import (
    Json,
    JsonObject,
    as_bool,
    as_float,
    as_int,
    as_object,
    as_text,
)

MOST_CHARACTERS = 65_536
"""Characters of a reply that are kept. A reply with the numbers of 32 candidates is shorter."""


class LanguageModelError(RunError):
    """A language model that does not answer, or that must not be asked again.

    Attributes:
        final: True if the same request would fail again: a wrong key, or a budget that is spent.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


@dataclass(frozen=True)
class ChatRequest:
    """A request to a language model. It names no endpoint, so that a reply can be found again.

    Attributes:
        model: name of the model. For a local file it is the digest of its content.
        system: text of the system message.
        user: text of the user's message.
        temperature: temperature of the sampling.
        seed: seed of the sampling. Some endpoints ignore it.
        max_tokens: most tokens of the reply.
        schema: JSON schema of the reply; empty for a reply in plain text.
        attempt: number of the request among those with the same content, counted from 0.
    """

    model: str
    system: str
    user: str
    temperature: float
    seed: int
    max_tokens: int
    schema: Mapping[str, Json] = field(default_factory=dict)
    attempt: int = 0

    @property
    def messages(self) -> list[JsonObject]:
        """Messages as the protocol has them."""
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": self.user},
        ]

    def fields(self) -> JsonObject:
        """Return all that identifies the request, as JSON values."""
        return {
            "attempt": self.attempt,
            "max_tokens": self.max_tokens,
            "messages": self.messages,
            "schema": self.schema,
            "seed": self.seed,
            "temperature": round(self.temperature, 4),
        }


@dataclass(frozen=True)
class ChatReply:
    """Reply of a language model.

    Attributes:
        text: the reply, of at most `MOST_CHARACTERS` characters.
        prompt_tokens, completion_tokens: tokens that were read, and that were written.
        cached_tokens: tokens of the prompt that the endpoint had in its own cache.
        seconds: wall time.
        complete: False if the reply was cut off.
    """

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    complete: bool = True

    def as_json(self) -> JsonObject:
        """Return the reply as JSON values, as it is recorded."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Json) -> Self:
        """Read a recorded reply.

        Raises:
            ValueError: the value is not a reply.
        """
        stored = as_object(value, "a recorded reply")
        return cls(
            text=as_text(stored.get("text"), "text"),
            prompt_tokens=as_int(stored.get("prompt_tokens"), "prompt_tokens"),
            completion_tokens=as_int(stored.get("completion_tokens"), "completion_tokens"),
            cached_tokens=as_int(stored.get("cached_tokens"), "cached_tokens"),
            seconds=as_float(stored.get("seconds"), "seconds"),
            complete=as_bool(stored.get("complete"), "complete"),
        )


class Chat(Protocol):
    """A language model that can be asked."""

    @property
    def model(self) -> str:
        """Name of the model, as `ChatRequest` has it."""
        ...

    def complete(self, request: ChatRequest) -> ChatReply:
        """Return the model's reply.

        Raises:
            LanguageModelError: the model does not answer.
        """
        ...

    def close(self) -> None:
        """Release what the model holds."""
        ...
