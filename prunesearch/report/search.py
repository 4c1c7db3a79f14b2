"""Output of `search`, `run` and `demo` for people."""

from collections.abc import Mapping
from shlex import quote
from typing import Any

from rich.console import Group

from prunesearch.report.export import exported
from prunesearch.report.study import front_table
from prunesearch.report.tables import (
    LayerList,
    Parts,
    dense_against_pruned,
    duration,
    next_commands,
    table,
)
from prunesearch.runtime.masking import CACHE_VARIABLE, STORAGE_VARIABLE, pasted

Document = Mapping[str, Any]
_MUCH = 0.1  # lost share of the dense quality above which commands that recover it are suggested


def search(document: Document) -> Parts:
    """Show the best candidate against the dense model, the cost of the run, and the next
    commands.
    """
    if document["front"]:
        return _pareto(document)
    study, flag = quote(document["study"]), _storage_flag(document)
    # A plain checkpoint cannot leave out single sublayers.
    flag_for_sublayers = " --as zeroed" if _drops_sublayers(document) else ""
    return [
        *found(document),
        next_commands(
            f"prunesearch export {study} --out {study}{flag_for_sublayers}{flag}",
            *_recovery(document),
            f"prunesearch study layers {study}{flag}",
            f"optuna-dashboard {_storage_word(document)}",
        ),
    ]


def found(document: Document) -> Parts:
    """Show the best candidate against the dense model, and the cost of the run."""
    title = f"{document['study']}: best of {document['trials']} trials drops layers {document['best']['dropped']}"
    return [_compared(title, document), *_paired(document), _run_line(document)]


def _compared(title: str, document: Document) -> Group:
    """Show the metrics and costs of the dense and the best model side by side."""
    dense, best = document["dense"], document["best"]
    return dense_against_pruned(
        title,
        {**dense["metrics"], **_cost(document, "dense")},
        {**best["metrics"], **_cost(document, "best")},
        best["stderr"],
        dense["stderr"],
    )


def _cost(document: Document, model: str) -> Document:
    """Return a model's costs, with the latency named as measured or predicted."""
    cost = dict(document[model]["cost"])
    cost["measured_ms" if document["latency_measured"] else "predicted_ms"] = cost.pop("latency_ms")
    return cost


def _paired(document: Document) -> Parts:
    """Show the difference from the dense model on the same documents, with its standard error."""
    paired = document["paired"]
    if paired is None:
        return []
    name, difference, error = paired["metric"], paired["difference"], paired["stderr"]
    return [
        f"{name}, pruned - dense on the same {paired['documents']:,} documents: {difference:+.4f} "
        f"± {error:.4f}"
    ]


def _recovery(document: Document) -> list[str]:
    """Return commands that recover quality, if much was lost."""
    if document["lost"] < _MUCH:
        return []
    study, flag = quote(document["study"]), _storage_flag(document)
    heal = f"prunesearch heal {study} --loss distill --steps 1000 --out {study}-healed"
    if _drops_sublayers(document):
        return [f"{heal} --as zeroed{flag}"]
    return [
        f"prunesearch compensate {study} --out {study}-compensated{flag}",
        f"{heal} --compensate{flag}",
    ]


def _drops_sublayers(document: Document) -> bool:
    """Return whether the best candidate drops single sublayers (written as ``7a`` or ``12m``)."""
    dropped = document["best"]["dropped"]
    return "a" in dropped or "m" in dropped


def grid(document: Document) -> Parts:
    """Show several studies that were searched at once, and the next commands."""
    searches = document["searches"]
    first, flag = quote(searches[0]["study"]), _storage_flag(searches[0])
    rows = []
    computed = hits = 0
    for each in searches:
        best, dense = each["best"]["cost"], each["dense"]["cost"]
        value = f"{each['value']:.4f}"
        if each["front"]:
            value = f"{len(each['front'])} on the front"
        rows.append(
            (
                each["study"],
                value,
                f"{best['params'] / dense['params']:.3f}",
                f"{best['latency_ms'] / dense['latency_ms']:.3f}",
                each["trials"],
                LayerList(each["best"]["dropped"]),
            )
        )
        computed += each["computed"]
        hits += each["hits"]
    columns = ("study", "best", "parameters", "latency", "trials", "layers dropped")
    where = "measured" if searches[0]["latency_measured"] else "predicted"
    return [
        table(
            f"{len(rows)} studies over one engine and cache, {duration(searches[-1]['seconds'])}",
            columns,
            rows,
        ),
        f"parameters and latency ({where}) as a share of the dense model's; this run: {computed} "
        f"evaluated, "
        f"{hits} cache hits",
        next_commands(
            f"prunesearch study show {first}{flag}",
            f"prunesearch export {first} --out {first}{flag}",
            f"optuna-dashboard {_storage_word(searches[0])}",
        ),
    ]


def _pareto(document: Document) -> Parts:
    """Show the front, its knee against the dense model, and the commands that choose from it."""
    best, study, flag = document["best"], quote(document["study"]), _storage_flag(document)
    title = f"{document['study']}: {len(document['front'])} best of {document['trials']} trials"
    return [
        front_table(title, document["front"]),
        _compared(f"The knee drops layers {best['dropped']}", document),
        *_paired(document),
        _run_line(document),
        next_commands(
            f"prunesearch study best {study} --max-loss 10%{flag}",
            f"prunesearch export {study} --max-size {int(best['cost']['bytes'])} --out "
            f"{study}{flag}",
            f"optuna-dashboard {_storage_word(document)}",
        ),
    ]


def searched_and_exported(document: Document) -> Parts:
    """Show a search and the export of its best candidate."""
    folder = quote(str(document["export"].folder))
    return [
        *found(document),
        *exported(document["export"]),
        next_commands(
            f"prunesearch evaluate {folder} --calibration builtin-held-out",
            *_recovery(document),
            f"optuna-dashboard {_storage_word(document)}",
        ),
    ]


def grid_and_exports(document: Document) -> Parts:
    """Show several searches and their exports."""
    parts = grid(document)
    for made in document["exports"]:
        parts += exported(made)
    return parts


def demo(document: Document) -> Parts:
    """Show the final screen of the demo."""
    best, export = document["best"], document["export"]
    cache = ""
    if document["cache"] != "storage/cache":
        cache = f" --cache {pasted(document['cache'], CACHE_VARIABLE)}"
    runs = []
    for run in document["searches"]:
        runs.append(
            (
                run["sampler"],
                f"{run['value']:.4f}",
                run["trials"],
                run["computed"],
                run["hits"],
                f"{run['seconds']:.0f}",
                LayerList(run["best"]["dropped"]),
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
            f"Dense against pruned: layers {best['dropped']} dropped",
            _measured(document["dense"]),
            _measured(document["pruned"]),
        ),
        f"wall time {document['seconds']:.0f} s",
        *exported(export),
        next_commands(
            f"optuna-dashboard {_storage_word(document)}",
            f"prunesearch evaluate {quote(str(export.folder))} --calibration builtin-held-out",
            f"prunesearch search {quote(document['model'])} --drop 25% --trials "
            f"300{_storage_flag(document)}{cache}",
        ),
    ]


def _measured(figures: Document) -> Document:
    """Return figures with the latency named as measured.

    The demo's models are in memory, so it always is.
    """
    named = {}
    for name, value in figures.items():
        named["measured_ms" if name == "latency_ms" else name] = value
    return named


def _run_line(document: Document) -> str:
    """Describe the evaluations of this run. Counts of rare events are left out if they are 0."""
    line = f"this run: {document['computed']} evaluated, {document['hits']} cache hits"
    if document["failed"]:
        line += f", {document['failed']} failed"
    if document["adopted"]:
        line += f", {document['adopted']} of them begun by an interrupted run"
    if document["damaged"]:
        line += f", {document['damaged']} damaged cache entries computed again"
    return f"{line}, {document['seconds']:.0f} s{_unfinished(document)}"


def _unfinished(document: Document) -> str:
    """Return a note if the sampler's rounds are not complete, with the command that completes
    them.
    """
    missing = document["missing"]
    if not missing:
        return ""
    return (
        f"\nnot finished: {document['sampler']} has {missing} trials of its rounds to go, so this "
        f"is not its result "
        f"yet; run it again with --trials {document['trials'] + missing}"
    )


def _storage_flag(document: Document) -> str:
    """Return the ``--storage`` option of a command; empty for the default storage."""
    if document["storage"] == "sqlite:///storage/study.db":
        return ""
    return f" --storage {_storage_word(document)}"


def _storage_word(document: Document) -> str:
    """Return the storage URL as a shell word.

    A URL with a password is replaced by its environment variable.
    """
    return pasted(document["storage"], STORAGE_VARIABLE)
