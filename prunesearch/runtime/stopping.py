"""Ctrl-C and SIGTERM: a flag that long work looks at between two steps.

A handler that raises is not enough: Python ignores what is raised inside a weak-reference callback
or a destructor, and the work would go on. So the handler sets a flag first. Only where nothing can
be lost, while a model is loading for example, does it raise as well, so that nobody has to wait for
the next look at the flag. A second signal ends the process at once.

Only the command line installs the handlers. Used as a library, the package leaves signals alone:
Ctrl-C is Python's.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME_SECONDS = (
    0.25  # timeout(1) and other wrappers deliver one stop twice, to the process and to its group
)
_LOOK_SECONDS = 0.5

STOPPING = "stopping after the step that is under way; once more stops at once"
"""Message that is shown when a stop was requested."""


_UnraisableHook = Callable[["sys.UnraisableHookArgs"], object]


class StopRequested(KeyboardInterrupt):
    """The user, or a scheduler, wants the command to end. As a KeyboardInterrupt it passes every
    ``except Exception``.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _StopState:
    """State that the signal handler and the work share.

    There is one per process, because signals are per process.
    """

    number: int | None = None
    at = 0.0
    deferred = 0
    wakers: tuple[Callable[[], None], ...] = ()
    drawn = False
    ended = False


def requested() -> bool:
    """Return whether a stop was requested."""
    return _StopState.number is not None


def drawn(on: bool) -> None:
    """Set whether a display on the terminal shows `STOPPING` itself after a stop was requested.

    If the handler wrote a line while the display is redrawn, part of the old display would stay on
    the screen.
    """
    _StopState.drawn = on


def check() -> None:
    """Stop here if a stop was requested.

    Raises:
        StopRequested: a stop was requested.
    """
    if _StopState.number is not None:
        raise StopRequested(_StopState.number)


def wait_for(event: threading.Event) -> None:
    """Wait for an event, or until a stop is requested.

    A plain wait has no end when the signal comes just before it: Python runs the handler only
    between two steps of Python code. The same holds when what the handler raised was ignored.

    Raises:
        StopRequested: a stop was requested.
    """
    while not event.wait(_LOOK_SECONDS):
        check()


@contextmanager
def deferred() -> Iterator[None]:
    """Inside this block a signal only sets the flag. The work checks it where it can end cleanly.

    Raises:
        StopRequested: at the beginning or at the end, when a stop was asked for.
    """
    check()
    _StopState.deferred += 1
    try:
        yield
    finally:
        _StopState.deferred -= 1
    check()


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside this block, even within `deferred`, a signal raises: nothing here would be left half
    done.

    Raises:
        StopRequested: as soon as a stop is asked for, at the end of the block at the latest.
    """
    check()
    before, _StopState.deferred = _StopState.deferred, 0
    try:
        yield
    finally:
        _StopState.deferred = before
    check()


@contextmanager
def waking(wake: Callable[[], None]) -> Iterator[None]:
    """Have the signal handler call something that wakes a loop which waits. It must not block."""
    _StopState.wakers = (*_StopState.wakers, wake)
    try:
        if requested():
            wake()
        yield
    finally:
        _StopState.wakers = tuple(other for other in _StopState.wakers if other is not wake)


@contextmanager
def handled() -> Iterator[None]:
    """Handle both signals inside this block, then give them back to who had them.

    A signal that the process was started to ignore, as ``nohup`` does, stays ignored.
    """
    _StopState.number, _StopState.deferred, _StopState.wakers = None, 0, ()
    before = {}
    if threading.current_thread() is threading.main_thread():  # others may not set handlers
        for number in _SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, _handle)
    hook, sys.unraisablehook = sys.unraisablehook, _told_elsewhere(sys.unraisablehook)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
        _StopState.number, _StopState.ended = None, True


def _told_elsewhere(hook: _UnraisableHook) -> _UnraisableHook:
    """Return a hook that says nothing of a stop that Python ignores: the flag is set, and the work
    ends at its next look at it.
    """

    def told(unraisable: "sys.UnraisableHookArgs") -> None:
        if not isinstance(unraisable.exc_value, StopRequested):
            hook(unraisable)

    return told


def guard_process() -> None:
    """Have both signals end the process at once, without a traceback, outside of `handled`.

    So it is while a command is imported, when nothing has been begun, and when it has said its last
    word: Python takes a while to end, and schedulers like to send a signal twice.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, _end_quietly)


def _end_quietly(number: int, frame: FrameType | None) -> None:
    if not _StopState.ended:
        os.write(2, b"stopped\n")
    os._exit(128 + number)


def _handle(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _StopState.number is not None:
        if now - _StopState.at > _SAME_SECONDS:
            _end_at_once(number)
        return
    _StopState.number, _StopState.at = number, now
    for wake in _StopState.wakers:
        wake()
    if not _StopState.deferred:
        raise StopRequested(number)
    if not _StopState.drawn:
        os.write(2, f"{STOPPING}\n".encode())


def _end_at_once(number: int) -> None:
    cursor = b"\x1b[?25h" if sys.stderr.isatty() else b""  # a progress bar hides it
    os.write(2, cursor + b"stopped at once; what is finished is kept\n")
    os._exit(128 + number)
