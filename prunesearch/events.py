"""What long work tells while it runs: the stage that it is in, and how far it is. Views of progress subscribe to it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Where long work is.

    Attributes:
        name: what is done now, as ``loading the model``.
        done, total: how far it is, in `unit`; a total of 0 says that it is not counted.
        unit: what is counted, in the plural.
    """

    name: str
    done: int = 0
    total: int = 0
    unit: str = ""


Subscriber = Callable[[Stage], None]
"""Hears of stages, from the thread that does the work."""

_subscriber: ContextVar[Subscriber | None] = ContextVar("subscriber", default=None)


@contextmanager
def heard_by(subscriber: Subscriber) -> Iterator[None]:
    """Have a subscriber hear what is told inside the ``with`` block, in its threads and tasks too."""
    token = _subscriber.set(subscriber)
    try:
        yield
    finally:
        _subscriber.reset(token)


def tell(name: str, done: int = 0, total: int = 0, unit: str = "") -> None:
    """Say that a stage begins or goes on. Without a subscriber nothing happens."""
    subscriber = _subscriber.get()
    if subscriber is not None:
        subscriber(Stage(name, done, total, unit))
