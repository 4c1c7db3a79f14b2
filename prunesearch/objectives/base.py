"""The objective protocol, and the values that go in and out of an objective.

An objective splits its data into chunks and scores candidates on each chunk. The cache keeps the
result of one candidate on one chunk. The objective turns the results of all chunks into metrics.

This module is imported without torch, see `objectives.registry`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from prunesearch.candidate import LayerSubset, named_layers
from prunesearch.errors import ScoringError

if TYPE_CHECKING:
    from prunesearch.execution.shared_forward import Forward

BUILTIN_TEXT = "builtin"
"""Name of the calibration text that ships with the package (see `objectives.calibration_data`)."""

Row = list[float] | str
"""The result of one item: numbers (a truth value is 0 or 1), or a generated text.

An item is a calibration sequence, or a request of a task.
"""
Identity = dict[str, str | int | dict[str, str]]
"""Description of data and of a computation, which becomes part of a key of the cache."""


@dataclass(frozen=True)
class Chunk:
    """A piece of an objective's data.

    Attributes:
        index: position among the objective's chunks.
        identity: description of the data and of the computation, as JSON values. The cache's key is
            made of the weights, the candidate and this.
        tokens: number of tokens in one candidate's forward pass over the chunk.
        cacheable: True if the results depend on `identity` alone. Generated text that is sampled
            differs every time, so its results are not stored.
    """

    index: int
    identity: Identity
    tokens: int
    cacheable: bool = True


@dataclass(frozen=True)
class ChunkWork:
    """A chunk to score, and the candidates that have no result on it yet."""

    chunk: Chunk
    candidates: Sequence[LayerSubset]


Work = Sequence[ChunkWork]
"""All chunks that are scored together, in order."""


@dataclass(frozen=True)
class ChunkResult:
    """The result of one candidate on one chunk.

    Attributes:
        chunk: the chunk.
        candidate: the candidate.
        rows: one row for each item of the chunk; empty if scoring failed.
        error: reason why scoring failed. None: it succeeded.
        saved_seconds: seconds of computing that the cache saved. None: this process computed the
            result.
    """

    chunk: Chunk
    candidate: LayerSubset
    rows: Sequence[Row] = ()
    error: ScoringError | None = None
    saved_seconds: float | None = None


@dataclass(frozen=True)
class Metrics:
    """Values and standard errors by metric name."""

    values: dict[str, float]
    stderr: dict[str, float] = field(default_factory=dict)


class Objective(Protocol):
    """Scores candidates of one model on fixed data."""

    metric: str
    """The metric that the search improves."""
    maximize: bool
    """True if a larger metric is better."""
    digest: str
    """Digest of the data, for the study's identity."""
    settings: Mapping[str, str | int]
    """Further settings that decide the metrics, for the study's identity."""

    @property
    def chunks(self) -> Sequence[Chunk]:
        """Chunks of the data, in order."""
        ...

    def score(self, work: Work, forward: "Forward") -> Iterator[ChunkResult]:
        """Score candidates on chunks together, and yield each result as soon as it is known."""
        ...

    def metrics(self, results: Sequence[Sequence[Row]]) -> Metrics:
        """Turn the results of all chunks into metrics."""
        ...

    def losses(self, results: Sequence[Sequence[Row]]) -> Sequence[float]:
        """Return the loss of each item (sequence or document) in the leading chunks. Races compare
        them.

        A smaller loss is better.

        Raises:
            InputError: the metric is not defined for single items.
        """
        ...


@runtime_checkable
class HasMargins(Protocol):
    """An objective whose items are answers, which are right or wrong by a margin."""

    def margins(self, results: Sequence[Sequence[Row]]) -> Sequence[float] | None:
        """Return the margin of each item in the leading chunks. It is above 0 where the answer is
        right, so the loss is -1.

        None: the searched metric has no margin.
        """
        ...


@runtime_checkable
class HasItems(Protocol):
    """An objective whose items can be compared with those of another objective."""

    def items(self) -> frozenset[str]:
        """Return a digest of the tokens of each item."""
        ...


@runtime_checkable
class HasDocuments(Protocol):
    """An objective on documents of tasks, of which there may be more than it reads."""

    @property
    def task_count(self) -> int:
        """Number of tasks that each give documents."""
        ...

    @property
    def further_documents(self) -> int:
        """Number of documents of each task after those that are read."""
        ...


def numbers_of(rows: Iterable[Row]) -> list[list[float]]:
    """Return rows of numbers as such.

    Raises:
        TypeError: a row is a text.
    """
    found: list[list[float]] = []
    for row in rows:
        if isinstance(row, str):
            raise TypeError(f"the row {row!r:.40} is a text and not a list of numbers")
        found.append(row)
    return found


def not_finite(candidate: LayerSubset) -> ScoringError:
    """Return the error of a candidate whose outputs are NaN or infinite."""
    return ScoringError(
        f"dropping {named_layers(candidate.text)} makes the model's output not finite"
    )
