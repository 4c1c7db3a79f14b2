"""Signals that arrive at a bad moment."""

import signal
import weakref


def lose_a_signal() -> None:
    """Send SIGINT at a moment when Python ignores what its handler raises."""

    class Thing:
        pass

    thing = Thing()
    watch = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    assert watch() is None
