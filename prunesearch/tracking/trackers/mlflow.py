"""MLflow: a SQLite file with a folder of artifacts, a database, or a server."""

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunesearch.errors import InputError
from prunesearch.events import Scalar
from prunesearch.tracking.records import Point, RunStart, RunState
from prunesearch.tracking.registry import Tracker, TrackerEntry, accept, register

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

EXPERIMENT = "prunesearch"
"""Name of the experiment, if ``MLFLOW_EXPERIMENT_NAME`` does not name another."""
RUN_TAG, STEP_TAG = "prunesearch.run", "prunesearch.last_step"
"""Tags of a run: its identifier, and the last step that it has."""
_MOST_METRICS = 900  # of a request; a server takes 1,000 values in all
_MOST_PARAMETERS = 100
_LONGEST_PARAMETER = 6000
_LONGEST_TAG = 5000
_STATUS: dict[RunState, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_SETTINGS = {
    # Without a network, unless a server was asked for.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # Our own queue waits and tries again.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def open_tracker(place: str, remote: bool) -> "Tracker":
    """Open MLflow at a place: a folder, or the URI of a server or a database."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    if "://" in place:
        return _MLflow(MlflowClient(tracking_uri=place), None)
    folder = Path(place).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return _MLflow(MlflowClient(tracking_uri=f"sqlite:///{_database(folder)}"), folder)


def _database(folder: Path) -> Path:
    """Return the file of the database in a folder."""
    return folder / "mlflow.db"


class _MLflow:
    """MLflow at one place.

    Args:
        client: client of MLflow.
        folder: folder of the artifacts; None if the server has one.
    """

    def __init__(self, client: "MlflowClient", folder: Path | None) -> None:
        self._client, self._folder = client, folder

    def open_run(self, start: RunStart) -> "_MLflowRun":
        """Make a run, or open the one that has the identifier in its tag."""
        client, experiment = self._client, self._experiment()
        found = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{start.run}'", max_results=1)
        if found:
            client.update_run(found[0].info.run_id, status="RUNNING")
            earlier = _MLflowRun(client, found[0])
            earlier.add_parameters(start.parameters)
            return earlier
        tags = {RUN_TAG: start.run, "prunesearch.work": start.work}
        tags["prunesearch.group"] = start.group[:_LONGEST_TAG]
        run = client.create_run(experiment, tags=tags, run_name=start.name)
        opened = _MLflowRun(client, run)
        opened.add_parameters(start.parameters)
        return opened

    def _experiment(self) -> str:
        """Return the identifier of the experiment. It is made if it does not exist."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # Artifacts would lie in the working directory otherwise.
        location = None if self._folder is None else (self._folder / "artifacts").as_uri()
        return str(self._client.create_experiment(name, artifact_location=location))


class _MLflowRun:
    """A run of MLflow."""

    def __init__(self, client: "MlflowClient", run: "Run") -> None:
        self._client, self._id = client, str(run.info.run_id)
        self._known = frozenset(run.data.params)  # parameters that it has
        self.last_step = int(run.data.tags.get(STEP_TAG, -1))

    def add_parameters(self, parameters: Mapping[str, Scalar]) -> None:
        """Write the parameters that the run lacks: all of a new run, and those of a request that
        failed. MLflow does not let them change later.
        """
        from mlflow.entities import Param

        params = []
        for name, value in parameters.items():
            if _key(name) not in self._known:
                params.append(Param(_key(name), str(value)[:_LONGEST_PARAMETER]))
        for first in range(0, len(params), _MOST_PARAMETERS):
            self._client.log_batch(self._id, params=params[first : first + _MOST_PARAMETERS])

    def log(self, points: Sequence[Point]) -> None:
        """Add points. The last step is written in the same request."""
        from mlflow.entities import Metric, RunTag

        metrics: list[Metric] = []
        for place, point in enumerate(points):
            at = int(point.at * 1000)
            for name, value in point.metrics.items():
                metrics.append(Metric(_key(name), value, at, point.step))
            if len(metrics) >= _MOST_METRICS - len(point.metrics) or place == len(points) - 1:
                tag = RunTag(STEP_TAG, str(point.step))
                self._client.log_batch(self._id, metrics=metrics, tags=[tag])
                metrics = []

    def summarise(self, figures: Mapping[str, Scalar]) -> None:
        """Write numbers as metrics, and texts as tags."""
        from mlflow.entities import Metric, RunTag

        metrics, tags = [], []
        # MLflow shows the value with the largest step, then time, then value.
        at = int(time.time() * 1000)
        for name, value in figures.items():
            if isinstance(value, str):
                tags.append(RunTag(_key(name), value[:_LONGEST_TAG]))
            else:
                # A metric without steps of its own.
                metrics.append(Metric(_key(name), float(value), at, 0))
        self._client.log_batch(self._id, metrics=metrics, tags=tags)

    def add_document(self, name: str, text: str) -> None:
        """Write an artifact."""
        self._client.log_text(self._id, text, name)

    def end(self, state: RunState) -> None:
        """Set the status of the run."""
        self._client.set_terminated(self._id, _STATUS[state])


def _key(name: str) -> str:
    """Return a name that MLflow takes: letters, digits, ``_ - . : /`` and blanks."""
    return "".join(letter if letter.isalnum() or letter in "_-.:/ " else "_" for letter in name)


def _check(place: str) -> None:
    """Refuse a SQLite file whose folder does not exist.

    Raises:
        InputError: see above.
    """
    if place.startswith("sqlite:///"):
        parent = Path(place.removeprefix("sqlite:///")).absolute().parent
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise InputError(
                f"`track_to` {place}: the folder {str(parent)!r} cannot be written: make it, or "
                f"give another"
            )
        return
    accept(place)


def _view(place: str) -> str:
    """Return the command of the page of MLflow, which the package mlflow has."""
    uri = f"sqlite:///{_database(Path(place).absolute())}"
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


register(
    TrackerEntry(
        "mlflow",
        "MLflow",
        order=1,
        packages=("mlflow-skinny", "mlflow"),
        minimum="3.17",
        schemes=("http", "https", "databricks", "sqlite", "postgresql", "mysql"),
        remote=("http", "https", "databricks", "postgresql", "mysql"),
        open=open_tracker,
        check=_check,
        view=_view,
        variables=("MLFLOW_TRACKING_URI",),
    )
)
