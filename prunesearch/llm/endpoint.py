"""Address of an endpoint, and the key that may be sent to it.

A key comes from the environment only. It is never part of a URL, a recipe, a record or a message.
"""

import ipaddress
import os
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from prunesearch.errors import InputError
from prunesearch.runtime.masking import MASK, masked_text, masked_url

KEY_VARIABLE = "PRUNESEARCH_LLM_KEY"
"""Environment variable with the key of an endpoint."""
USUAL_KEY_VARIABLE = "OPENAI_API_KEY"
"""Environment variable that is read if the other one is not set."""
_SHORTEST = 6  # characters of a key that are looked for in texts


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that speaks the chat protocol of OpenAI.

    Attributes:
        url: base URL, without a slash at the end, such as ``http://127.0.0.1:8080/v1``.
        model: name of the model.
        key: key of the user; None if there is none.
        is_local: True if the endpoint runs on this machine.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    is_local: bool = False

    @classmethod
    def of(cls, url: str, model: str) -> Self:
        """Return the endpoint of a URL, with the key of the environment.

        Over a connection that is not encrypted, another machine gets only the key that was set for
        prunesearch.

        Raises:
            InputError: the URL cannot be used.
        """
        host = check_endpoint_url(url)
        is_local = _is_loopback(host)
        key = os.environ.get(KEY_VARIABLE) or None
        if key is None and (is_local or url.startswith("https://")):
            key = os.environ.get(USUAL_KEY_VARIABLE) or None
        if key is not None and (not key.isascii() or not key.isprintable() or " " in key):
            raise InputError(f"the key in {KEY_VARIABLE} holds a character that no header takes")
        return cls(url.rstrip("/"), model, key, is_local)

    def masked(self, text: str) -> str:
        """Return a text, such as an error message of the endpoint, without secrets."""
        return masked_text(self.without_key(text))

    def without_key(self, text: str) -> str:
        """Return a text of the endpoint without the key, which the endpoint may have repeated."""
        if self.key is not None and len(self.key) >= _SHORTEST:
            text = text.replace(self.key, MASK)
        return text


def check_endpoint_url(url: str) -> str:
    """Check the base URL of an endpoint and return its host.

    Raises:
        InputError: it is not a URL, or it holds a password or a key.
    """
    shown = masked_url(url)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise InputError(f"`llm_url` {shown} is not a URL: give http://HOST:PORT/v1") from None
    if parts.scheme not in ("http", "https") or not host:
        raise InputError(
            f"`llm_url` {shown} is not the URL of an endpoint: give https://HOST/v1, or "
            f"http://127.0.0.1:PORT/v1"
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise InputError(
            f"`llm_url` {shown} holds more than an address: put the key into the environment "
            f"variable {KEY_VARIABLE}"
        )
    return host


def _is_loopback(host: str) -> bool:
    """Return whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
