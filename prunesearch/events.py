"""Events of long work: its stage, and its progress in it. Progress displays subscribe to them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A stage of long work, and the progress in it.

    Attributes:
        name: name of the stage, such as ``loading the model``.
        done, total: finished and total number of units. A total of 0 means that the stage is not
            counted.
        unit: name of the counted units, in the plural.
    """

    name: str
    done: int = 0
    total: int = 0
    unit: str = ""


Subscriber = Callable[[Stage], None]
"""Function that receives stages, called from the thread that does the work."""

_subscriber: ContextVar[Subscriber | None] = ContextVar("subscriber", default=None)


@contextmanager
def heard_by(subscriber: Subscriber) -> Iterator[None]:
    """Send the stages of a ``with`` block to a subscriber, including those of its threads and
    tasks.
    """
    token = _subscriber.set(subscriber)
    try:
        yield
    finally:
        _subscriber.reset(token)


def tell(name: str, done: int = 0, total: int = 0, unit: str = "") -> None:
    """Report that a stage begins or continues. Without a subscriber, nothing happens."""
    subscriber = _subscriber.get()
    if subscriber is not None:
        subscriber(Stage(name, done, total, unit))
