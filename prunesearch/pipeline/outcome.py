"""The outcome of a search: its best candidate, compared with the dense model."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NoReturn

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from prunesearch.cache.location import shown
from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.config.recipe import Recipe
from prunesearch.errors import RunError
from prunesearch.evaluation.scalarization import TrialScalarizer
from prunesearch.models.sizes import Sizes
from prunesearch.objectives.registry import names_with
from prunesearch.pipeline.prepared_study import PreparedStudy
from prunesearch.pipeline.search_loop import SearchResult
from prunesearch.pipeline.searched_scores import SearchedScores, remember, scores_of
from prunesearch.pipeline.session import Session, require
from prunesearch.pipeline.winner_latency import winner_latency
from prunesearch.report.results import Cost, PairedDifference, ScoredModel, SearchReport
from prunesearch.runtime.json_values import JsonObject
from prunesearch.studies import persistence, selection
from prunesearch.studies.pareto_knee import knee
from prunesearch.studies.recommendation import Recommendation
from prunesearch.studies.sources import SourceShares, source_shares
from prunesearch.studies.summary import TrialSummary, summarise_trial
from prunesearch.studies.warm_start_source import WarmStartSource, source_in
from prunesearch.units import noun_for


@dataclass(frozen=True)
class SearchOutcome:
    """Result of a search.

    Attributes:
        study: name of the study.
        sampler: name of the sampler.
        trials: number of trials in the study.
        dense, best: evaluations of the dense model and of the study's best candidate. For a Pareto
            study, the best is the knee of its front, which saves most for the quality it loses.
        value: first value of the best trial.
        front: a Pareto study's non-dominated trials, best quality first; empty for
            other studies.
        dense_ms, best_ms: latency of one prefill in milliseconds.
        latency_measured: True if the latencies were measured. They are predicted if weights are
            streamed.
        lost: share of the dense model's quality that the best candidate lost (see
            `selection.quality_lost`).
        paired: difference between both models on the same documents of a task; None for other
            objectives.
        result: counts of this run.
        damaged: number of damaged cache entries that were computed again.
        sizes: parameters and bytes of the model's parts.
        seconds: wall time of the whole run.
        ranked: candidates of the study, best first.
        maximize: True if a larger `value` is better.
        sources: sources of the candidates; None if no language model was asked.
        warm_start: where prior knowledge comes from, or None.
        block_code: how blocks ran (see `BlockCode.name`); None if workers scored, or nothing was
            computed.
        recommendation: how the best trial was decided; None if its value is the best.
    """

    study: str
    sampler: str
    trials: int
    dense: Evaluation
    best: Evaluation
    value: float
    front: tuple[TrialSummary, ...]
    dense_ms: float
    best_ms: float
    latency_measured: bool
    lost: float
    paired: PairedDifference | None
    result: SearchResult
    damaged: int
    sizes: Sizes
    seconds: float
    ranked: tuple[LayerSubset, ...]
    maximize: bool
    sources: SourceShares | None = None
    warm_start: WarmStartSource | None = None
    block_code: str | None = None
    recommendation: Recommendation | None = None

    @property
    def expected(self) -> float:
        """Value that the best trial is expected to have: its posterior mean where scores are noisy,
        else its value.
        """
        return self.value if self.recommendation is None else self.recommendation.best.estimate

    def is_better_than(self, other: "SearchOutcome") -> bool:
        """Return whether the best trial has a better value than that of another outcome."""
        if self.maximize:
            return self.expected > other.expected
        return self.expected < other.expected


def outcome_of(
    ready: PreparedStudy,
    session: Session,
    dense: Evaluation,
    result: SearchResult,
    start: float,
    recommendation: Recommendation | None = None,
) -> SearchOutcome:
    """Return the outcome of a finished search.

    Args:
        ready: the study.
        session: model, objective and engine of the search.
        dense: evaluation of the dense model.
        result: counts of this run.
        start: time at which the run began, as `time.perf_counter` returns it.
        recommendation: how the best trial was decided.

    Raises:
        RunError: the study has no result.
    """
    name = ready.study.study_name
    ranked = selection.recommended_trials(ready.study)
    if not ranked:
        _refuse(ready.study, result)
    # The best trial, or the knee and the whole front of a Pareto study.
    chosen, front = ranked[0], list[TrialSummary]()
    if ready.recipe.search.is_pareto:
        chosen = knee_of(ranked, ready.scalarizer, ready.scalarizer.values(dense))
        front = [summarise_trial(trial) for trial in ranked]
    best = require(*session.engine.evaluate_now([ready.space.from_params(chosen.params)]))
    # Measure its latency against the dense model's.
    measured = not session.loaded.layers.streamed_once
    if measured:
        dense_ms, best_ms = winner_latency(ready.study, session.loaded.model, best.candidate)
    else:
        # Streamed weights: the latencies are predicted.
        latency = ready.scalarizer.latency
        dense_ms, best_ms = latency.predict(), latency.predict(best.candidate)
    # Losses on each document, for the report and for later comparisons with other studies.
    on_documents = ready.recipe.objective.name in names_with("needs_task")
    scores = scores_of(session, dense, best)
    if scores is not None:
        scored = [("dense", dense, scores.dense), ("winner", best, scores.best)]
        remember(ready.study, ready.recipe, session, ready.scalarizer, scored)
    return SearchOutcome(
        study=name,
        sampler=ready.recipe.search.sampler,
        trials=len(ready.study.get_trials(deepcopy=False)),
        dense=dense,
        best=best,
        value=float(chosen.values[0]),
        front=tuple(front),
        dense_ms=dense_ms,
        best_ms=best_ms,
        latency_measured=measured,
        lost=selection.quality_lost(ready.study, chosen, relative=True),
        paired=_paired(session, scores) if on_documents else None,
        result=result,
        damaged=session.cache.damaged,
        sizes=session.loaded.sizes,
        seconds=time.perf_counter() - start,
        ranked=tuple(ready.space.from_params(trial.params) for trial in ranked),
        maximize=ready.study.directions[0] == StudyDirection.MAXIMIZE,
        sources=source_shares(ready.study.get_trials(deepcopy=False)),
        warm_start=source_in(ready.study),
        block_code=session.engine.block_code if result.computed else None,
        recommendation=recommendation,
    )


def _refuse(study: Study, result: SearchResult) -> NoReturn:
    """Raise the error of a search without a result."""
    name = study.study_name
    if not result.failed:
        count = len(study.get_trials(deepcopy=False))
        raise RunError(
            f"study {name!r} has {count} {noun_for(count, 'trial')} and no result yet: run it "
            f"again with more `trials`"
        )
    reason = persistence.last_failure(study)
    none = noun_for(
        result.failed,
        "the only candidate could not",
        f"none of the {result.failed} candidates could",
    )
    raise RunError(f"{none} be scored ({reason}); the study {name!r} is kept")


def knee_of(
    front: Sequence[FrozenTrial], scalarizer: TrialScalarizer, dense: Sequence[float]
) -> FrozenTrial:
    """Return the knee of a study's front, seen from the dense model.

    Args:
        front: trials of the front, the best quality first.
        scalarizer: values of the study.
        dense: values of the dense model.
    """
    losses = [scalarizer.losses(trial.values) for trial in front]
    return front[knee(losses, scalarizer.losses(dense))]


def _paired(session: Session, scores: SearchedScores | None) -> PairedDifference | None:
    """Return the metric's mean difference, best - dense, over the same documents of a task.

    Returns:
        The difference with its standard error; None if the metric has no value per document.
    """
    if scores is None:
        return None
    # Losses are minimised; the difference is that of the metric.
    sign = -1.0 if session.objective.maximize else 1.0
    differences = [sign * (b - a) for a, b in zip(scores.dense, scores.best, strict=True)]
    if len(differences) < 2:
        return None
    return PairedDifference(
        metric=session.objective.metric,
        documents=len(differences),
        difference=statistics.fmean(differences),
        stderr=statistics.stdev(differences) / math.sqrt(len(differences)),
    )


def facts_of(recipe: Recipe, outcome: SearchOutcome) -> JsonObject:
    """Return the facts about a search that an export's manifest contains."""
    return {
        "study": outcome.study,
        "trials": outcome.trials,
        "recipe": recipe.portable().document(),
        "metrics": dict(outcome.best.metrics),
        "stderr": dict(outcome.best.stderr),
        "dense_metrics": dict(outcome.dense.metrics),
    }


def search_report(outcome: SearchOutcome, storage: str) -> SearchReport:
    """Return the report of an outcome.

    Args:
        outcome: the outcome.
        storage: Optuna RDB URL. It is shown without a password.
    """
    return SearchReport(
        study=outcome.study,
        sampler=outcome.sampler,
        storage=shown(storage),
        trials=outcome.trials,
        value=outcome.value,
        front=outcome.front,
        dense=_scored(outcome, outcome.dense, outcome.dense_ms),
        best=_scored(outcome, outcome.best, outcome.best_ms),
        latency_measured=outcome.latency_measured,
        lost=outcome.lost,
        paired=outcome.paired,
        **asdict(outcome.result),
        damaged=outcome.damaged,
        seconds=round(outcome.seconds, 3),
        sources=outcome.sources,
        warm_start=outcome.warm_start,
        block_code=outcome.block_code,
        recommendation=outcome.recommendation,
    )


def _scored(outcome: SearchOutcome, evaluation: Evaluation, latency_ms: float) -> ScoredModel:
    candidate = evaluation.candidate
    cost = Cost(
        outcome.sizes.params(candidate), outcome.sizes.bytes(candidate), round(latency_ms, 3)
    )
    return ScoredModel(candidate.text, dict(evaluation.metrics), dict(evaluation.stderr), cost)
