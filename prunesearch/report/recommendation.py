"""Sentences about how the best trial of a noisy study was decided."""

import json
from collections.abc import Mapping

from prunesearch.report.tables import label
from prunesearch.runtime.json_values import Json
from prunesearch.studies.recommendation import (
    RECOMMENDATION_ATTR,
    Recommendation,
    ScoredFinalist,
    read_recommendation,
)
from prunesearch.units import plural


def decided(made: Recommendation | None, metric: str) -> list[str]:
    """Return one line about the chosen trial, one about the naive best, and a warning if the metric
    cannot tell candidates apart; nothing without a recommendation.

    Args:
        made: how the best trial was decided.
        metric: name of the value.
    """
    if made is None:
        return []
    lines = [_chosen(made, metric), _naive(made, metric)]
    if made.remark:
        event = "confirming ended early" if made.spent else "not confirmed"
        lines.append(f"{event}: {made.remark}")
    if made.indistinct:
        assert made.equal_probability is not None
        lines.append(indistinct(metric, made.documents, made.compared, made.equal_probability))
    return lines


def decided_in(result: Mapping[str, Json]) -> list[str]:
    """Return the same lines for the JSON document of a search; nothing if it has no recommendation.

    Args:
        result: document of a search, as ``--json`` prints it. A server may have sent it.
    """
    stored = result.get("recommendation")
    trials = stored.get("trials") if isinstance(stored, Mapping) else None
    if not isinstance(trials, int):
        return []
    made = read_recommendation({RECOMMENDATION_ATTR: json.dumps(stored)}, trials)
    paired = result.get("paired")
    metric = paired.get("metric") if isinstance(paired, Mapping) else None
    return decided(made, metric if isinstance(metric, str) else "value")


def indistinct(metric: str, documents: int, trials: int, probability: float) -> str:
    """Return the warning that a metric cannot tell candidates apart.

    Args:
        metric: name of the metric.
        documents: number of documents that each trial was scored on.
        trials: number of trials that were compared.
        probability: probability of such a scatter if all candidates were equal.
    """
    return (
        f"warning: {label(metric)} of {documents:,} documents cannot tell the first {trials} "
        f"trials apart: they scatter no more than equal candidates would (p = {probability:.2g}). "
        f"Use more documents (--limit), or search by KL (--objective kl)"
    )


def interval(one: ScoredFinalist) -> str:
    """Return the 95 % interval of a finalist's value."""
    return f"95 % interval {one.low:.4f} to {one.high:.4f}"


def _chosen(made: Recommendation, metric: str) -> str:
    """Describe the chosen trial."""
    best = made.best
    if not made.confirmed or best.fresh is None:
        return (
            f"recommended: trial {best.trial}, expected {label(metric)} {best.estimate:.4f} "
            f"({interval(best)}), measured {best.value:.4f}; it was not confirmed on further "
            f"documents"
        )
    text = (
        f"confirmed: trial {best.trial}, {label(metric)} {best.fresh:.4f} ({interval(best)}) on "
        f"{plural(best.documents, 'further document')}"
    )
    if made.separated:
        return f"{text}; all other finalists are significantly worse"
    return f"{text}; the next best is not significantly worse"


def _naive(made: Recommendation, metric: str) -> str:
    """Describe the trial with the best measured value."""
    naive = made.naive_best
    if made.naive == made.chosen:
        return f"it also has the best measured value, {naive.value:.4f}"
    text = f"naive best: trial {naive.trial}, {label(metric)} {naive.value:.4f}"
    text += f" on the {plural(made.documents, 'document')} of the search"
    if naive.fresh is None:
        return f"{text}, expected {naive.estimate:.4f}"
    return f"{text}, {naive.fresh:.4f} on {plural(naive.documents, 'further one')}"
