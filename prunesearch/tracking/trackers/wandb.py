"""Weights & Biases: offline in a folder, or online at a server."""

import netrc
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
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
    import wandb

PROJECT = "prunesearch"
"""Name of the project, if neither the place nor ``WANDB_PROJECT`` names another."""
_PATH = re.compile(r"/?|/[\w.-]+(?:/[\w.-]+)?/?")
_KEY = "WANDB_API_KEY"
_INIT_TIMEOUT = 20.0  # seconds


def open_tracker(place: str, remote: bool) -> "Tracker":
    """Open Weights & Biases: offline in a folder, or at ``https://SERVER[/ENTITY[/PROJECT]]``."""
    os.environ["WANDB_SILENT"] = "true"
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    if not remote:
        return _WandB(Path(place), None, None, os.environ.get("WANDB_PROJECT") or PROJECT)
    parts = urlsplit(place)
    entity, _, project = parts.path.strip("/").partition("/")
    name = project or os.environ.get("WANDB_PROJECT") or PROJECT
    server = f"{parts.scheme}://{parts.netloc}"
    return _WandB(DEFAULT_FOLDER / "wandb", server, entity or None, name)


class _WandB:
    """Weights & Biases at one place.

    Args:
        folder: folder of the files of its client.
        server: base URL of the server; None to stay offline.
        entity: user or team at the server; None for the default one.
        project: name of the project.
    """

    def __init__(self, folder: Path, server: str | None, entity: str | None, project: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._server = folder, server
        self._entity, self._project = entity, project
        self._open = 0

    def open_run(self, start: RunStart) -> "_WandBRun":
        """Make a run, or open the one that has the identifier."""
        import wandb

        settings: dict[str, object] = {
            # Neither files, nor command lines, nor remotes of git, which may hold secrets.
            "console": "off",
            "silent": True,
            "save_code": False,
            "disable_code": True,
            "disable_git": True,
            "disable_job_creation": True,
            "x_disable_meta": True,
            "x_disable_stats": True,
            "x_disable_machine_info": True,
            "init_timeout": _INIT_TIMEOUT,
        }
        if self._server is not None:
            settings["base_url"] = self._server
        run = wandb.init(
            entity=self._entity,
            project=self._project,
            id=start.run,
            name=start.name,
            group=start.group,
            job_type=start.work,
            config=dict(start.parameters),
            dir=str(self._folder),
            mode="offline" if self._server is None else "online",
            # Offline, nobody knows whether the server has the run.
            resume=None if self._server is None else "allow",
            reinit="create_new",
            settings=wandb.Settings(**settings),
        )
        self._open += 1
        steps = None
        if self._server is None:
            steps = StepFile(self._folder / "last-steps" / start.run)
        return _WandBRun(run, steps, self._closed)

    def _closed(self) -> None:
        """Note that a run has ended. After the last one, wait until its files are complete."""
        import wandb

        self._open -= 1
        if not self._open:
            wandb.teardown()


class _WandBRun:
    """A run of Weights & Biases.

    Args:
        run: the run.
        steps: file with the last step; None if the server knows it.
        closed: called when the run has ended.
    """

    def __init__(
        self, run: "wandb.Run", steps: StepFile | None, closed: Callable[[], None]
    ) -> None:
        self._run, self._steps, self._closed = run, steps, closed
        self.last_step = run.step - 1 if steps is None else steps.read()

    def log(self, points: Sequence[Point]) -> None:
        """Add points."""
        if self._steps is not None:
            self._steps.write(points[-1].step)
        for point in points:
            self._run.log({**point.metrics, "_timestamp": point.at}, step=point.step)

    def summarise(self, figures: Mapping[str, Scalar]) -> None:
        """Write the summary of the run."""
        for name, value in figures.items():
            self._run.summary[name] = value

    def add_document(self, name: str, text: str) -> None:
        """Save a file with the run."""
        path = Path(self._run.dir) / name
        path.write_text(text, encoding="utf-8")
        self._run.save(str(path), base_path=self._run.dir, policy="now")

    def end(self, state: RunState) -> None:
        """Finish the run."""
        self._run.finish(exit_code=0 if state == "finished" else 1)
        self._closed()


def _check(place: str) -> None:
    """Refuse a server that cannot be used.

    Raises:
        InputError: the path is not one, or there is no key.
    """
    parts = urlsplit(place)
    if _PATH.fullmatch(parts.path) is None or parts.query or parts.fragment:
        raise InputError(f"`track_to` {place}: give https://SERVER, and then /ENTITY/PROJECT")
    if os.environ.get(_KEY):
        return
    # Its client reads a file, too.
    try:
        known = netrc.netrc().authenticators(parts.hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    if not known:
        raise InputError(f"`track_to` {place} needs a key: set {_KEY}, or run: wandb login")


def _view(place: str) -> str:
    """Return the command that uploads what was written offline."""
    return f"wandb sync {shlex.quote(place)}/wandb/offline-run-*"


register(
    TrackerEntry(
        "wandb",
        "Weights & Biases",
        order=2,
        packages=("wandb",),
        minimum="0.31",
        schemes=("http", "https"),
        remote=("http", "https"),
        open=open_tracker,
        check=_check,
        view=_view,
        variables=("WANDB_BASE_URL",),
    )
)
