"""What the commands on studies print, from their JSON documents."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group

from prunesearch.report.tables import Layers, Prose, gib, label, number, stderr_of, table, without_constant

Document = Mapping[str, Any]
Parts = list[Group | str]


def study_list(document: Sequence[Document]) -> Parts:
    """One line per study."""
    columns = ("study", "objective", "drop", "sampler", "trials", "running", "failed", "best", "layers dropped")
    rows = [
        (
            s["name"],
            s["objective"],
            s["drop"],
            s["sampler"],
            s["trials"],
            _running(s),
            s["failed"] or "-",
            _best_of(s),
            Layers(s["best_dropped"] or "-"),
        )
        for s in document
    ]
    if not rows:
        return ["no studies yet: run prunesearch search"]
    return [table("Studies", *without_constant(columns, rows, {"-"}))]


def _running(summary: Document) -> str:
    """How many trials are being evaluated, or were when their search was killed."""
    if summary.get("writer") is not None:
        return f"{summary['running']}"
    return f"{summary['running']} (stopped)" if summary["running"] else "-"


def _best_of(summary: Document) -> str:
    if summary["front"]:
        return f"{summary['front']} on the front"
    return "-" if summary["best_value"] is None else f"{summary['best_value']:.4f}"


def study_show(document: Document) -> Parts:
    """A study's recipe and best trials."""
    shown = {
        name: value for name, value in document["recipe"].items() if value not in (None, "") and value is not False
    }
    for name, value in shown.items():
        if isinstance(value, Mapping):
            shown[name] = ",".join(f"{key}={weight:g}" for key, weight in value.items())
    stones = f", {document['stones']} partial" if document["stones"] else ""
    counts = f"{document['trials']} trials finished, {_running_of(document)}, {document['failed']} failed{stones}"
    settings = table(document["name"], ("recipe", ""), [(name, Prose(value)) for name, value in shown.items()])
    best = document["best"]
    if not best:
        return [settings, counts]
    if len(best[0]["values"]) > 1:
        return [settings, counts, front_table("Best trials, one for each size", best)]
    metric = _metric_of(best)
    # Attributes that are long, or that say again what the value says, are for --json.
    names = [n for n, v in best[0]["attributes"].items() if n not in ("dropped", metric) and isinstance(v, float | int)]
    names = [n for n in names if not n.endswith("_stderr")]
    names += [n for n in ("cache",) if n in best[0]["attributes"]]
    rows = [
        (
            t["number"],
            f"{t['value']:.4f}" + _error(t, metric),
            *(_shown(name, t["attributes"].get(name)) + _error(t, name) for name in names),
            Layers(t["dropped"]),
        )
        for t in best
    ]
    heads = {"latency_ms": label("predicted_ms"), "bytes": "size", "seconds": "seconds scored"}
    columns = ("trial", label(metric or "value"), *(heads.get(name, label(name)) for name in names), "layers dropped")
    return [settings, counts, table("Best trials", *without_constant(columns, rows))]


def study_layers(document: Document) -> Parts:
    """How much each layer matters."""
    layers = document["layers"]
    if not layers:
        return [f"{document['study']}: no finished trial yet"]
    metric = label(document["metric"])
    rows = [
        (
            layer["layer"],
            "-" if layer["rank"] is None else layer["rank"],
            "-" if layer["harm"] is None else f"{layer['harm']:+.4f} ± {layer['stderr']:.4f}",
            f"{layer['dropped']:.0%}",
            f"{layer['dropped_best']:.0%}",
            _shown(document["metric"], layer["with_"]),
            _shown(document["metric"], layer["without"]),
        )
        for layer in layers
    ]
    columns = ("layer", "rank", "harm", "dropped", "in the best", "mean if dropped", "mean if kept")
    return [
        table(f"{document['study']}: what dropping each layer costs, from {document['trials']} trials", columns, rows),
        f"harm: how much worse {metric} gets when the layer is dropped, beyond the mean layer (ridge regression, "
        "± standard error); rank 1 matters most; -: dropped in no trial, or in all",
    ]


def _running_in_list(summary: Document) -> str:
    if not summary["running"]:
        return "-"
    return str(summary["running"]) if summary["writer"] else f"none, {summary['running']} left"


def _running_of(document: Document) -> str:
    running, writer = document["running"], document.get("writer")
    if writer is None:
        return f"{running} left by a search that was stopped" if running else "0 running"
    where = "" if writer["pid"] is None else f" (pid {writer['pid']} on {writer['host']})"
    return f"{running} running, by a search that is under way{where}"


def study_best(document: Document) -> Parts:
    """The layers alone, for scripts."""
    return [str(document["dropped"])]


def study_rm(document: Document) -> Parts:
    """What is gone."""
    return [f"deleted {document['deleted']} ({document['trials']} trials); its evaluations stay in the cache"]


def _error(trial: Document, metric: str | None) -> str:
    """The standard error of a trial's metric, as it is written after it."""
    value, error = (trial["attributes"].get(name) for name in (metric, f"{metric}_stderr"))
    return f" ± {stderr_of(str(metric), value, error)}" if error and isinstance(value, int | float) else ""


def front_table(title: str, trials: Sequence[Document]) -> Group:
    """Non-dominated trials: what they drop, both values, and what is left."""
    metric = _metric_of(trials) or "quality"
    rows = [
        (
            f"{t['values'][0]:.4f}",
            *([_shown("perplexity", t["attributes"].get("perplexity"))] if metric != "perplexity" else []),
            f"{int(t['attributes']['params']):,}",
            gib(t["attributes"]["bytes"]),
            f"{t['attributes']['latency_ms']:.1f}",
            t["dropped"].count(",") + 1,
            Layers(t["dropped"]),
        )
        for t in trials
    ]
    perplexity = ["perplexity"] if metric != "perplexity" else []
    columns = (label(metric), *perplexity, "parameters", "size", "latency, predicted (ms)", "dropped", "layers dropped")
    return table(title, *without_constant(columns, rows, {"-"}))


def _metric_of(trials: Sequence[Document]) -> str | None:
    """The metric whose value is the trials' first value."""
    for name in trials[0]["attributes"] if trials else ():
        if all(_equals(t["attributes"].get(name), t["values"][0]) for t in trials):
            return str(name)
    return None


def _equals(attribute: object, value: float) -> bool:
    """Whether an attribute, which is kept with six digits, is a trial's value."""
    return isinstance(attribute, int | float) and abs(attribute - value) <= 1e-6


def _shown(name: str, value: object) -> str:
    """An attribute of a trial for people."""
    if name == "bytes" and isinstance(value, int | float):
        return gib(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.3g}" if name.endswith("seconds") else number(name, value)
    return "-" if value is None else str(value)
