"""What commands print: each function turns one command's JSON document into tables and lines."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Group

from prunesearch.masking import CACHE_VARIABLE, STORAGE_VARIABLE, pasted
from prunesearch.report.tables import dense_against_pruned, duration, gib, label, number, table

Document = Mapping[str, Any]
Parts = list[Group | str]


def search(document: Document) -> Parts:
    """The winner against the dense model, what the run cost, and what to do next."""
    best, study = document["best"], document["study"]
    if document["front"]:
        return _pareto(document)
    return [
        dense_against_pruned(
            f"{study}: best of {document['trials']} trials drops layers {best['dropped']}",
            {**document["dense"]["metrics"], **document["dense"]["cost"]},
            {**best["metrics"], **best["cost"]},
            best["stderr"],
        ),
        _run_line(document),
        _next(
            f"prunesearch export {study} --out {study}{_storage_flag(document)}",
            f"prunesearch study show {study}{_storage_flag(document)}",
            f"optuna-dashboard {_storage_word(document)}",
        ),
    ]


def grid(document: Document) -> Parts:
    """Several studies that were searched at once, and what to do next."""
    searches = document["searches"]
    studies = [s["study"] for s in searches]
    flag = _storage_flag(searches[0])
    rows = [
        (
            s["study"],
            f"{s['value']:.4f}",
            f"{s['best']['cost']['params'] / s['dense']['cost']['params']:.3f}",
            f"{s['best']['cost']['latency_ms'] / s['dense']['cost']['latency_ms']:.3f}",
            s["trials"],
            s["computed"],
            s["hits"],
            s["best"]["dropped"],
        )
        for s in searches
    ]
    columns = ("study", "best", "parameters", "latency", "trials", "evaluated", "cache hits", "layers dropped")
    return [
        table(f"{len(rows)} studies over one engine and store, {duration(searches[-1]['seconds'])}", columns, rows),
        _next(
            f"prunesearch study show {studies[0]}{flag}",
            f"prunesearch export {studies[0]} --out {studies[0]}{flag}",
            f"optuna-dashboard {_storage_word(searches[0])}",
        ),
    ]


def _pareto(document: Document) -> Parts:
    """The front, its knee against the dense model, and how to choose from it."""
    best, study, flag = document["best"], document["study"], _storage_flag(document)
    return [
        front_table(f"{study}: {len(document['front'])} best of {document['trials']} trials", document["front"]),
        dense_against_pruned(
            f"The knee drops layers {best['dropped']}",
            {**document["dense"]["metrics"], **document["dense"]["cost"]},
            {**best["metrics"], **best["cost"]},
            best["stderr"],
        ),
        _run_line(document),
        _next(
            f"prunesearch study best {study} --max-loss 10%{flag}",
            f"prunesearch export {study} --max-size {int(best['cost']['bytes'])} --out {study}{flag}",
            f"optuna-dashboard {_storage_word(document)}",
        ),
    ]


def front_table(title: str, trials: Sequence[Document]) -> Group:
    """Non-dominated trials: what they drop, both values, and what is left."""
    rows = [
        (
            f"{t['values'][0]:.4f}",
            f"{t['attributes'].get('perplexity', float('nan')):.4g}" if "perplexity" in t["attributes"] else "-",
            f"{int(t['attributes']['params']):,}",
            gib(t["attributes"]["bytes"]),
            f"{t['attributes']['latency_ms']:.1f}",
            t["dropped"].count(",") + 1,
            t["dropped"],
        )
        for t in trials
    ]
    columns = ("quality", "perplexity", "parameters", "size", "latency (ms)", "dropped", "layers")
    return table(title, columns, rows)


def exported(document: Document) -> Parts:
    """Where the checkpoint is and how it was verified."""
    check = document["verification"]
    said = " ".join(check["generated"].split())
    windows = check["narrow_difference"]
    narrow = "" if windows is None else f"{windows:.3g} (with narrow attention windows), "
    return [
        f"exported {document['folder']}: {number('params', document['params'])} parameters, "
        f"{document['bytes']:,} bytes ({gib(document['bytes'])}), without layers {document['dropped']}",
        f"verified: {check['weights']} tensors equal their source; reloaded with from_pretrained, logits differ by "
        f"{check['prefill_difference']:.3g} (prompt), {narrow}{check['decode_difference']:.3g} (cached decoding, "
        f"{check['decoded']} steps); allowed {check['allowed']:.3g}",
        f"it says: {said}" if said else "",
    ]


def delivered(document: Document) -> Parts:
    """What an export command made."""
    if "said" in document:
        return [document["said"].rstrip()]
    if "gguf" in document:
        check = document["llama_cpp"]
        proof = (
            f"verified in llama.cpp: log-probabilities differ by {check['difference']:.3g} nats in the mean (allowed "
            f"{check['allowed']}), {check['largest']:.3g} at most, over {check['steps']} greedy tokens; it says: "
            f"{' '.join(check['generated'].split())}"
            if check
            else "not verified: llama.cpp is not installed; pip install 'prunesearch[gguf]' and run it again"
        )
        return [f"wrote {document['gguf']}: {document['bytes']:,} bytes, without layers {document['dropped']}", proof]
    pushed = document.get("pushed")
    return [*exported(document), f"pushed to {pushed}" if pushed else ""]


def verified(document: Document) -> Parts:
    """What a second verification found."""
    lines: Parts = [
        f"{document['folder']} is what was exported: {document['weights']} tensors, logits differ by "
        f"{document['difference']:.3g}"
    ]
    if base := document.get("against_base"):
        lines.append(
            f"against {document['base_model']} without layers {document['dropped']}: logits differ by "
            f"{base['prefill_difference']:.3g} (prompt) and {base['decode_difference']:.3g} (cached decoding)"
        )
    return lines


def searched_and_exported(document: Document) -> Parts:
    """A whole run."""
    return [*search(document), *exported(document["export"])]


def demo(document: Document) -> Parts:
    """The demo's final screen."""
    best, export = document["best"], document["export"]
    cache = "" if document["cache"] == "storage/cache" else f" --cache {pasted(document['cache'], CACHE_VARIABLE)}"
    runs = [
        (
            run["sampler"],
            f"{run['value']:.4f}",
            run["best"]["dropped"],
            run["trials"],
            run["computed"],
            run["hits"],
            f"{run['seconds']:.0f}",
        )
        for run in document["searches"]
    ]
    return [
        table(
            "Searches (one store: what one sampler scored, the next finds)",
            ("sampler", "best KL", "layers dropped", "trials", "evaluated", "cache hits", "seconds"),
            runs,
        ),
        dense_against_pruned(
            f"Dense against pruned: layers {best['dropped']} dropped", document["dense"], document["pruned"]
        ),
        f"wall time {document['seconds']:.0f} s",
        *exported(export),
        _next(
            f"optuna-dashboard {_storage_word(document)}",
            f"prunesearch evaluate {export['folder']} --calibration builtin-held-out",
            f"prunesearch search {document['model']} --drop 25% --trials 300{_storage_flag(document)}{cache}",
        ),
    ]


def evaluation(document: Document) -> Parts:
    """Metrics with standard errors."""
    rows = []
    for name, value in document["metrics"].items():
        error = document["stderr"].get(name)
        rows.append((label(name), number(name, value), "-" if error is None else number(name, error)))
    rows.append((label("params"), number("params", document["params"]), "-"))
    rows.append((label("bytes"), number("bytes", document["bytes"]), "-"))
    title = document["model"]
    if document["dropped"] != "none":
        title += f" without layers {document['dropped']}"
    return [
        table(title, ("", "value", "standard error"), rows),
        "from the cache" if document["cached"] else "",
    ]


def inventory(document: Document) -> Parts:
    """Parameters and bytes per block; equal neighbours share a line."""

    def weight(block: Document) -> tuple[Any, ...]:
        return tuple(block[name] for name in ("params", "attention", "mlp", "bytes"))

    rows = []
    for (params, attention, mlp, size), group in groupby(document["blocks"], key=weight):
        indices = [block["index"] for block in group]
        span = str(indices[0]) if len(indices) == 1 else f"{indices[0]}-{indices[-1]}"
        rows.append((span, f"{params:,}", f"{attention:,}", f"{mlp:,}", gib(size)))
    other = document["params"] - sum(block["params"] for block in document["blocks"])
    other_bytes = document["bytes"] - sum(block["bytes"] for block in document["blocks"])
    rows.append(("other", f"{other:,}", "", "", gib(other_bytes)))
    rows.append(("total", f"{document['params']:,}", "", "", gib(document["bytes"])))
    title = f"{document['model']}: {len(document['blocks'])} blocks (from its {document['source']})"
    return [table(title, ("block (each)", "parameters", "attention", "MLP", "size"), rows)]


def plan(document: Document) -> Parts:
    """What each place of the weights takes, which to use, and how."""
    rows = []
    for mode in document["modes"]:
        beside = f" + {gib(mode['host_memory'])} in host memory" if mode["host_memory"] else ""
        rows.append(
            (
                mode["weights"],
                gib(mode["memory"]) + beside,
                "yes" if mode["fits"] else "no",
                gib(mode["bytes_read"]) if mode["bytes_read"] else "-",
                duration(mode["seconds"]),
            )
        )
    speed = document["speed"]
    products = ", ".join(f"{rate / 1e9:.4g} GFLOP/s in {name}" for name, rate in sorted(speed["flops"].items()))
    title = (
        f"{document['model']}: {document['blocks']} blocks of {document['block_params']:,} parameters, "
        f"{document['params']:,} in all (from its {document['source']}), in {document['dtype']}"
    )
    return [
        table(title, ("--weights", "memory", f"in {gib(document['memory'])}", "read a generation", "time"), rows),
        f"a generation: {document['candidates']} candidates without {document['drop']} of the blocks, at random, on "
        f"{document['tokens']:,} tokens; they share {100 * document['shared']:.0f} % of the work, later ones more",
        f"this machine ({speed['device']}): {products}; reads {speed['disk'] / 1e9:.3g} GB/s from disk, "
        f"{speed['cached'] / 1e9:.3g} GB/s from the page cache",
        *document["notes"],
        _next(document["command"]) if document["command"] else "",
    ]


def study_list(document: Sequence[Document]) -> Parts:
    """One line per study."""
    columns = (
        "study",
        "objective",
        "drop",
        "sampler",
        "trials",
        "running",
        "failed",
        "best",
        "layers dropped",
    )
    rows = [
        (
            s["name"],
            s["objective"],
            s["drop"],
            s["sampler"],
            s["trials"],
            s["running"],
            s["failed"],
            "-" if s["best_value"] is None else f"{s['best_value']:.4f}",
            s["best_dropped"] or "-",
        )
        for s in document
    ]
    return [table("Studies", columns, rows)] if rows else ["no studies yet: run prunesearch search"]


def study_show(document: Document) -> Parts:
    """A study's recipe and best trials."""
    shown = {name: value for name, value in document["recipe"].items() if value not in (None, "", False)}
    shown["weights"] = ",".join(f"{name}={value:g}" for name, value in shown["weights"].items())
    stones = f", {document['stones']} partial" if document["stones"] else ""
    counts = f"{document['trials']} trials finished, {document['running']} running, {document['failed']} failed{stones}"
    recipe = table(document["name"], ("recipe", ""), shown.items())
    if document["best"] and len(document["best"][0]["values"]) > 1:
        return [recipe, counts, front_table("Best trials, one for each size", document["best"])]
    names = [name for name in document["best"][0]["attributes"] if name != "dropped"] if document["best"] else []
    rows = [
        (t["number"], f"{t['value']:.4f}", t["dropped"], *(t["attributes"].get(name, "-") for name in names))
        for t in document["best"]
    ]
    return [
        recipe,
        counts,
        table("Best trials", ("trial", "value", "layers dropped", *map(label, names)), rows),
    ]


def study_best(document: Document) -> Parts:
    """The layers alone, for scripts."""
    return [str(document["dropped"])]


def study_rm(document: Document) -> Parts:
    """What is gone."""
    return [f"deleted {document['deleted']} ({document['trials']} trials); its evaluations stay in the cache"]


def _run_line(document: Document) -> str:
    failed = f", {document['failed']} failed" if document["failed"] else ""
    adopted = f", {document['adopted']} adopted from a killed run" if document["adopted"] else ""
    damaged = f", {document['damaged']} damaged cache entries computed again" if document["damaged"] else ""
    return (
        f"this run: {document['computed']} evaluated, {document['hits']} cache hits{failed}{adopted}{damaged}, "
        f"{document['seconds']:.0f} s"
    )


def _storage_flag(document: Document) -> str:
    return "" if document["storage"] == "sqlite:///storage/study.db" else f" --storage {_storage_word(document)}"


def _storage_word(document: Document) -> str:
    """The URL of the studies in a command that can be pasted; the variable that holds it where it has a password."""
    return pasted(document["storage"], STORAGE_VARIABLE)


class Commands(str):
    """Lines to be copied, which must not be wrapped."""

    __slots__ = ()


def _next(*commands: str) -> Commands:
    return Commands("\n".join(["next:", *(f"  {command}" for command in commands)]))
