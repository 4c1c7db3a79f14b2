"""The facts that the manifest and the card of an export hold about its candidate."""

from collections.abc import Mapping
from dataclasses import replace

from prunesearch.pipeline.state import Selected, State
from prunesearch.recovery.earlier_export import FACT
from prunesearch.report.results import RecoveryReport
from prunesearch.runtime.json_values import Json, JsonObject, to_json

_MEASURED = ("metrics", "stderr", "dense_metrics")


def facts_for(state: State, choice: Selected) -> JsonObject:
    """Return the facts about a selected candidate after all stages that changed its weights."""
    if state.recovery is not None:
        return _recovered(choice.facts, state.recovery)
    done = state.compensation
    if done is None:
        return choice.facts
    return {
        **choice.facts,
        "metrics": dict(done.compensated),
        "stderr": {},
        "dense_metrics": dict(done.dense),
        "compensation": to_json(done),
    }


def _recovered(known: JsonObject, report: RecoveryReport) -> JsonObject:
    """Return the facts about a recovered candidate.

    The metrics of the search were measured before the recovery, so they get another name.
    """
    # The run folder is a path of this machine.
    kept = replace(report, work=None)
    # The metrics of the last stage that changed weights describe the export.
    metrics: Mapping[str, Json] = {}
    dense: Mapping[str, Json] = {}
    if report.compensation is not None:
        metrics, dense = report.compensation.compensated, report.compensation.dense
    if report.healed is not None:
        assert report.losses is not None
        kept = replace(kept, healed=report.healed.without_curves())
        metrics = {"held-out cross-entropy": report.healed.after}
        dense = {"held-out cross-entropy": report.losses["dense"]}
    others = {name: value for name, value in known.items() if name not in _MEASURED}
    return {
        **others,
        "metrics_before_healing": known.get("metrics", {}),
        "metrics": dict(metrics),
        "dense_metrics": dict(dense),
        FACT: to_json(kept),
    }
