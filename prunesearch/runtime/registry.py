"""A registry: named entries, each registered by one file of a folder.

A registry imports all modules of its folder when it is first read. So a new entry is one new file,
and a program that only builds a registry imports none of them.
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar


class RegistryEntry(Protocol):
    """An entry of a registry."""

    @property
    def name(self) -> str:
        """Name of the entry, as users type it."""
        ...

    @property
    def order(self) -> int:
        """Position in lists. Entries with the same position are listed by name."""
        ...


AnyEntry = TypeVar("AnyEntry", bound=RegistryEntry)


class Registry(Generic[AnyEntry]):
    """Entries by name.

    Args:
        folder: package whose modules register the entries, such as ``prunesearch.algorithms``.
        unknown: function that makes the exception for an unknown name. It takes the name and the
            known names.
    """

    def __init__(self, folder: str, unknown: Callable[[str, Sequence[str]], Exception]) -> None:
        self._folder, self._unknown = folder, unknown
        self._entries: dict[str, AnyEntry] = {}
        self._complete = False

    def register(self, entry: AnyEntry) -> AnyEntry:
        """Add an entry and return it.

        Raises:
            ValueError: another entry has this name.
        """
        known = self._entries.setdefault(entry.name, entry)
        if known is not entry and known != entry:
            raise ValueError(f"{entry.name!r} is registered twice in {self._folder}")
        return entry

    def entries(self) -> list[AnyEntry]:
        """Return all entries in the order of lists."""
        self._discover()
        return sorted(self._entries.values(), key=lambda entry: (entry.order, entry.name))

    def names(self) -> list[str]:
        """Return the names of all entries in the order of lists."""
        return [entry.name for entry in self.entries()]

    def get(self, name: str) -> AnyEntry:
        """Return the entry of a name. An unknown name raises the registry's exception."""
        self._discover()
        if name not in self._entries:
            raise self._unknown(name, self.names())
        return self._entries[name]

    def _discover(self) -> None:
        """Import all modules of the folder once, in the order of their names."""
        if self._complete:
            return
        package = importlib.import_module(self._folder)
        modules = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
        for module in modules:
            importlib.import_module(f"{self._folder}.{module}")
        self._complete = True
