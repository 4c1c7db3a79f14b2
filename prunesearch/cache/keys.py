"""Makes the keys of the evaluation cache. Keys are made in this module only.

A key is the sha256 of a canonical JSON text, its pre-image. The pre-image names everything that can
change the stored numbers and nothing else. It never holds a path, a name or a host. It is stored
with the value, so that a wrong key can be diagnosed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from prunesearch.runtime.json_values import Json, JsonObject

SCHEMA_VERSION = 1
"""Version of the pre-image's layout."""
LATENCY = "sublayer latency"
"""Kind of the keys whose values are measured times. Two measurements are never equal."""
CHAT = "chat reply"
"""Kind of the keys whose values are replies of a language model. Two replies are seldom equal."""


@dataclass(frozen=True)
class Key:
    """A key of the evaluation cache.

    Attributes:
        digest: sha256 of the pre-image as 64 hexadecimal digits.
        preimage: the canonical JSON text.
    """

    digest: str
    preimage: str

    @classmethod
    def of(cls, preimage: str) -> Self:
        """Return the key of a pre-image."""
        return cls(hashlib.sha256(preimage.encode(errors="replace")).hexdigest(), preimage)


def evaluation_key(fingerprint: str, candidate: str, chunk: Mapping[str, Json]) -> Key:
    """Return the key of one candidate's results on one chunk of the data.

    Args:
        fingerprint: fingerprint of the dense model's content.
        candidate: canonical text of the candidate.
        chunk: description of the data and the scoring: digest of the token ids, numerics class,
            version of the scoring.
    """
    return _key({"candidate": candidate, "chunk": chunk, "model": fingerprint})


def latency_key(fingerprint: str, machine: str, numerics: dict[str, str], tokens: int) -> Key:
    """Return the key of a model's per-block latencies on one kind of machine.

    Args:
        fingerprint: fingerprint of the model's content.
        machine: kind of machine.
        numerics: numerics class of the model.
        tokens: number of tokens in the measured input.
    """
    return _key(
        {
            "kind": LATENCY,
            "machine": machine,
            "model": fingerprint,
            "numerics": numerics,
            "tokens": tokens,
        }
    )


def chat_key(model: str, request: Mapping[str, Json]) -> Key:
    """Return the key of a language model's reply.

    Args:
        model: name of the model, or the digest of a local one. The endpoint is not part of the key.
        request: messages and settings of the request.
    """
    return _key({"kind": CHAT, "model": model, "request": request})


def text_key(
    fingerprint: str,
    candidate: str,
    numerics: dict[str, str],
    prompts: Sequence[Sequence[int]],
    tokens: int,
) -> Key:
    """Return the key of the texts that a candidate generates greedily.

    Args:
        fingerprint: fingerprint of the dense model's content.
        candidate: canonical text of the candidate.
        numerics: numerics class of the model.
        prompts: token ids of the prompts.
        tokens: largest number of generated tokens.
    """
    return _key(
        {
            "candidate": candidate,
            "kind": "greedy texts",
            "model": fingerprint,
            "numerics": numerics,
            "prompts": [list(prompt) for prompt in prompts],
            "tokens": tokens,
        }
    )


def minor(version: str) -> str:
    """Return the major and minor part of a library's version.

    Keys leave out the patch part, because a patch release does not change numbers on purpose.
    """
    return ".".join(version.split("+")[0].split(".")[:2])


def canonical_json(value: Json) -> str:
    """Return the canonical text of a JSON value: with sorted keys, without spaces and without NaN.

    Raises:
        ValueError: the value holds NaN or an infinity.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True
    )


def _key(fields: JsonObject) -> Key:
    return Key.of(canonical_json({"schema": SCHEMA_VERSION, **fields}))
