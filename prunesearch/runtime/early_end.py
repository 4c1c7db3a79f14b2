"""A request that the searches of this process end early.

A search looks at the request between two generations. It ends with the best candidate so far, and
the stages that follow run as usual. This differs from a signal (`stopping`), which ends the
process.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_requested = threading.Event()


def request() -> None:
    """Ask the searches of this process to end after the generation that is under way."""
    _requested.set()


def requested() -> bool:
    """Return whether searches shall end."""
    return _requested.is_set()


@contextmanager
def accepted() -> Iterator[None]:
    """Forget an earlier request when the block begins, and any request when it ends."""
    _requested.clear()
    try:
        yield
    finally:
        _requested.clear()
