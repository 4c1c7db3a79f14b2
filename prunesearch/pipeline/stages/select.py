"""Stage `select`: which candidate goes on, with the finalists' short healing.

The candidates come from the searches of this command, from an earlier study, or from the command
line. Then an equal export is looked for, so that a recovery is not repeated.
"""

from dataclasses import replace
from pathlib import Path

from prunesearch import events
from prunesearch.candidate import LayerSubset
from prunesearch.config.data import ORDER_TEXT
from prunesearch.config.names import portable_name
from prunesearch.export.checkpoint import check_destination, check_export_format
from prunesearch.export.companions import companions
from prunesearch.pipeline.data_checks import check_text
from prunesearch.pipeline.named_candidates import candidate_named
from prunesearch.pipeline.outcome import facts_of
from prunesearch.pipeline.searched_model import load_searched
from prunesearch.pipeline.session import load_for, space_of
from prunesearch.pipeline.stages.base import Stage
from prunesearch.pipeline.state import LayersSource, Request, Selected, State, StudySource
from prunesearch.pipeline.width_search import put_in_order_of
from prunesearch.recovery.earlier_export import digest_of, report_at
from prunesearch.recovery.finalists import diverse, rerank_by_healing
from prunesearch.report.results import FinalistReport, RecoveryReport
from prunesearch.runtime import stopping
from prunesearch.runtime.json_values import JsonObject
from prunesearch.studies import persistence, places, selection
from prunesearch.units import noun_for


def select(state: State) -> State:
    """Choose the candidate of each number of dropped layers, and find an equal export."""
    source = state.request.source
    selected: tuple[Selected, ...]
    if isinstance(source, StudySource):
        selected = (_from_study(state, source),)
    elif isinstance(source, LayersSource):
        selected = (_from_layers(state, source),)
    else:
        selected = _from_searches(state)
    state = replace(state, selected=selected)
    if state.request.recovery is None:
        return state
    with stopping.deferred():
        return _choose_among_finalists(state)


def _from_searches(state: State) -> tuple[Selected, ...]:
    """Select the best sampler's candidate for each number of dropped layers, or each target."""
    recipes, outcomes = state.request.recipes, state.outcomes
    selected = []
    for amount in dict.fromkeys(recipe.search.amount for recipe in recipes):
        found = [
            pair for pair in zip(recipes, outcomes, strict=True) if pair[0].search.amount == amount
        ]
        recipe, best = found[0]
        for other, outcome in found[1:]:
            if outcome.is_better_than(best):
                recipe, best = other, outcome
        facts = facts_of(recipe, best)
        if state.request.recovery is not None:
            # The metrics of the search do not describe the recovered model.
            facts = {name: value for name, value in facts.items() if name in ("study", "recipe")}
        out = state.request.folder_of(recipe)
        selected.append(Selected(best.best.candidate, best.ranked, facts, out))
    return tuple(selected)


def _from_study(state: State, source: StudySource) -> Selected:
    """Select a candidate of an earlier study, and load its model.

    Raises:
        StudyError: the study has no finished trial, or the model is not the one that was searched.
        ModelError: the model cannot be loaded.
    """
    # Select the trial, and load the model of the study.
    options, name = state.request.options, source.name
    study = persistence.load(persistence.open_storage(options.storage, create=False), name)
    trial = selection.choose(study, source.criteria)
    recipe = places.located(study, {"model": source.model}, needed=("model",))
    model = recipe.model.model_copy(update={"trust_remote_code": source.trust_remote_code})
    loaded = load_searched(study, recipe, model, options, named=source.model is not None)
    state.resources.keep(loaded)
    put_in_order_of(study, recipe, loaded, options)
    space = space_of(recipe.search, loaded)
    # The runners-up have a meaning only if there are no criteria of the user.
    others = [trial]
    if source.criteria == selection.SelectionCriteria():
        others = list(selection.recommended_trials(study))
    ranked = tuple(space.from_params(other.params) for other in others)
    facts: JsonObject = {
        "study": name,
        "trials": len(study.get_trials(deepcopy=False)),
        "recipe": recipe.portable().document(),
        **selection.figures(study, trial),
    }
    return Selected(space.from_params(trial.params), ranked, facts, _out(state.request))


def _from_layers(state: State, source: LayersSource) -> Selected:
    """Load a model, and select the candidate without the named layers."""
    loaded = state.resources.keep(load_for(source.model, state.request.options))
    candidate = candidate_named(source.layers, source.order, loaded, state.request.options)
    facts: JsonObject = {}
    if source.order is not None:
        data = source.order.data.model_dump(mode="json", include=set(ORDER_TEXT))
        calibration = portable_name(source.order.data.calibration)
        facts = {
            "order_text": {**data, "calibration": calibration},
            "order_tokens": source.order.tokens,
        }
    return Selected(candidate, (candidate,), facts, _out(state.request))


def _out(request: Request) -> Path | None:
    return None if request.export is None else request.export.out


def _choose_among_finalists(state: State) -> State:
    """Choose among the finalists by a short healing, unless an equal export exists already."""
    recovery, choice, loaded = state.request.recovery, state.choice, state.resources.loaded
    export = state.request.export
    assert recovery is not None
    assert export is not None
    assert choice.out is not None
    # Refuse what cannot be exported before any work is done.
    candidates = diverse(choice.ranked, recovery.finalists)
    for candidate in candidates:
        check_export_format(loaded.model.config, candidate, export.export_format)
    companions(loaded)
    # Look for an equal export.
    planned = None
    if recovery.heal is not None:
        planned = state.resources.plan(candidates[0], recovery.heal)
    digest = digest_of(loaded, candidates, recovery, planned)
    stored = report_at(choice.out)
    if stored is not None and stored["digest"] == digest:
        earlier = RecoveryReport.of_earlier(stored)
        if earlier is not None:
            return replace(state, earlier=earlier)
    check_destination(choice.out)
    # Heal the finalists for a few steps.
    report = RecoveryReport(digest)
    chosen = candidates[0]
    if len(candidates) > 1:
        chosen, finalists = _run_short_healings(state, candidates)
        report = replace(report, finalists=finalists)
    # The metrics of the search belong to the first candidate alone.
    facts = choice.facts
    if chosen != choice.ranked[0]:
        facts = {**facts, "metrics": {}}
    selected = replace(choice, candidate=chosen, facts=facts)
    report = replace(report, dropped=chosen.text)
    return replace(state, selected=(selected,), recovery=report)


def _run_short_healings(
    state: State, candidates: list[LayerSubset]
) -> tuple[LayerSubset, tuple[FinalistReport, ...]]:
    """Run the short healings. Return the candidate that heals best, and all results."""
    recovery = state.request.recovery
    assert recovery is not None
    steps = recovery.short.steps
    each = f"{steps} {noun_for(steps, 'step')} each"
    events.tell(events.Message(f"short healing of {len(candidates)} finalists, {each}"))
    ranked = rerank_by_healing(
        state.resources.loaded,
        candidates,
        recovery.short,
        compensated=recovery.compensate,
        references=state.request.references,
        compensations=state.request.compensations,
    )
    reports = []
    for finalist in ranked:
        values = {**vars(finalist), "candidate": finalist.candidate.text}
        reports.append(FinalistReport(**values))
    return ranked[0].candidate, tuple(reports)


def check(request: Request) -> None:
    """Refuse a text that orders channels and cannot be read, before the model is loaded."""
    if isinstance(request.source, LayersSource) and request.source.order is not None:
        check_text(request.source.order.data.calibration)


SELECT = Stage("select", select, check, defers_signals=False)
