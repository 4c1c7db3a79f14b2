"""Output of the study commands for people."""

from collections.abc import Sequence

from rich.console import Group

from prunesearch.config.flat import SECTIONS
from prunesearch.config.recipe import Recipe
from prunesearch.objectives.registry import relative_metrics
from prunesearch.report.recommendation import decided
from prunesearch.report.removals import Removal, heading
from prunesearch.report.sources import source_lines
from prunesearch.report.tables import (
    LayerList,
    Parts,
    Prose,
    gib,
    label,
    number,
    stderr_of,
    table,
    without_constant,
)
from prunesearch.runtime.json_values import Json
from prunesearch.studies.copying import CopiedStudy
from prunesearch.studies.recommendation import (
    STANDARD_ERROR_ATTR,
    Recommendation,
    ScoredFinalist,
)
from prunesearch.studies.summary import (
    ChosenTrial,
    DeletedStudy,
    StudyDetails,
    StudyLayers,
    StudySummary,
    TrialSummary,
    is_undecided,
)
from prunesearch.studies.warm_start_source import warm_start_line
from prunesearch.units import noun_for

_UNDECIDED = (
    "which trial is best is not decided yet: the values have standard errors, and the best one may "
    "be luck. A search decides it at its end. If it was stopped, run the same search again"
)


def study_list(summaries: Sequence[StudySummary]) -> Parts:
    """Show one line per study."""
    columns = (
        "study",
        "objective",
        "drop",
        "sampler",
        "trials",
        "running",
        "failed",
        "best",
        heading(summary.best_dropped for summary in summaries),
    )
    rows = []
    for summary in summaries:
        rows.append(
            (
                summary.name,
                summary.objective,
                summary.drop,
                summary.sampler,
                summary.trials,
                _running(summary),
                summary.failed or "-",
                _best_of(summary),
                LayerList(Removal.of(summary.best_dropped or "-").brief),
            )
        )
    if not rows:
        return ["no studies yet: run prunesearch search"]
    return [
        table("Studies", *without_constant(columns, rows, {"-"})),
        "best: what the search measured for the trial that study best prints",
    ]


def _running(summary: StudySummary) -> str:
    """Return the number of running trials.

    Without a search under way, they are left by a killed one.
    """
    if summary.writer is not None:
        return f"{summary.running}"
    if summary.running:
        return f"{summary.running} (stopped)"
    return "-"


def _best_of(summary: StudySummary) -> str:
    """Return a study's best value, or the size of its front."""
    if summary.front:
        return f"{summary.front} on the front"
    if summary.best_value is None:
        return "-"
    return f"{summary.best_value:.4f}"


def study_show(details: StudyDetails) -> Parts:
    """Show a study's recipe and best trials."""
    summary = details.summary
    settings = table(summary.name, ("recipe", ""), _recipe_rows(details.recipe))
    counts = (
        f"{summary.trials} {noun_for(summary.trials, 'trial')} finished, {_running_of(summary)}, "
        f"{summary.failed} failed"
    )
    if summary.partial_subsets:
        counts += f", {summary.partial_subsets} partial"
    best = details.best
    metric = _metric_of(best) or "value"
    known = [*warm_start_line(details.warm_start), *source_lines(details.sources)]
    lines = [counts, *known, *decided(details.recommendation, metric)]
    if not best:
        return [settings, *lines]
    if details.recommendation is None and is_undecided(best[0]):
        lines.append(_UNDECIDED)
    if len(best[0].values) > 1:
        return [settings, *lines, front_table("Best trials, one for each size", best)]
    return [settings, *lines, _best_table(best, details.recommendation)]


def _recipe_rows(recipe: Recipe) -> list[tuple[str, Prose]]:
    """Return the settings of a recipe that are set, one per row, such as ``search.drop``."""
    rows = []
    document = recipe.document()
    for section in SECTIONS:
        settings = document.get(section)
        # A section that was not used is not part of the document.
        for name, value in settings.items() if isinstance(settings, dict) else ():
            if value in (None, "") or value is False:
                continue
            if isinstance(value, dict):
                value = ",".join(f"{key}={weight:g}" for key, weight in value.items())
            rows.append((f"{section}.{name}", Prose(value)))
    return rows


def _best_table(best: Sequence[TrialSummary], made: Recommendation | None) -> Group:
    """Show the best trials of a study with one objective, with their attributes.

    Args:
        best: the trials.
        made: how the best trial was decided; None if its value decides.
    """
    finalists = {} if made is None else {one.trial: one for one in made.finalists}
    metric = _metric_of(best)
    # Attributes that are long, or that repeat the value, are only part of the --json output.
    names = []
    for name, value in best[0].attributes.items():
        repeated = name in ("dropped", metric, STANDARD_ERROR_ATTR) or name.endswith("_stderr")
        if not repeated and isinstance(value, float | int):
            names.append(name)
    if "cache" in best[0].attributes:
        names.append("cache")
    rows = []
    for trial in best:
        row: list[object] = [trial.number, f"{trial.value:.4f}" + _error(trial, metric)]
        if finalists:
            row += _expected(finalists.get(trial.number))
        for name in names:
            row.append(_shown(name, trial.attributes.get(name)) + _error(trial, name))
        rows.append([*row, LayerList(Removal.of(trial.dropped).brief)])
    heads = {"latency_ms": label("predicted_ms"), "bytes": "size", "seconds": "seconds scored"}
    columns = ["trial", label(metric or "value")]
    if finalists:
        columns += ["expected", "on further documents"]
    for name in names:
        columns.append(heads.get(name, label(name)))
    columns.append(heading(trial.dropped for trial in best))
    parts = [table("Best trials", *without_constant(columns, rows))]
    widths = Removal.of(best[0].dropped).table_of_widths()
    if widths is not None:
        parts.append(widths)
    return Group(*parts)


def _expected(one: ScoredFinalist | None) -> tuple[str, str]:
    """Return the expected value of a finalist, and its value on further documents."""
    if one is None:
        return "-", "-"
    expected = f"{one.estimate:.4f} ± {one.stderr:.4f}"
    if one.fresh is None:
        return expected, "-"
    return expected, f"{one.fresh:.4f} ± {one.fresh_stderr:.4f} ({one.documents:,})"


def study_layers(found: StudyLayers) -> Parts:
    """Show the cost of dropping each layer."""
    layers = found.layers
    if not layers:
        return [f"{found.study}: no finished trial yet"]
    metric = label(found.metric)
    rows = []
    for layer in layers:
        # A layer that was dropped in no trial, or in all, has neither.
        rank, harm = "-", "-"
        if layer.rank is not None:
            rank = str(layer.rank)
        if layer.harm is not None:
            harm = f"{layer.harm:+.4f} ± {layer.stderr:.4f}"
        rows.append(
            (
                layer.layer,
                rank,
                harm,
                f"{layer.dropped:.0%}",
                f"{layer.dropped_best:.0%}",
                _shown(found.metric, layer.with_),
                _shown(found.metric, layer.without),
            )
        )
    columns = ("layer", "rank", "harm", "dropped", "in the best", "mean if dropped", "mean if kept")
    return [
        table(
            f"{found.study}: what dropping each layer costs, from {found.trials} "
            f"{noun_for(found.trials, 'trial')}",
            columns,
            rows,
        ),
        f"harm: how much worse {metric} gets when the layer is dropped, beyond the mean layer "
        f"(ridge regression, "
        "± standard error); rank 1 matters most; -: dropped in no trial, or in all",
    ]


def _running_of(summary: StudySummary) -> str:
    """Describe the running trials of a study, and the search that evaluates them."""
    running, writer = summary.running, summary.writer
    # Without a writer, running trials are left from a search that was killed.
    if writer is None and not running:
        return "0 running"
    if writer is None:
        return f"{running} left by a search that was stopped"
    text = f"{running} running, by a search that is under way"
    if writer.pid is not None:
        text += f" (pid {writer.pid} on {writer.host})"
    return text


def study_best(chosen: ChosenTrial) -> Parts:
    """Show the dropped layers only, for scripts."""
    return [chosen.trial.dropped]


def how_certain(chosen: ChosenTrial) -> list[str]:
    """Return lines about how the best trial was decided, where scores are noisy."""
    if chosen.undecided:
        return [_UNDECIDED]
    return decided(chosen.recommendation, _metric_of([chosen.trial]) or "value")


def study_copy(copied: Sequence[CopiedStudy]) -> Parts:
    """Show what was copied."""
    if not copied:
        return ["there is no study to copy"]
    lines = []
    for made in copied:
        name = made.copied
        if made.study != made.copied:
            name = f"{made.copied} as {made.study}"
        trials = f"{made.trials} {noun_for(made.trials, 'trial')}"
        lines.append(f"copied {name} ({trials}) to {made.storage}")
    return [
        *lines,
        "evaluations are not part of a study: cache export FILE writes those of --cache, and "
        "cache import FILE reads them into another",
    ]


def study_rm(done: DeletedStudy) -> Parts:
    """Show what was deleted."""
    trials = f"{done.trials} {noun_for(done.trials, 'trial')}"
    return [f"deleted {done.deleted} ({trials}); its evaluations stay in the cache"]


def _error(trial: TrialSummary, metric: str | None) -> str:
    """Return the standard error of a trial's metric, formatted to follow the value.

    It is empty if there is none.
    """
    value, error = trial.figure(metric), trial.figure(f"{metric}_stderr")
    if not error or value is None:
        return ""
    return f" ± {stderr_of(str(metric), value, error)}"


def front_table(title: str, trials: Sequence[TrialSummary]) -> Group:
    """Show non-dominated trials with both values, the costs, and the dropped layers."""
    metric = _metric_of(trials) or "quality"
    columns = [
        label(metric),
        "parameters",
        "size",
        "latency, predicted (ms)",
        "dropped",
        "layers dropped",
    ]
    rows: list[list[object]] = []
    for trial in trials:
        rows.append(
            [
                f"{trial.values[0]:.4f}",
                _shown("params", trial.figure("params")),
                _shown("bytes", trial.figure("bytes")),
                _shown("latency_ms", trial.figure("latency_ms")),
                trial.dropped.count(",") + 1,
                LayerList(trial.dropped),
            ]
        )
    # Perplexity is easier to judge than another metric, so it is always shown.
    for easy in relative_metrics():
        if metric == easy:
            continue
        columns.insert(1, label(easy))
        for trial, row in zip(trials, rows, strict=True):
            row.insert(1, _shown(easy, trial.figure(easy)))
    return table(title, *without_constant(columns, rows, {"-"}))


def _metric_of(trials: Sequence[TrialSummary]) -> str | None:
    """Return the name of the metric that is the trials' first value.

    It is None if no attribute equals it.
    """
    if not trials:
        return None
    for name in trials[0].attributes:
        if all(_equals(trial.figure(name), trial.values[0]) for trial in trials):
            return name
    return None


def _equals(attribute: float | None, value: float) -> bool:
    """Return whether an attribute, which is stored with six digits, equals a trial's value."""
    return attribute is not None and abs(attribute - value) <= 1e-6


def _shown(name: str, value: Json) -> str:
    """Format an attribute of a trial."""
    if value is None:
        return "-"
    if not isinstance(value, int | float):
        return str(value)
    if name == "bytes":
        return gib(value)
    if isinstance(value, bool):
        return str(value)
    if name.endswith("seconds"):
        return f"{value:.3g}"
    return number(name, value)
