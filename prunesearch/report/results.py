"""Results of commands, as plain values. `to_json` turns them into documents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from pydantic import TypeAdapter, ValidationError

from prunesearch.config.recovery import HealRecipe
from prunesearch.errors import InputError
from prunesearch.export.results import Exported, ExportedGguf, PrintedRecipe
from prunesearch.runtime.json_values import JsonObject, json_as
from prunesearch.studies.recommendation import Recommendation
from prunesearch.studies.sources import SourceShares
from prunesearch.studies.summary import TrialSummary
from prunesearch.studies.warm_start_source import WarmStartSource


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
    sources: SourceShares | None = field(default=None, metadata=json_as(omit_none=True))
    block_code: str | None = field(default=None, metadata=json_as(omit_none=True))
    recommendation: Recommendation | None = field(default=None, metadata=json_as(omit_none=True))
    warm_start: WarmStartSource | None = field(default=None, metadata=json_as(omit_none=True))


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
class GapReport:
    """Result of compensating one gap. The fields are those of `gaps.GapResult`."""

    dropped: str
    method: str
    alpha: float | None
    ridge: float | None
    loss_before: float
    loss_after: float
    seconds: float


@dataclass(frozen=True)
class WidthReport:
    """Result of compensating one narrowed layer.

    Attributes:
        layer: index of the layer.
        channels, groups: number of channels and of KV groups that it keeps.
        method: sublayers that were fitted.
        attention_ridge, mlp_ridge: ridge strengths; None if the sublayer was not changed.
        attention_error, mlp_error: distance from the whole output before and after, squared, as a
            share of the output's squares; None if the sublayer was not changed.
        seconds: time that it took.
    """

    layer: int
    channels: int
    groups: int
    method: str
    attention_ridge: float | None
    attention_error: Sequence[float] | None
    mlp_ridge: float | None
    mlp_error: Sequence[float] | None
    seconds: float


@dataclass(frozen=True)
class CompensationReport:
    """Result of a compensation.

    Attributes:
        dropped: the dropped layers.
        gaps: results of the gaps, in order.
        dense, pruned, compensated: metrics of the three models on the held-out tokens.
        recovered: recovered share of the cross-entropy that pruning added.
        cached: True if a stored result was applied.
        widths: results of the narrowed layers, in order; None if no layer is narrowed.
    """

    dropped: str
    gaps: Sequence[GapReport]
    dense: Mapping[str, float]
    pruned: Mapping[str, float]
    compensated: Mapping[str, float]
    recovered: float
    cached: bool
    widths: Sequence[WidthReport] | None = field(default=None, metadata=json_as(omit_none=True))


@dataclass(frozen=True)
class CompensatedReport:
    """Result of a compensation and its export."""

    compensation: CompensationReport
    export: Exported


@dataclass(frozen=True)
class FinalistReport:
    """Result of a finalist. The fields are those of `finalists.Finalist`."""

    candidate: str
    place: int
    pruned: float
    compensated: float | None
    healed: float
    seconds: float


@dataclass(frozen=True)
class TuningReport:
    """Result of a tuning study. The fields are those of `tuning.Tuned`.

    The recipe has no folders of this machine.
    """

    study: str
    params: Mapping[str, float]
    value: float
    trials: int
    pruned: int
    computed: int
    recipe: HealRecipe


Curve = tuple[tuple[int, float | None], ...]
"""Losses by step. A loss that is not finite is None."""


@dataclass(frozen=True)
class HealedReport:
    """Result of a healing. The fields are those of `run_folder.Healed`.

    The report of an earlier export has no curves.
    """

    digest: str
    steps: int
    planned: int
    best_step: int
    tokens: int
    seconds: float
    peak_memory: int
    stopped_early: bool
    diverged: bool
    merge_difference: float | None
    before: float
    after: float
    cached: bool = False
    resumed_from: int = 0
    training_loss: Curve | None = field(default=None, metadata=json_as(omit_none=True))
    watched_loss: Curve | None = field(default=None, metadata=json_as(omit_none=True))
    held_out_loss: Curve | None = field(default=None, metadata=json_as(omit_none=True))

    def without_curves(self) -> Self:
        """Return the report without the losses by step, as a manifest has it."""
        return replace(self, training_loss=None, watched_loss=None, held_out_loss=None)


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
    finalists: Sequence[FinalistReport] | None = field(
        default=None, metadata=json_as(omit_none=True)
    )
    dropped: str = ""
    tuning: TuningReport | None = field(default=None, metadata=json_as(omit_none=True))
    recipe: HealRecipe | None = field(default=None, metadata=json_as(omit_none=True))
    losses: Mapping[str, float] | None = field(default=None, metadata=json_as(omit_none=True))
    compensation: CompensationReport | None = field(default=None, metadata=json_as(omit_none=True))
    work: str | None = field(default=None, metadata=json_as(omit_none=True))
    healed: HealedReport | None = field(default=None, metadata=json_as(omit_none=True))

    @classmethod
    def of_earlier(cls, stored: JsonObject) -> "RecoveryReport | None":
        """Read the report of an earlier export. Nothing was trained now, so it counts as cached.

        The result is None if this version cannot read the report.
        """
        try:
            report = TypeAdapter(cls).validate_python(stored)
        except (ValidationError, InputError):
            return None
        if report.healed is None:
            return report
        return replace(report, healed=replace(report.healed, cached=True))


@dataclass(frozen=True)
class HealReport:
    """Result of a recovery and its export.

    Attributes:
        model: name of the dense model.
        out: folder of the checkpoint.
        recovery: the stages of the recovery, of this command or of an earlier, equal one.
        export: the export. None if an equal one existed already.
    """

    model: str
    out: str
    recovery: RecoveryReport = field(metadata=json_as(inline=True))
    export: Exported | None


@dataclass(frozen=True)
class ProtocolReport:
    """What a published protocol of perplexity read.

    Attributes:
        name: name of the protocol.
        papers: who measures in this way.
        windows, window: number of windows, and tokens of a window.
        rows, tokens: rows and tokens of the text, with those after the last window.
        text: what was read, in words.
        comparable: True if the text is the published one.
    """

    name: str
    papers: str
    windows: int
    window: int
    rows: int
    tokens: int
    text: str
    comparable: bool


@dataclass(frozen=True)
class EvaluationReport:
    """Metrics of a model, with standard errors, number of parameters and bytes.

    `cached` is True if the evaluation was found in the cache. `protocol` is None unless a published
    protocol was measured.
    """

    model: str
    dropped: str
    metrics: Mapping[str, float]
    stderr: Mapping[str, float]
    params: int
    bytes: int
    cached: bool
    protocol: ProtocolReport | None = field(default=None, metadata=json_as(omit_none=True))


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
