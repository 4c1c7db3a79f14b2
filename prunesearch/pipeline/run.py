"""The pipeline: one list of stages, and each command as a range of it.

    Search → Select → Compensate → Tune → Heal → Export → Verify → Evaluate → Report

A stage takes the state that the stages before it left, and returns it with its own results
(`stages.base.Stage`). It finds its earlier result by content, so the same command again only does
what is left to do:

| stage | what it does | where it finds an earlier result |
|---|---|---|
| search | brings a study to its number of trials | its study, and evaluations in the cache |
| select | chooses the candidate, with the finalists' short healing | run folders of the finalists |
| compensate | changes kept blocks without training | the cache |
| tune | searches the hyper-parameters of healing | its study |
| heal | trains with LoRA and merges the adapter | its run folder, by digest |
| export | writes the checkpoint into a scratch folder | the manifest of an equal export |
| verify | reloads it, compares it, and publishes it | |
| evaluate | measures a model on a task or a text | the cache |
| report | puts the results together | |
"""

import time
import warnings
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from prunesearch import events
from prunesearch.config.model import ModelSection
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import InputError
from prunesearch.export.results import Exported
from prunesearch.pipeline.export_request import ExportRequest
from prunesearch.pipeline.outcome import SearchOutcome
from prunesearch.pipeline.stages import STAGES, Stage
from prunesearch.pipeline.state import EvaluationRequest, Request, Resources, State
from prunesearch.pipeline.tracked_results import tell_results
from prunesearch.report.results import EvaluationReport, RecoveryReport, Report
from prunesearch.runtime import stopping
from prunesearch.tracking.opening import check_tracking, tracked

COMMANDS = {
    "search": ("search", "search"),
    "run": ("search", "evaluate"),
    "demo": ("search", "evaluate"),
    "export": ("select", "verify"),
    "compensate": ("select", "verify"),
    "heal": ("select", "verify"),
    "evaluate": ("evaluate", "evaluate"),
}
"""The first and the last stage of each command. The stage `report` always follows.

The ranges of `export`, `compensate` and `heal` are equal. These commands differ in their requests:
`Stage.wanted` tells whether a request asks for a stage, and the other stages are skipped.
"""


class _OutcomeAndExport(NamedTuple):
    """The two values that a `RunResult` unpacks into."""

    outcome: SearchOutcome
    exported: Exported | None


class RunResult(_OutcomeAndExport):
    """Result of `run`. It unpacks into two values: ``outcome, exported = run(recipe)``.

    Attributes:
        outcome: outcome of the search.
        exported: the verified export. With a recovery, it is None if an equal export existed
            already.
        recovery: results of the recovery, of this run or of the earlier, equal one. None if the
            recipe has no section `recover`.
        evaluation: metrics of the exported model. None if the recipe does not ask for them
            (`recover.evaluate`).
    """

    recovery: RecoveryReport | None
    evaluation: EvaluationReport | None

    def __new__(
        cls,
        outcome: SearchOutcome,
        exported: Exported | None,
        recovery: RecoveryReport | None = None,
        evaluation: EvaluationReport | None = None,
    ) -> Self:
        """Make the pair, and add the two other results to it."""
        result = super().__new__(cls, outcome, exported)
        result.recovery, result.evaluation = recovery, evaluation
        return result


def run_stages(command: str, request: Request) -> State:
    """Run the stages of a command.

    A stage that the request does not ask for is skipped. The model is loaded once and its weights
    are hashed once.

    Args:
        command: one of `COMMANDS`.
        request: what the command asks for.

    Returns:
        The state after the last stage. Its `report` is the result of the command.

    Raises:
        PruneSearchError: see `errors`. Results of finished stages are kept.
    """
    stages = stages_of(command)
    # Refuse bad input before any work.
    for stage in stages:
        stage.check(request)
    options = request.options
    check_tracking(options.track, options.track_to)
    # Run one stage after the other.
    with tracked(options.track, options.track_to), Resources() as resources:
        state = State(request, resources)
        for stage in stages:
            # Python may have ignored the exception of a stop (see `runtime.stopping`).
            stopping.check()
            if not stage.wanted(state):
                events.tell(events.StageFinished(stage.name, skipped=True))
                continue
            events.tell(events.StageStarted(stage.name))
            began = time.perf_counter()
            with stopping.deferred() if stage.defers_signals else nullcontext():
                state = stage.run(state)
            events.tell(events.StageFinished(stage.name, time.perf_counter() - began))
        tell_results(state)
        return state


def report_of(command: str, request: Request) -> Report:
    """Run the stages of a command, and return its result.

    Raises:
        PruneSearchError: see `run_stages`.
    """
    report = run_stages(command, request).report
    assert report is not None, "the stage `report` always runs"
    return report


def stages_of(command: str) -> list[Stage]:
    """Return the stages of a command, in order."""
    first, last = COMMANDS[command]
    names = [stage.name for stage in STAGES]
    chosen = STAGES[names.index(first) : names.index(last) + 1]
    return [*chosen, STAGES[names.index("report")]]


def run(
    recipe: Recipe,
    options: RunOptions = RunOptions(),  # noqa: B008 (frozen)
    out: str | Path | None = None,
    on_event: "events.EventHandler | SearchListener | None" = None,
    *,
    listener: "SearchListener | None" = None,
) -> RunResult:
    """Do what a recipe says: search, recover the best candidate, export, verify and evaluate it.

    The recovery and the evaluation are optional: they are made if the recipe has a section
    `recover`, and if this section asks for an evaluation.

    Args:
        recipe: description of the search and of what follows it.
        options: how the recipe is run.
        out: folder for the checkpoint; default: ``storage/exports/`` and the study's name.
        on_event: function that receives the events of the run (see `events`).
        listener: object whose method ``progress`` receives the progress of the search, as the
            fourth argument once was. Deprecated: use `on_event`.

    Returns:
        The outcome of the search, the verified export, and the results of the recovery and the
        evaluation. ``outcome, exported = run(recipe)`` takes the first two.

    Raises:
        PruneSearchError: see `errors`. Finished evaluations are kept.
    """
    given: object = recipe
    if not isinstance(given, Recipe):
        raise InputError(
            f"run takes a Recipe, not {type(given).__name__}: write run(Recipe(model=..., "
            f"drop=...)); the command prunesearch run takes a recipe file"
        )
    handler = _handler_of(on_event if listener is None else listener)
    request = request_of((recipe,), options, None if out is None else Path(out))
    with ExitStack() as stack:
        if handler is not None:
            stack.enter_context(events.subscribed(handler))
        state = run_stages("run", request)
    (outcome,) = state.outcomes
    exports = [made for made in state.exported if isinstance(made, Exported)]
    exported = exports[0] if exports else None
    return RunResult(outcome, exported, state.recovery or state.earlier, state.evaluation)


def request_of(recipes: tuple[Recipe, ...], options: RunOptions, out: Path | None) -> Request:
    """Return the request of `run`.

    Args:
        recipes: recipes that differ in the sampler or the number of dropped layers only.
        options: how the recipes are run.
        out: folder for the checkpoint. With several numbers, each gets a folder inside it. Default:
            ``storage/exports/`` and the name of the study.
    """
    recovery = recipes[0].recover
    request = Request(options, recipes, export=ExportRequest(out), recovery=recovery)
    if recovery is None or recovery.evaluate is None:
        return request
    # Narrow layers come with a modelling file, which this run writes and verifies.
    trusted = recipes[0].search.narrows or recipes[0].model.trust_remote_code
    path = str(request.folder_of(recipes[0]))
    folder = ModelSection(path=path, trust_remote_code=trusted)
    wanted = recovery.evaluate
    evaluation = EvaluationRequest(folder, wanted.objective, wanted.data)
    return replace(request, evaluation=evaluation)


class SearchListener(Protocol):
    """Receives the progress of a search. Deprecated: use a `prunesearch.events.EventHandler`."""

    def progress(self, progress: events.SearchProgress) -> None:
        """Handle the news that a study was opened or a trial was told."""


def _handler_of(
    given: "events.EventHandler | SearchListener | None",
) -> events.EventHandler | None:
    """Return the event handler of a run. A listener is wrapped, and its caller is warned.

    Raises:
        InputError: it is neither a function nor a listener.
    """
    if given is None or callable(given):
        return given
    if not callable(getattr(given, "progress", None)):
        raise InputError(f"`on_event` = {given!r}: give a function that takes an event")
    warnings.warn(
        "listener is deprecated and will be removed in the next release: give on_event, a function "
        "that receives the events of prunesearch.events",
        DeprecationWarning,
        stacklevel=3,
    )

    def handle(event: events.Event) -> None:
        if isinstance(event, events.SearchProgress):
            given.progress(event)

    return handle
