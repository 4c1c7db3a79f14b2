"""What experiment trackers are told about a search and the stages after it, as events."""

import json
from typing import TYPE_CHECKING

import yaml

from prunesearch import events
from prunesearch.events import Scalar
from prunesearch.export.manifest import MANIFEST
from prunesearch.export.results import Exported
from prunesearch.pipeline.outcome import SearchOutcome
from prunesearch.pipeline.prepared_study import PreparedStudy, scored_identity
from prunesearch.pipeline.session import Session
from prunesearch.runtime.json_values import to_json
from prunesearch.studies.tracker_run import run_of, told_trials
from prunesearch.tracking.parameters import flat, versions

if TYPE_CHECKING:
    from prunesearch.pipeline.state import State


def study_opened(session: Session, ready: PreparedStudy) -> events.StudyOpened:
    """Return the event of a study that is about to be searched, and give it an identifier."""
    recipe, study = ready.recipe.search_only().portable(), ready.study
    identity = scored_identity(session, ready.recipe)
    parameters: dict[str, Scalar] = {"study": study.study_name, "metric": ready.scalarizer.metric}
    parameters.update(flat(recipe.document()))
    parameters.update({"layers": session.loaded.n_layers, "candidates": ready.space.size})
    # The digests tell which runs can be compared.
    for name in ("model content", "data content", "numerics"):
        parameters.update(flat({name: identity[name]}))
    return events.StudyOpened(
        study=study.study_name,
        kind="search",
        run=run_of(study),
        parameters={**parameters, **versions()},
        recipe=yaml.safe_dump(recipe.chosen(), sort_keys=False, allow_unicode=True),
        maximize=ready.scalarizer.maximize,
        earlier=told_trials(study),
    )


def study_finished(outcome: SearchOutcome) -> events.StudyFinished:
    """Return the event of a study that has its trials: its best candidate and what it costs."""
    best, sizes = outcome.best, outcome.sizes
    figures: dict[str, Scalar] = {
        "best_dropped": best.candidate.text,
        "best.value": outcome.value,
        "best.params": sizes.params(best.candidate),
        "best.bytes": sizes.bytes(best.candidate),
        "best.latency_ms": outcome.best_ms,
        "dense.params": sizes.params(outcome.dense.candidate),
        "dense.bytes": sizes.bytes(outcome.dense.candidate),
        "dense.latency_ms": outcome.dense_ms,
        "best.quality_lost": outcome.lost,
        "trials": outcome.trials,
    }
    for kind, evaluation in (("best", best), ("dense", outcome.dense)):
        for name, value in evaluation.metrics.items():
            figures[f"{kind}.{name}"] = value
    if outcome.front:
        figures["front"] = len(outcome.front)
    return events.StudyFinished(outcome.study, figures)


def tell_results(state: "State") -> None:
    """Publish the report of a command, and the manifests of its exports."""
    if not state.request.options.track:
        return
    exports = [made for made in state.exported if isinstance(made, Exported)]
    for made in exports:
        name = "manifest.json" if len(exports) == 1 else f"manifest-{made.folder.name}.json"
        text = (made.folder / MANIFEST).read_text(encoding="utf-8")
        events.tell(events.DocumentMade(name, text))
    report = json.dumps(to_json(state.report), indent=1, ensure_ascii=False)
    events.tell(events.DocumentMade("report.json", report))
