"""Replacing an attribute for a while, such as one function of a library."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Replace an attribute of an object or a module inside the ``with`` block.

    Args:
        owner: object or module that has the attribute.
        name: name of the attribute.
        value: value that it has inside the block.

    Raises:
        AttributeError: the object does not have the attribute.
    """
    original = getattr(owner, name)
    # A method belongs to the class. Afterwards the object must not keep a copy of its own.
    own = name in vars(owner)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)
