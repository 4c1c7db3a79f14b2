"""Bodies of answers that end, whatever the endpoint sends.

The package openai reads the whole body of an answer that says that something failed, before it
raises the error. So such a body is cut off.
"""

import time
from collections.abc import Iterator

import httpx2

_MOST_BYTES = 2**16  # of an answer that says what failed; compressed ones grow about 1,000 times


class LimitedBody(httpx2.SyncByteStream):
    """The beginning of a body.

    Args:
        body: the whole body.
        seconds: most seconds that it is read.
    """

    def __init__(self, body: httpx2.SyncByteStream, seconds: float) -> None:
        self._body = body
        self._seconds = seconds

    def __iter__(self) -> Iterator[bytes]:
        left = _MOST_BYTES
        until = time.monotonic() + self._seconds
        for piece in self._body:
            yield piece[:left]
            left -= len(piece)
            if left <= 0 or time.monotonic() > until:
                return

    def close(self) -> None:
        """Close the connection, if there is more to read."""
        self._body.close()


class FailureLimiter:
    """Limits the bodies of answers with the status of a failure or a redirection.

    Args:
        seconds: most seconds that such a body is read.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, response: httpx2.Response) -> None:
        """Limit the body of an answer that has not been read yet."""
        if not response.is_success and isinstance(response.stream, httpx2.SyncByteStream):
            response.stream = LimitedBody(response.stream, self._seconds)
