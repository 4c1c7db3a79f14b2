"""Output of `search`, `run` and `demo` for people."""

from collections.abc import Mapping
from shlex import quote
from typing import TYPE_CHECKING

from rich.console import Group

from prunesearch.candidate import named_layers
from prunesearch.report.export import exported
from prunesearch.report.recommendation import decided
from prunesearch.report.removals import Removal, heading
from prunesearch.report.sources import source_lines
from prunesearch.report.study import front_table
from prunesearch.report.tables import (
    LayerList,
    Parts,
    dense_against_pruned,
    duration,
    example_loss,
    next_commands,
    table,
)
from prunesearch.runtime.masking import CACHE_VARIABLE, STORAGE_VARIABLE, pasted
from prunesearch.studies.warm_start_source import warm_start_line
from prunesearch.units import noun_for

if TYPE_CHECKING:
    from prunesearch.report.results import (
        DemoReport,
        RunReport,
        RunsReport,
        ScoredModel,
        SearchesReport,
        SearchReport,
    )

_MUCH = 0.1  # lost share of the dense quality above which commands that recover it are suggested


def search(report: "SearchReport") -> Parts:
    """Show the best candidate against the dense model, the cost of the run, and the next
    commands.
    """
    if report.front:
        return _pareto(report)
    study, flag = quote(report.study), _storage_flag(report)
    # A plain checkpoint cannot leave out single sublayers.
    flag_for_sublayers = " --as zeroed" if _drops_sublayers(report) else ""
    return [
        *found(report),
        next_commands(
            f"prunesearch export {study} --out {study}{flag_for_sublayers}{flag}",
            *_recovery(report),
            f"prunesearch study layers {study}{flag}",
            f"optuna-dashboard {_storage_word(report)}",
        ),
    ]


def found(report: "SearchReport") -> Parts:
    """Show the best candidate against the dense model, and the cost of the run."""
    removal = Removal.of(report.best.dropped)
    trials = f"{report.trials} {noun_for(report.trials, 'trial')}"
    title = f"{report.study}: best of {trials} {removal.sentence}"
    metric = next(iter(report.best.metrics), "value")
    if report.paired is not None:
        metric = report.paired.metric
    parts: Parts = [
        _compared(title, report),
        *_paired(report),
        *decided(report.recommendation, metric),
    ]
    widths = removal.table_of_widths()
    if widths is not None:
        parts.append(widths)
    known = warm_start_line(report.warm_start)
    return [*parts, _run_line(report), *known, *source_lines(report.sources)]


def _compared(title: str, report: "SearchReport") -> Group:
    """Show the metrics and costs of the dense and the best model side by side."""
    dense, best = report.dense, report.best
    return dense_against_pruned(
        title,
        {**dense.metrics, **_cost(dense, measured=report.latency_measured)},
        {**best.metrics, **_cost(best, measured=report.latency_measured)},
        best.stderr,
        dense.stderr,
    )


def _cost(model: "ScoredModel", *, measured: bool) -> dict[str, float]:
    """Return a model's costs, with the latency named as measured or predicted."""
    return {
        "params": model.cost.params,
        "bytes": model.cost.bytes,
        "measured_ms" if measured else "predicted_ms": model.cost.latency_ms,
    }


def _paired(report: "SearchReport") -> Parts:
    """Show the difference from the dense model on the same documents, with its standard error."""
    paired = report.paired
    if paired is None:
        return []
    name, difference, error = paired.metric, paired.difference, paired.stderr
    return [
        f"{name}, pruned - dense on the same {paired.documents:,} documents: {difference:+.4f} "
        f"± {error:.4f}"
    ]


def _recovery(report: "SearchReport") -> list[str]:
    """Return commands that recover quality, if much was lost."""
    if report.lost < _MUCH:
        return []
    study, flag = quote(report.study), _storage_flag(report)
    heal = f"prunesearch heal {study} --loss distill --steps 1000 --out {study}-healed"
    if _drops_sublayers(report):
        return [f"{heal} --as zeroed{flag}"]
    return [
        f"prunesearch compensate {study} --out {study}-compensated{flag}",
        f"{heal} --compensate{flag}",
    ]


def _drops_sublayers(report: "SearchReport") -> bool:
    """Return whether the best candidate drops single sublayers (written as ``7a`` or ``12m``)."""
    dropped = report.best.dropped
    return "a" in dropped or "m" in dropped


def grid(report: "SearchesReport | RunsReport") -> Parts:
    """Show several studies that were searched at once, and the next commands."""
    searches = report.searches
    first, flag = quote(searches[0].study), _storage_flag(searches[0])
    rows = []
    computed = hits = 0
    for each in searches:
        best, dense = each.best.cost, each.dense.cost
        value = f"{each.value:.4f}"
        if each.front:
            value = f"{len(each.front)} on the front"
        rows.append(
            (
                each.study,
                value,
                f"{best.params / dense.params:.3f}",
                f"{best.latency_ms / dense.latency_ms:.3f}",
                each.trials,
                LayerList(Removal.of(each.best.dropped).brief),
            )
        )
        computed += each.computed
        hits += each.hits
    removed = heading(each.best.dropped for each in searches)
    columns = ("study", "best", "parameters", "latency", "trials", removed)
    where = "measured" if searches[0].latency_measured else "predicted"
    return [
        table(
            f"{len(rows)} studies over one engine and cache, {duration(searches[-1].seconds)}",
            columns,
            rows,
        ),
        f"parameters and latency ({where}) as a share of the dense model's; this run: {computed} "
        f"evaluated, "
        f"{hits} {noun_for(hits, 'cache hit')}",
        next_commands(
            f"prunesearch study show {first}{flag}",
            f"prunesearch export {first} --out {first}{flag}",
            f"optuna-dashboard {_storage_word(searches[0])}",
        ),
    ]


def _pareto(report: "SearchReport") -> Parts:
    """Show the front, its knee against the dense model, and the commands that choose from it."""
    best, study, flag = report.best, quote(report.study), _storage_flag(report)
    trials = f"{report.trials} {noun_for(report.trials, 'trial')}"
    title = f"{report.study}: {len(report.front)} best of {trials}"
    loss = example_loss(report.dense.metrics)
    return [
        front_table(title, report.front),
        _compared(f"The knee {Removal.of(best.dropped).sentence}", report),
        *_paired(report),
        _run_line(report),
        next_commands(
            f"prunesearch study best {study} --max-loss {loss}{flag}",
            f"prunesearch export {study} --max-size {int(best.cost.bytes)} --out {study}{flag}",
            f"optuna-dashboard {_storage_word(report)}",
        ),
    ]


def searched_and_exported(report: "RunReport") -> Parts:
    """Show a search and the export of its best candidate."""
    search, folder = report.search, quote(str(report.export.folder))
    return [
        *found(search),
        *exported(report.export),
        next_commands(
            f"prunesearch evaluate {folder} --calibration builtin-held-out",
            *_recovery(search),
            f"optuna-dashboard {_storage_word(search)}",
        ),
    ]


def grid_and_exports(report: "RunsReport") -> Parts:
    """Show several searches and their exports."""
    parts = grid(report)
    for made in report.exports:
        parts += exported(made)
    return parts


def demo(report: "DemoReport") -> Parts:
    """Show the final screen of the demo."""
    best, export = report.best, report.export
    cache = ""
    if report.cache != "storage/cache":
        cache = f" --cache {pasted(report.cache, CACHE_VARIABLE)}"
    runs = []
    for run in report.searches:
        runs.append(
            (
                run.sampler,
                f"{run.value:.4f}",
                run.trials,
                run.computed,
                run.hits,
                f"{run.seconds:.0f}",
                LayerList(run.best.dropped),
            )
        )
    return [
        table(
            "Searches (one cache: what one sampler scored, the next finds)",
            (
                "sampler",
                "best KL",
                "trials",
                "evaluated",
                "cache hits",
                "seconds",
                "layers dropped",
            ),
            runs,
        ),
        dense_against_pruned(
            f"Dense against pruned: {named_layers(best.dropped)} dropped",
            _measured(report.dense),
            _measured(report.pruned),
        ),
        f"wall time {report.seconds:.0f} s",
        *exported(export),
        next_commands(
            f"optuna-dashboard {_storage_word(report)}",
            f"prunesearch evaluate {quote(str(export.folder))} --calibration builtin-held-out",
            f"prunesearch search {quote(report.model)} --drop 25% --trials "
            f"300{_storage_flag(report)}{cache}",
        ),
    ]


def _measured(figures: Mapping[str, float]) -> dict[str, float]:
    """Return figures with the latency named as measured.

    The demo's models are in memory, so it always is.
    """
    named = {}
    for name, value in figures.items():
        named["measured_ms" if name == "latency_ms" else name] = value
    return named


def _run_line(report: "SearchReport") -> str:
    """Describe the evaluations of this run. Counts of rare events are left out if they are 0."""
    hits = f"{report.hits} {noun_for(report.hits, 'cache hit')}"
    line = f"this run: {report.computed} evaluated, {hits}"
    if report.failed:
        line += f", {report.failed} failed"
    if report.adopted:
        line += f", {report.adopted} of them begun by an interrupted run"
    if report.damaged:
        entries = noun_for(report.damaged, "damaged cache entry", "damaged cache entries")
        line += f", {report.damaged} {entries} computed again"
    return f"{line}, {report.seconds:.0f} s{_unfinished(report)}"


def _unfinished(report: "SearchReport") -> str:
    """Return a note if the sampler's rounds are not complete, with the command that completes
    them.
    """
    missing = report.missing
    if not missing:
        return ""
    trials = f"{missing} {noun_for(missing, 'trial')}"
    return (
        f"\nnot finished: {report.sampler} has {trials} of its rounds to go, so this is not its "
        f"result yet; run it again with --trials {report.trials + missing}"
    )


def _storage_flag(report: "SearchReport | DemoReport") -> str:
    """Return the ``--storage`` option of a command; empty for the default storage."""
    if report.storage == "sqlite:///storage/study.db":
        return ""
    return f" --storage {_storage_word(report)}"


def _storage_word(report: "SearchReport | DemoReport") -> str:
    """Return the storage URL as a shell word.

    A URL with a password is replaced by its environment variable.
    """
    return pasted(report.storage, STORAGE_VARIABLE)
