"""trackio: a SQLite file in a folder, a server of one's own, or a Space of Hugging Face."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from contextvars import Context
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from prunesearch.errors import InputError
from prunesearch.events import Scalar
from prunesearch.tracking.places import DEFAULT_FOLDER
from prunesearch.tracking.records import Point, RunStart, RunState
from prunesearch.tracking.registry import Tracker, TrackerEntry, register
from prunesearch.tracking.step_file import StepFile

if TYPE_CHECKING:
    import trackio

PROJECT = "prunesearch"
"""Name of the project."""
_TOKEN = "TRACKIO_WRITE_TOKEN"
_SPACE = re.compile(r"hf://spaces/([\w.-]+/[\w.-]+)/?")


def open_tracker(place: str, remote: bool) -> "Tracker":
    """Open trackio: a folder, a server, or ``hf://spaces/USER/NAME``."""
    folder = DEFAULT_FOLDER / "trackio" if remote else Path(place)
    folder.mkdir(parents=True, exist_ok=True)
    # Its module reads the variables when it is imported. Without a request for a server, servers
    # in the environment are left alone.
    os.environ["TRACKIO_DIR"] = str(folder.absolute())
    for name in ("TRACKIO_SERVER_URL", "TRACKIO_SPACE_ID", "TRACKIO_WEBHOOK_URL"):
        os.environ.pop(name, None)
    space = _SPACE.fullmatch(place)
    server = place if remote and space is None else None
    return _Trackio(folder, server, None if space is None else space[1])


class _Trackio:
    """trackio at one place.

    Args:
        folder: folder of this machine.
        server: URL of a server; None without one.
        space: Space of Hugging Face; None without one.
    """

    def __init__(self, folder: Path, server: str | None, space: str | None) -> None:
        self._folder, self._server, self._space = folder, server, space

    def open_run(self, start: RunStart) -> "_TrackioRun":
        """Make a run, or open the one of this name again."""
        import trackio

        # The name is what trackio finds a run by.
        name = f"{start.name} {start.run[:8]}"
        steps = StepFile(self._folder / "last-steps" / start.run)

        def begin() -> "trackio.Run":
            return trackio.init(
                PROJECT,
                name=name,
                group=start.group,
                config={"work": start.work, **start.parameters},
                resume="allow",
                server_url=self._server,
                space_id=self._space,
                private=True,
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

        # trackio ends the run that is open in the same context.
        return _TrackioRun(Context().run(begin), steps)


class _TrackioRun:
    """A run of trackio."""

    def __init__(self, run: "trackio.Run", steps: StepFile) -> None:
        self._run, self._steps = run, steps
        self.last_step = self._seen = steps.read()

    def log(self, points: Sequence[Point]) -> None:
        """Add points."""
        self._seen = points[-1].step
        self._steps.write(self._seen)
        for point in points:
            self._run.log(dict(point.metrics), step=point.step)

    def summarise(self, figures: Mapping[str, Scalar]) -> None:
        """Write results as a table, because a run of trackio has no summary."""
        rows = [f"| {name} | {value} |" for name, value in figures.items()]
        self._write("results", "\n".join(["| result | value |", "|---|---|", *rows]))

    def add_document(self, name: str, text: str) -> None:
        """Write a text as Markdown."""
        self._write(name, f"```\n{text}\n```")

    def end(self, state: RunState) -> None:
        """Finish the run."""
        self._run.finish()

    def _write(self, name: str, text: str) -> None:
        import trackio

        self._run.log({name: trackio.Markdown(text)}, step=max(0, self._seen))


def _check(place: str) -> None:
    """Refuse a server that cannot be used.

    Raises:
        InputError: the Space is not one, or there is no token.
    """
    if place.startswith("hf:"):
        if _SPACE.fullmatch(place) is None:
            raise InputError(f"`track_to` {place}: give hf://spaces/USER/NAME")
        return
    if not urlsplit(place).hostname or not os.environ.get(_TOKEN):
        raise InputError(f"`track_to` {place} needs a token: set {_TOKEN}")


def _view(place: str) -> str:
    return f"TRACKIO_DIR={shlex.quote(place)} trackio show --project {PROJECT}"


register(
    TrackerEntry(
        "trackio",
        "trackio",
        order=3,
        packages=("trackio",),
        minimum="0.43",
        schemes=("http", "https", "hf"),
        remote=("http", "https", "hf"),
        open=open_tracker,
        check=_check,
        view=_view,
        variables=("TRACKIO_SERVER_URL", "TRACKIO_SPACE_ID"),
    )
)
