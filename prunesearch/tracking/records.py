"""Records: what a tracker is told, as plain values that pass through a pipe as JSON.

A record belongs to a run of the tracker, which the identifier of the run names. The first record of
a run is a `RunStart`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from prunesearch.events import Scalar

RunKind = Literal["search", "tuning", "healing"]
"""What a run of a tracker follows."""
RunState = Literal["finished", "stopped", "failed"]
"""How a command ended: by itself, by a signal, or with an error."""


@dataclass(frozen=True)
class Point:
    """The metrics of one step.

    Attributes:
        step: number of the step. Steps of a run begin at 1, or at 0 for a healing.
        at: time of the step in seconds since 1970.
        metrics: finite numbers by name.
    """

    step: int
    at: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class RunStart:
    """A run begins, or is continued if the tracker has it already.

    Attributes:
        run: identifier of the run. It is the same whenever the same work is continued.
        name: name that people see.
        work: what the run follows.
        group: name of the study that the run belongs to, which several runs may have in common.
        parameters: parameters by name.
    """

    run: str
    name: str
    work: RunKind
    group: str
    parameters: Mapping[str, Scalar]
    kind: Literal["start"] = "start"


@dataclass(frozen=True)
class RunPoints:
    """Points of a run, in the order of their steps."""

    run: str
    points: tuple[Point, ...]
    kind: Literal["points"] = "points"


@dataclass(frozen=True)
class RunSummary:
    """Results of a run, such as its best candidate. Later values replace earlier ones."""

    run: str
    figures: Mapping[str, Scalar]
    kind: Literal["summary"] = "summary"


@dataclass(frozen=True)
class RunDocument:
    """A text file that belongs to a run, such as its recipe.

    Attributes:
        run: identifier of the run.
        name: name of the file.
        text: contents of the file.
    """

    run: str
    name: str
    text: str
    kind: Literal["document"] = "document"


@dataclass(frozen=True)
class RunEnd:
    """Nothing more comes of a run in this command."""

    run: str
    state: RunState
    kind: Literal["end"] = "end"


Record: TypeAlias = RunStart | RunPoints | RunSummary | RunDocument | RunEnd
"""What a tracker is told."""


@dataclass(frozen=True)
class DeliveryAnswer:
    """What the process of a tracker says about a batch of records.

    An answer with fewer records and no failure is followed by another one.

    Attributes:
        done: number of records that the tracker has taken, from the first one on.
        failure: why the next record was not taken, in one line. Empty if all were.
    """

    done: int
    failure: str = ""


@dataclass(frozen=True)
class TrackerOrder:
    """The first line that the process of a tracker reads.

    Attributes:
        tracker: name of the tracker.
        place: folder or URI that it writes to.
        remote: whether the place is reached over a network.
    """

    tracker: str
    place: str
    remote: bool = field(default=False)


_BATCH: TypeAdapter[list[Record]] = TypeAdapter(
    list[Annotated[Record, Field(discriminator="kind")]]
)


def points_in(record: Record) -> int:
    """Return the number of points of a record. Another record counts as one."""
    return len(record.points) if isinstance(record, RunPoints) else 1


def written(batch: Sequence[Record]) -> str:
    """Return a batch of records as one line of JSON."""
    documents = []
    for record in batch:
        documents.append(asdict(record))
    return json.dumps(documents, separators=(",", ":"), allow_nan=False)


def read(line: str) -> list[Record]:
    """Return the batch of a line that `written` has made."""
    return _BATCH.validate_json(line)
