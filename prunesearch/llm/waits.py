"""Pauses between two attempts, as the endpoint asks for them."""

import email.utils
import time
from collections.abc import Mapping

from prunesearch.runtime import stopping

LONGEST_SECONDS = 60.0
"""Longest pause. An endpoint that asks for a longer one is not waited for."""
_FIRST_SECONDS = 0.5
_LOOK_SECONDS = 0.2  # between two looks at a requested stop


def pause_seconds(headers: Mapping[str, str], attempt: int) -> float:
    """Return the seconds to wait before the next attempt.

    It is what the header ``Retry-After`` says, in seconds or as a date. Without the header, it
    doubles with each attempt.

    Args:
        headers: headers of the reply, with names in lower case.
        attempt: number of attempts that failed, counted from 0.
    """
    asked = headers.get("retry-after", "").strip()
    if asked:
        try:
            return max(0.0, float(asked))
        except ValueError:
            pass
        try:
            return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
        except (ValueError, TypeError):
            pass
    return min(LONGEST_SECONDS, _FIRST_SECONDS * 2.0**attempt)


def wait(seconds: float) -> None:
    """Wait, and end early if a stop is requested.

    Raises:
        StopRequested: a stop was requested.
    """
    until = time.monotonic() + seconds
    stopping.check()
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _LOOK_SECONDS))
        stopping.check()
