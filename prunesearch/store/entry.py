"""What is kept of an evaluation, as one line of text that proves itself.

Both tiers and every export hold the same text, ``CHECKSUM\\nBODY``: BODY is canonical JSON and CHECKSUM the sha256 of
``KEY\\0BODY``, so that a damaged entry, and a sound one under another's key, are both seen. The checksum keeps out
accidents, not a forger who may write to the store: whom you let write is whom you trust with the numbers.
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from prunesearch.errors import CorruptEntryError
from prunesearch.store.keys import LATENCY, Key, canonical_json

MAX_BYTES = 8 * 2**20
"""The largest entry that is written or read; results of 1,024 requests take about 40 KiB."""
TOLERANCE = 1e-3
"""Two values for one key agree when each number differs by no more than this share: arithmetic of one class on
different processors differs by less, another model or other data by far more."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SMALL = 1e-6  # absolute difference of numbers about 0


@dataclass(frozen=True)
class Entry:
    """A stored value.

    Attributes:
        key: what it is the value of.
        value: any JSON value.
        seconds: what it cost to compute.
        made: when it was computed, seconds since 1970; 0 for entries of early development versions.
    """

    key: Key
    value: Any
    seconds: float = 0.0
    made: float = 0.0

    @cached_property
    def sealed(self) -> str:
        """The entry as text.

        Raises:
            ValueError: the value is no portable JSON (NaN, infinities), or larger than `MAX_BYTES`.
        """
        body = canonical_json(
            {"made": self.made, "preimage": self.key.preimage, "seconds": self.seconds, "value": self.value}
        )
        if len(body) > MAX_BYTES - 100:
            raise ValueError(f"a value of {len(body):,} bytes is too large to store: the limit is {MAX_BYTES:,}")
        return f"{checksum(self.key.digest, body)}\n{body}"

    @property
    def labels(self) -> tuple[str, str]:
        """Fingerprint of the model and kind of data, to count by."""
        try:
            fields = json.loads(self.key.preimage)
            kind = fields["kind"] if "kind" in fields else fields["chunk"]["kind"]
            return _label(fields["model"]), _label(kind)
        except (ValueError, TypeError, KeyError, RecursionError):
            return "unknown", "unknown"

    @property
    def rank(self) -> tuple[float, str]:
        """Of several entries for a key the one of least rank stays: the first that was computed."""
        return self.made, self.sealed

    def agrees(self, other: "Entry") -> bool:
        """Whether two values are the same within `TOLERANCE`; measured times are not expected to be."""
        return self.labels[1] == LATENCY or _close(self.value, other.value)


def _label(word: object) -> str:
    """A word that every database stores, on one line."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(word))


def is_digest(text: object) -> bool:
    """Whether this could be a key's digest."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def unseal(digest: str, text: object) -> Entry:
    """Read an entry and check all that can be checked.

    Raises:
        CorruptEntryError: it is not what was sealed under this key.
    """
    if not isinstance(text, str) or len(text) > MAX_BYTES or not is_digest(digest):
        raise _corrupt(digest, "is not of prunesearch's making")
    stated, _, body = text.partition("\n")
    if stated != checksum(digest, body):
        raise _corrupt(digest, "does not match its checksum")
    try:
        fields = json.loads(body, parse_constant=_refuse)
        preimage, value = fields["preimage"], fields["value"]
        seconds, made = float(fields.get("seconds", 0.0)), float(fields.get("made", 0.0))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        raise _corrupt(digest, "has no body that can be read") from None
    if not isinstance(preimage, str) or Key.of(preimage).digest != digest:
        raise _corrupt(digest, "is not the value of its key")
    if not (math.isfinite(made) and 0 <= seconds < math.inf):
        raise _corrupt(digest, "has impossible times")
    return Entry(Key.of(preimage), value, seconds, made)


def seal_of(entry: Entry) -> str:
    """An entry's checksum."""
    return entry.sealed.partition("\n")[0]


def checksum(digest: str, body: str) -> str:
    """Sha256 that binds a body to its key."""
    return hashlib.sha256(f"{digest}\0{body}".encode(errors="replace")).hexdigest()


def _close(one: Any, other: Any) -> bool:  # noqa: ANN401 (any JSON value)
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        try:
            return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=_SMALL)
        except OverflowError:  # a whole number beyond all floats
            return one == other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_close, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_close(one[name], other[name]) for name in one)
    return bool(one == other)


def _corrupt(digest: object, why: str) -> CorruptEntryError:
    return CorruptEntryError(f"cache entry {str(digest)[:12]} {why}")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
