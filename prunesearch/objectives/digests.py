"""Digests of content. They are computed without torch."""

import hashlib
import json


def content_digest(value: object) -> str:
    """Return the digest of a JSON value, text included.

    A value that JSON cannot express is replaced by its text.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
