"""The registry of trackers. A file in `trackers` that calls `register` adds one.

The command line reads this registry, so the files import the library of their tracker inside
functions only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from packaging.version import Version

from prunesearch.errors import InputError, UnknownNameError
from prunesearch.events import Scalar
from prunesearch.runtime.registry import Registry
from prunesearch.tracking.records import Point, RunStart, RunState


class TrackedRun(Protocol):
    """A run that a tracker has open. Every method may raise any exception of the library."""

    last_step: int
    """Last step that the tracker had when the run was opened; -1 if it had none."""

    def log(self, points: Sequence[Point]) -> None:
        """Add points, which are in the order of their steps."""
        ...

    def summarise(self, figures: Mapping[str, Scalar]) -> None:
        """Write results of the run."""
        ...

    def add_document(self, name: str, text: str) -> None:
        """Add a text file."""
        ...

    def end(self, state: RunState) -> None:
        """Close the run. It can be opened again."""
        ...


class Tracker(Protocol):
    """A tracker that writes to one place."""

    def open_run(self, start: RunStart) -> TrackedRun:
        """Make a run, or open it again if the tracker has it."""
        ...


@dataclass(frozen=True)
class TrackerEntry:
    """Facts about one tracker.

    Attributes:
        name: name on the command line and in recipes. The extra of the package has the same name.
        label: one line for help texts.
        order: position in lists.
        packages: names of the packages that have its library; one of them suffices.
        minimum: oldest version that works.
        schemes: schemes of the URIs that it can write to, beside folders.
        remote: those of the schemes that are reached over a network.
        open: function that opens the tracker at a place. It runs in a process of its own.
        check: function that refuses a URI which cannot work, without a connection.
        view: function that returns the command which shows what is in a place; "" if there is none.
        variables: variables of the environment in which its library finds a server.
    """

    name: str
    label: str
    order: int
    packages: tuple[str, ...]
    minimum: str
    schemes: tuple[str, ...]
    remote: tuple[str, ...]
    open: Callable[[str, bool], Tracker]
    check: Callable[[str], None]
    view: Callable[[str], str]
    variables: tuple[str, ...] = ()

    def check_installed(self) -> None:
        """Refuse the tracker if its library is missing or too old. Nothing is imported.

        Raises:
            InputError: see above.
        """
        remedy = f"pip install 'prunesearch[{self.name}]'"
        # A folder of this name in the working directory could be imported too, so only the
        # installed package counts.
        for package in self.packages:
            try:
                found = version(package)
            except PackageNotFoundError:
                continue
            if Version(found) < Version(self.minimum):
                raise InputError(
                    f"`track` {self.name} needs {package} {self.minimum} or newer, but {found} is "
                    f"installed: {remedy}"
                )
            return
        raise InputError(
            f"`track` {self.name} needs the package {self.packages[0]}, which is not installed: "
            f"{remedy}"
        )


REGISTRY: Registry[TrackerEntry] = Registry(
    "prunesearch.tracking.trackers", lambda name, known: UnknownNameError("tracker", name, known)
)
register = REGISTRY.register


def accept(place: str) -> None:
    """Accept every place. This is the check of a tracker that needs none."""
