"""A stored evaluation as text with a checksum.

Both backends and every export hold the same text, ``CHECKSUM\\nBODY``. BODY is canonical JSON.
CHECKSUM is the sha256 of ``KEY\\0BODY``, so it detects a damaged entry and also an entry under the
wrong key. The checksum detects accidents. It does not stop a person who may write to the cache from
forging entries: give write access only to people whose results you trust.
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from prunesearch.cache.keys import CHAT, LATENCY, Key, canonical_json
from prunesearch.errors import CorruptEntryError
from prunesearch.runtime.json_values import Json

MAX_BYTES = 8 * 2**20
"""Largest size of an entry that is written or read. Results of 1,024 requests take about 40 KiB."""
TOLERANCE = 1e-3
"""Two values of a key agree if no number differs by more than this share.

Arithmetic of one class differs by less between processors. Another model or other data differ by
far more.
"""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SMALL = 1e-6  # absolute tolerance for numbers near 0


@dataclass(frozen=True)
class Entry:
    """A stored value.

    Attributes:
        key: key of the value.
        value: any JSON value.
        seconds: time that the computation took.
        made: time of the computation in seconds since 1970; 0 for entries of early development
            versions.
    """

    key: Key
    value: Any
    seconds: float = 0.0
    made: float = 0.0

    @cached_property
    def serialized(self) -> str:
        """The entry as text.

        Raises:
            ValueError: the value is not portable JSON (NaN, infinities), or is larger than
                `MAX_BYTES`.
        """
        body = canonical_json(
            {
                "made": self.made,
                "preimage": self.key.preimage,
                "seconds": self.seconds,
                "value": self.value,
            }
        )
        if len(body) > MAX_BYTES - 100:
            raise ValueError(
                f"a value of {len(body):,} bytes is too large to store: the limit is {MAX_BYTES:,}"
            )
        return f"{checksum(self.key.digest, body)}\n{body}"

    @property
    def labels(self) -> tuple[str, str]:
        """Fingerprint of the model, and kind of the data. Statistics group entries by them."""
        try:
            fields = json.loads(self.key.preimage)
            # Keys of evaluations hold the kind in their chunk.
            kind = fields["kind"] if "kind" in fields else fields["chunk"]["kind"]
            return _label(fields["model"]), _label(kind)
        except (ValueError, TypeError, KeyError, RecursionError):
            return "unknown", "unknown"

    @property
    def rank(self) -> tuple[float, str]:
        """Sort key that orders the entries of a key.

        The entry of least rank, computed first, stays.
        """
        return self.made, self.serialized

    def agrees(self, other: "Entry") -> bool:
        """Return whether two values are equal within `TOLERANCE`.

        Measured times and replies of language models always agree.
        """
        return self.labels[1] in (LATENCY, CHAT) or _close(self.value, other.value)


def _label(word: object) -> str:
    """Return a label on one line that every database can store."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(word))


def is_digest(text: object) -> bool:
    """Return whether a value has the form of a key's digest."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def parse_entry(digest: str, text: object) -> Entry:
    """Parse an entry's text and check it.

    Args:
        digest: digest of the key that the text is stored under.
        text: text of `Entry.serialized`, or any other value.

    Raises:
        CorruptEntryError: the text is not an intact entry of this key.
    """
    # 1. Compare the checksum, before anything is parsed.
    if not isinstance(text, str) or len(text) > MAX_BYTES or not is_digest(digest):
        raise _corrupt(digest, "is not of prunesearch's making")
    stated, _, body = text.partition("\n")
    if stated != checksum(digest, body):
        raise _corrupt(digest, "does not match its checksum")
    # 2. Parse the body.
    try:
        fields = json.loads(body, parse_constant=_refuse)
        preimage, value = fields["preimage"], fields["value"]
        seconds, made = float(fields.get("seconds", 0.0)), float(fields.get("made", 0.0))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        raise _corrupt(digest, "has no body that can be read") from None
    # 3. Check that the key belongs to the pre-image, and that the times are possible.
    if not isinstance(preimage, str) or Key.of(preimage).digest != digest:
        raise _corrupt(digest, "is not the value of its key")
    if not (math.isfinite(made) and 0 <= seconds < math.inf):
        raise _corrupt(digest, "has impossible times")
    return Entry(Key.of(preimage), value, seconds, made)


def checksum_of(entry: Entry) -> str:
    """Return the checksum of an entry."""
    return entry.serialized.partition("\n")[0]


def checksum(digest: str, body: str) -> str:
    """Return the sha256 of a body together with its key."""
    return hashlib.sha256(f"{digest}\0{body}".encode(errors="replace")).hexdigest()


def _close(one: Json, other: Json) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        try:
            return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=_SMALL)
        except OverflowError:  # an integer is larger than any float
            return one == other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_close, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_close(one[name], other[name]) for name in one)
    return bool(one == other)


def _corrupt(digest: object, why: str) -> CorruptEntryError:
    return CorruptEntryError(f"cache entry {str(digest)[:12]} {why}")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
