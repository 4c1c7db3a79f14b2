"""TensorBoard: files of events in a folder, one folder for each run."""

import re
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunesearch.events import Scalar
from prunesearch.tracking.records import Point, RunStart, RunState
from prunesearch.tracking.registry import Tracker, TrackerEntry, accept, register
from prunesearch.tracking.step_file import StepFile

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

_UNSAFE = re.compile(r"[^\w.=+-]+")


def _shortened(name: str) -> str:
    """Return the beginning of a name that file systems take: 100 letters, and 200 bytes."""
    return name[:100].encode()[:200].decode(errors="ignore")


def open_tracker(place: str, remote: bool) -> "Tracker":
    """Open a folder."""
    return _TensorBoard(Path(place))


class _TensorBoard:
    """Files of TensorBoard in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open_run(self, start: RunStart) -> "_TensorBoardRun":
        """Open the folder of a run, and begin a file in it."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        # The identifier keeps apart studies that have the same name in different databases.
        name = f"{_shortened(_UNSAFE.sub('-', start.name))}-{start.run[:8]}"
        folder = self._folder / name
        steps = StepFile(folder / "last-step")
        run = _TensorBoardRun(EventFileWriter(str(folder)), steps)
        if run.last_step < 0:
            rows = [f"| {key} | {_cell(value)} |" for key, value in start.parameters.items()]
            run.add_document("parameters", "\n".join(["| parameter | value |", "|---|---|", *rows]))
        return run


class _TensorBoardRun:
    """A run in a folder of TensorBoard.

    Args:
        writer: writes a file of events.
        steps: file with the last step.
    """

    def __init__(self, writer: "EventFileWriter", steps: StepFile) -> None:
        self._writer, self._steps = writer, steps
        self.last_step = self._seen = steps.read()

    def log(self, points: Sequence[Point]) -> None:
        """Add points as scalars."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._seen = points[-1].step
        self._steps.write(self._seen)
        for point in points:
            values = []
            for name, value in point.metrics.items():
                values.append(Summary.Value(tag=name, simple_value=value))
            self._add(Summary(value=values), point.step, point.at)
        self._writer.flush()

    def summarise(self, figures: Mapping[str, Scalar]) -> None:
        """Write results as a table of text."""
        rows = [f"| {name} | {_cell(value)} |" for name, value in figures.items()]
        self.add_document("results", "\n".join(["| result | value |", "|---|---|", *rows]))

    def add_document(self, name: str, text: str) -> None:
        """Write a text. TensorBoard shows it as Markdown."""
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.plugins.text.plugin_data_pb2 import TextPluginData

        # Other files are shown as they are.
        if not text.startswith("| "):
            text = "\n".join("    " + line for line in text.splitlines())
        # The functions of TensorBoard that make a text need TensorFlow.
        content = TextPluginData(version=0).SerializeToString()
        plugin = SummaryMetadata.PluginData(plugin_name="text", content=content)
        tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode()])
        value = Summary.Value(tag=name, metadata=SummaryMetadata(plugin_data=plugin), tensor=tensor)
        self._add(Summary(value=[value]), max(0, self._seen), None)
        self._writer.flush()

    def end(self, state: RunState) -> None:
        """Close the file."""
        self._writer.close()

    def _add(self, summary: "Summary", step: int, at: float | None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(
            Event(wall_time=time.time() if at is None else at, step=step, summary=summary)
        )


def _cell(value: Scalar) -> str:
    """Return a value as a cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def _view(place: str) -> str:
    return f"tensorboard --logdir {shlex.quote(place)}"


register(
    TrackerEntry(
        "tensorboard",
        "TensorBoard",
        order=4,
        packages=("tensorboard",),
        minimum="2.20",
        schemes=(),
        remote=(),
        open=open_tracker,
        check=accept,
        view=_view,
    )
)
