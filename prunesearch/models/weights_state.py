"""Whether the weights in memory are still those that were loaded, and what changed them.

Hashing all weights of a model takes seconds to minutes. It is done once, when the model is loaded.
Code that changes weights afterwards registers each change here, with a digest of it. The content of
the weights follows from the two, without hashing them again.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class WeightsState:
    """Changes of the weights in memory since the model was loaded.

    Attributes:
        changes: digests of the changes, in the order in which they were made.
    """

    changes: tuple[str, ...] = ()

    @property
    def dense(self) -> bool:
        """True if the weights in memory are those that were loaded."""
        return not self.changes

    def content(self, fingerprint: str) -> str:
        """Return the digest of the weights in memory.

        Args:
            fingerprint: digest of the weights that were loaded, which is returned if nothing was
                changed.
        """
        if self.dense:
            return fingerprint
        return hashlib.sha256("\0".join((fingerprint, *self.changes)).encode()).hexdigest()

    def add(self, change: str) -> None:
        """Register a change."""
        self.changes = (*self.changes, change)

    def remove(self, change: str) -> None:
        """Register that a change was undone."""
        self.changes = tuple(other for other in self.changes if other != change)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Forget the changes inside the ``with`` block at its end, when the caller undoes them."""
        before = self.changes
        try:
            yield
        finally:
            self.changes = before
