"""A backend of the cache together with the leases that protect it."""

from dataclasses import dataclass

from prunesearch.cache.entry import Entry
from prunesearch.cache.leases import Leases
from prunesearch.cache.local_backend import LocalBackend
from prunesearch.cache.shared_backend import SharedBackend, unavailable


@dataclass
class LeasedBackend:
    """A backend, together with the leases that protect it.

    A process leases a key before it computes it, and commits the result to the backend under the
    lease.
    """

    leases: Leases
    backend: LocalBackend | SharedBackend

    def commit(self, owner: str, token: int, entry: Entry) -> Entry | None:
        """Store a result if its lease is still held.

        Returns:
            The entry that is stored now, or None if the lease has been lost.
        """
        digest = entry.key.digest
        # The transaction stays open while the entry is written, so the lease cannot pass on.
        with (
            unavailable(self.backend.name),
            self.leases.held(owner, {digest: token}) as (connection, held),
        ):
            if digest not in held:
                return None
            if isinstance(self.backend, SharedBackend):
                return self.backend.put_in(connection, [entry])[digest]
            return self.backend.put([entry])[digest]
