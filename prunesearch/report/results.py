"""Results of commands, as plain values. `to_json` turns them into documents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prunesearch.export.results import Exported, ExportedGguf, PrintedRecipe
from prunesearch.runtime.json_values import Json, json_as
from prunesearch.studies.summary import TrialSummary


@dataclass(frozen=True)
class Cost:
    """Size and speed of a model: number of parameters, bytes, and milliseconds of one prefill."""

    params: int
    bytes: int
    latency_ms: float


@dataclass(frozen=True)
class ScoredModel:
    """A candidate with its metrics, their standard errors, and its cost."""

    dropped: str
    metrics: Mapping[str, float]
    stderr: Mapping[str, float]
    cost: Cost


@dataclass(frozen=True)
class PairedDifference:
    """Mean difference of a metric, best - dense, over the same documents of a task.

    Attributes:
        metric: name of the metric.
        documents: number of documents.
        difference: the mean difference.
        stderr: standard error of the difference.
    """

    metric: str
    documents: int
    difference: float
    stderr: float


@dataclass(frozen=True)
class SearchReport:
    """Result of a search. The fields are those of `pipeline.outcome.SearchOutcome`."""

    study: str
    sampler: str
    storage: str
    trials: int
    value: float
    front: Sequence[TrialSummary]
    dense: ScoredModel
    best: ScoredModel
    latency_measured: bool
    lost: float
    paired: PairedDifference | None
    hits: int
    computed: int
    failed: int
    adopted: int
    missing: int
    damaged: int
    seconds: float


@dataclass(frozen=True)
class SearchesReport:
    """Results of several searches that ran at once."""

    searches: Sequence[SearchReport]


@dataclass(frozen=True)
class RunReport:
    """Result of a search and the export of its best candidate."""

    search: SearchReport = field(metadata=json_as(inline=True))
    export: Exported


@dataclass(frozen=True)
class RunsReport:
    """Results of several searches, with one export for each number of dropped layers."""

    searches: Sequence[SearchReport]
    exports: Sequence[Exported]


@dataclass(frozen=True)
class CompensationReport:
    """Result of a compensation.

    Attributes:
        dropped: the dropped layers.
        gaps: results of the gaps, in order.
        dense, pruned, compensated: metrics of the three models on the held-out tokens.
        recovered: recovered share of the log-perplexity that pruning lost.
        cached: True if a stored result was applied.
    """

    dropped: str
    gaps: Sequence[Mapping[str, Json]]
    dense: Mapping[str, float]
    pruned: Mapping[str, float]
    compensated: Mapping[str, float]
    recovered: float
    cached: bool


@dataclass(frozen=True)
class CompensatedReport:
    """Result of a compensation and its export."""

    compensation: CompensationReport
    export: Exported


@dataclass(frozen=True)
class RecoveryReport:
    """Results of the stages that recover a candidate. A stage that did not run is None.

    Attributes:
        digest: digest of everything that determines the recovered model.
        finalists: results of the finalists, best first.
        dropped: layers of the chosen candidate.
        tuning: result of the tuning study.
        recipe: recipe of the healing, with tuned parameters and without folders of this machine.
        losses: held-out cross-entropy of the ``dense`` and the ``pruned`` model.
        compensation: result of the compensation.
        work: run folder of the healing.
        healed: result of the healing.
    """

    digest: str
    finalists: Sequence[Mapping[str, Json]] | None = field(
        default=None, metadata=json_as(omit_none=True)
    )
    dropped: str = ""
    tuning: Mapping[str, Json] | None = field(default=None, metadata=json_as(omit_none=True))
    recipe: Mapping[str, Json] | None = field(default=None, metadata=json_as(omit_none=True))
    losses: Mapping[str, float] | None = field(default=None, metadata=json_as(omit_none=True))
    compensation: CompensationReport | None = field(default=None, metadata=json_as(omit_none=True))
    work: str | None = field(default=None, metadata=json_as(omit_none=True))
    healed: Mapping[str, Json] | None = field(default=None, metadata=json_as(omit_none=True))


@dataclass(frozen=True)
class HealReport:
    """Result of a recovery and its export.

    Attributes:
        model: name of the dense model.
        out: folder of the checkpoint.
        recovery: the stages of the recovery; JSON values of an earlier, equal export.
        export: the export. None if an equal one existed already.
    """

    model: str
    out: str
    recovery: RecoveryReport | Mapping[str, Json] = field(metadata=json_as(inline=True))
    export: Exported | None


@dataclass(frozen=True)
class EvaluationReport:
    """Metrics of a model, with standard errors, number of parameters and bytes.

    `cached` is True if the evaluation was found in the cache.
    """

    model: str
    dropped: str
    metrics: Mapping[str, float]
    stderr: Mapping[str, float]
    params: int
    bytes: int
    cached: bool


@dataclass(frozen=True)
class RecoveredReport:
    """Result of a search, the recovery of its best candidate, and the evaluation of the export."""

    search: SearchReport = field(metadata=json_as(inline=True))
    heal: HealReport = field(metadata=json_as(inline=True))
    evaluation: EvaluationReport | None = field(default=None, metadata=json_as(omit_none=True))


@dataclass(frozen=True)
class DemoReport:
    """Result of the demo: the searches, the best of them, and both models on held-out text."""

    model: str
    storage: str
    cache: str
    searches: Sequence[SearchReport]
    best: ScoredModel
    dense: Mapping[str, float]
    pruned: Mapping[str, float]
    export: Exported
    seconds: float


Report = (
    SearchReport
    | SearchesReport
    | RunReport
    | RunsReport
    | CompensatedReport
    | HealReport
    | RecoveredReport
    | EvaluationReport
    | DemoReport
    | Exported
    | ExportedGguf
    | PrintedRecipe
)
"""Result of a command that runs stages."""
