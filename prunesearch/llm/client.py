"""A client of endpoints that speak the chat protocol of OpenAI (`prunesearch[llm]`).

It asks for a reply in a JSON schema. An endpoint that refuses the schema is asked for any JSON
object, and then for plain text; so it is with parameters that an endpoint does not know.
"""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from prunesearch.errors import InputError, one_line
from prunesearch.llm.chat import MOST_CHARACTERS, ChatReply, ChatRequest, LanguageModelError
from prunesearch.llm.endpoint import Endpoint
from prunesearch.llm.waits import LONGEST_SECONDS, pause_seconds, wait
from prunesearch.runtime import stopping
from prunesearch.runtime.json_values import Json, JsonObject
from prunesearch.units import noun_for

if TYPE_CHECKING:
    import openai

Value = TypeVar("Value")
STRUCTURES = ("json_schema", "json_object", "text")
"""Ways to ask for a structured reply, the strictest first."""
_MOST_BYTES = 4 * 2**20  # of a reply with all its fields
_REFUSED = (400, 422)  # the endpoint does not take the request as it is
_FINAL = (401, 403, 404)  # the key or the model is wrong
_OPTIONAL = ("seed", "temperature")  # parameters that may be left out
_log = logging.getLogger(__name__)


class ChatClient:
    """Asks an endpoint for replies.

    Args:
        endpoint: address, model and key.
        timeout: most seconds of one attempt.
        retries: most attempts after the first one.

    Attributes:
        structure: way in which structured replies are asked for (see `STRUCTURES`). It is kept
            once the endpoint has refused a stricter one.

    Raises:
        InputError: the package openai is not installed.
    """

    def __init__(self, endpoint: Endpoint, timeout: float = 120.0, retries: int = 3) -> None:
        require_openai()
        self.endpoint = endpoint
        self.model = endpoint.model
        self.structure = STRUCTURES[0]
        self._timeout, self._retries = timeout, retries
        self._left_out: set[str] = set()
        self._client: openai.OpenAI | None = None

    def complete(self, request: ChatRequest) -> ChatReply:
        """Return the endpoint's reply. Failures that may pass are tried again.

        Raises:
            LanguageModelError: the endpoint does not answer, or refuses the request.
        """
        begun = time.perf_counter()
        attempt = 0
        while True:
            try:
                fields = self._send(request)
                reply = _reply_of(fields, time.perf_counter() - begun)
                # Replies are recorded, and colleagues may read the records.
                return replace(reply, text=self.endpoint.without_key(reply.text))
            except _PassingError as failure:
                # The endpoint may answer later: wait as long as it says.
                if attempt >= self._retries or failure.pause > LONGEST_SECONDS:
                    times = f"{attempt + 1} {noun_for(attempt + 1, 'time')}"
                    raise LanguageModelError(f"{self._name} failed {times}: {failure}") from None
                pause = failure.pause
                if math.isnan(pause):
                    pause = pause_seconds({}, attempt)
                _log.debug("%s: %s; trying again in %.1f s", self._name, failure, pause)
                wait(pause)
                attempt += 1

    @property
    def _name(self) -> str:
        """Name of the endpoint in messages."""
        return f"the language model {self.model} at {self.endpoint.masked(self.endpoint.url)}"

    def _send(self, request: ChatRequest) -> JsonObject:
        """Send a request, and ask for less structure as long as the endpoint refuses it."""
        import httpx2
        import openai

        before = self.structure
        while True:
            try:
                return self._post(request)
            except openai.APIStatusError as error:
                status = error.status_code
                # 1. Ask again for less, if the endpoint may have refused the structure.
                if status in _REFUSED and self._asks_for_less(request, error.param):
                    continue
                if status in _REFUSED:
                    self.structure = before  # the structure was not the reason
                # 2. Some failures are final.
                message = self._shown(error)
                if status in _REFUSED or status in _FINAL or 300 <= status < 400:
                    raise LanguageModelError(
                        f"{self._name} refuses the request ({status}): {message}", final=True
                    ) from None
                # 3. Others may pass. The endpoint may say when.
                headers = {name.lower(): value for name, value in error.response.headers.items()}
                pause = math.nan
                if "retry-after" in headers:
                    pause = pause_seconds(headers, 0)
                raise _PassingError(f"status {status}: {message}", pause) from None
            except openai.APITimeoutError:
                raise _PassingError(f"no answer within {self._timeout:g} s") from None
            except (openai.APIConnectionError, httpx2.HTTPError) as error:
                raise _PassingError(f"no connection: {self._shown(error)}") from None

    def _asks_for_less(self, request: ChatRequest, parameter: str | None) -> bool:
        """Drop what the endpoint may have refused. Return whether there was something to drop."""
        # The endpoint may name the parameter that it does not know.
        name = (parameter or "").partition(".")[0]
        if name in (*_OPTIONAL, "max_tokens") and name not in self._left_out:
            self._left_out.add(name)
            return True
        if request.schema and self.structure != STRUCTURES[-1]:
            self.structure = STRUCTURES[STRUCTURES.index(self.structure) + 1]
            return True
        return False

    def _post(self, request: ChatRequest) -> JsonObject:
        """Send a request once and read the reply, of limited size and within the time limit."""
        if self._client is None:
            self._client = _open(self.endpoint, self._timeout)
        until = time.monotonic() + self._timeout
        messages: Any = request.messages  # its type is one of many typed dictionaries of openai
        create = self._client.chat.completions.with_streaming_response.create
        body = bytearray()
        with create(
            model=self.model, messages=messages, extra_body=self._parameters(request)
        ) as response:
            for piece in response.iter_bytes():
                body += piece
                if len(body) > _MOST_BYTES:
                    raise _PassingError(f"the reply is larger than {_MOST_BYTES:,} bytes")
                if time.monotonic() > until:
                    raise _PassingError(f"no complete answer within {self._timeout:g} s")
        try:
            fields = json.loads(bytes(body))
        except (ValueError, RecursionError):
            raise _PassingError("the reply is not JSON") from None
        if not isinstance(fields, dict):
            raise _PassingError("the reply is not an object")
        return fields

    def _parameters(self, request: ChatRequest) -> JsonObject:
        """Return the parameters of a request, without those that the endpoint refused."""
        limit = "max_tokens"
        if limit in self._left_out:
            limit = "max_completion_tokens"
        fields: JsonObject = {limit: request.max_tokens}
        for name in _OPTIONAL:
            if name not in self._left_out:
                fields[name] = getattr(request, name)
        if request.schema and self.structure == "json_schema":
            schema: JsonObject = {"name": "candidates", "schema": request.schema, "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif request.schema and self.structure == "json_object":
            fields["response_format"] = {"type": "json_object"}
        return fields

    def _shown(self, error: Exception) -> str:
        """Return an error of the endpoint as one line, without the key."""
        return one_line(Exception(self.endpoint.masked(str(error))))

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()
            self._client = None


class _PassingError(Exception):
    """A failure that may pass.

    Attributes:
        pause: seconds after which the endpoint wants to be asked again; NaN if it does not say.
    """

    def __init__(self, message: str, pause: float = math.nan) -> None:
        super().__init__(message)
        self.pause = pause


def require_openai() -> None:
    """Refuse to go on without the package openai.

    Raises:
        InputError: it is not installed.
    """
    if find_spec("openai") is None:
        raise InputError('`llm_url` needs the package openai: pip install "prunesearch[llm]"')


def _open(endpoint: Endpoint, timeout: float) -> "openai.OpenAI":
    """Open a client of the package openai, which follows no redirection with the key."""
    import openai

    from prunesearch.llm.limited_body import FailureLimiter

    transport = openai.DefaultHttpxClient(
        follow_redirects=False,
        timeout=timeout,
        event_hooks={"response": [FailureLimiter(timeout)]},
        trust_env=not endpoint.is_local,  # a proxy does not know this machine's ports
    )
    return openai.OpenAI(
        base_url=endpoint.url,
        api_key=endpoint.key or "none",
        timeout=timeout,
        max_retries=0,
        http_client=transport,
    )


def _reply_of(fields: JsonObject, seconds: float) -> ChatReply:
    """Return the reply in an endpoint's answer. Numbers that are missing or wrong count as 0."""
    choices = fields.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(first, dict) or not isinstance(text, str):
        raise _PassingError("the reply has no text")
    # Not every endpoint counts tokens.
    usage = fields.get("usage")
    tokens = usage if isinstance(usage, dict) else {}
    details = tokens.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    whole = text[:MOST_CHARACTERS].encode(errors="replace").decode()
    return ChatReply(
        text=whole,
        prompt_tokens=_count(tokens.get("prompt_tokens")),
        completion_tokens=_count(tokens.get("completion_tokens")),
        cached_tokens=_count(cached),
        seconds=round(seconds, 3),
        complete=first.get("finish_reason") != "length" and len(text) <= MOST_CHARACTERS,
    )


def _count(value: Json) -> int:
    """Return a number of tokens; 0 if the value is not one."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31:
        return value
    return 0


def interruptibly(work: Callable[[], Value]) -> Value:
    """Run work that a signal may end at once, because nothing is half done if it does.

    Raises:
        StopRequested: a stop was requested.
    """
    with stopping.interruptible():
        return work()
