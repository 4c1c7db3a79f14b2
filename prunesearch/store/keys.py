"""The only place where keys of the evaluation store are made.

A key is the sha256 of a canonical JSON pre-image that names everything that can change the stored numbers, and
nothing else: never a path, a name or a host. The pre-image is stored beside the value, so that a wrong key can be
diagnosed.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Self

SCHEMA_VERSION = 1
"""Version of the pre-image's layout."""
LATENCY = "sublayer latency"
"""Kind of the keys whose values are measured times: of these no two are the same."""


@dataclass(frozen=True)
class Key:
    """A store key.

    Attributes:
        digest: 64 hexadecimal digits.
        preimage: the canonical JSON that was digested.
    """

    digest: str
    preimage: str

    @classmethod
    def of(cls, preimage: str) -> Self:
        """The key of a pre-image."""
        return cls(hashlib.sha256(preimage.encode(errors="replace")).hexdigest(), preimage)


def evaluation_key(fingerprint: str, candidate: str, chunk: dict[str, Any]) -> Key:
    """Key of one candidate's results on one chunk.

    Args:
        fingerprint: of the dense model's content.
        candidate: its canonical text.
        chunk: what is scored and how: token ids' digest, numerics class, scoring version.
    """
    return _key({"candidate": candidate, "chunk": chunk, "model": fingerprint})


def latency_key(fingerprint: str, machine: str, numerics: dict[str, str], tokens: int) -> Key:
    """Key of a model's per-block latencies on one kind of machine."""
    return _key({"kind": LATENCY, "machine": machine, "model": fingerprint, "numerics": numerics, "tokens": tokens})


def minor(version: str) -> str:
    """Major and minor part of a library's version: a patch release changes no number on purpose."""
    return ".".join(version.split("+")[0].split(".")[:2])


def canonical_json(value: Any) -> str:  # noqa: ANN401 (any JSON value)
    """One spelling for each JSON value: sorted keys, no spaces, no NaN.

    Raises:
        ValueError: the value holds NaN or an infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def _key(fields: dict[str, Any]) -> Key:
    return Key.of(canonical_json({"schema": SCHEMA_VERSION, **fields}))
