"""What commands print: each function turns one command's JSON document into tables and lines."""

from itertools import groupby
from shlex import quote
from typing import Any

from rich.console import Group

from prunesearch.masking import CACHE_VARIABLE, STORAGE_VARIABLE, pasted
from prunesearch.report.study import Document, Parts, front_table
from prunesearch.report.tables import Layers, dense_against_pruned, duration, gib, label, number, stderr_of, table

_MUCH = 0.1  # share of the dense model's quality, above which ways to bring it back are named


def search(document: Document) -> Parts:
    """The winner against the dense model, what the run cost, and what to do next."""
    if document["front"]:
        return _pareto(document)
    study, flag, sublayers = quote(document["study"]), _storage_flag(document), _drops_sublayers(document)
    return [
        *found(document),
        _next(
            f"prunesearch export {study} --out {study}{' --as zeroed' if sublayers else ''}{flag}",
            *_recovery(document),
            f"prunesearch study layers {study}{flag}",
            f"optuna-dashboard {_storage_word(document)}",
        ),
    ]


def found(document: Document) -> Parts:
    """The winner against the dense model, and what the run cost."""
    title = f"{document['study']}: best of {document['trials']} trials drops layers {document['best']['dropped']}"
    return [_compared(title, document), *_paired(document), _run_line(document)]


def _compared(title: str, document: Document) -> Group:
    """The dense model beside the best."""
    dense, best = document["dense"], document["best"]
    return dense_against_pruned(
        title,
        {**dense["metrics"], **_cost(document, "dense")},
        {**best["metrics"], **_cost(document, "best")},
        best["stderr"],
        dense["stderr"],
    )


def _cost(document: Document, model: str) -> Document:
    """What a model costs, with its latency under a name that says where it is from."""
    cost = dict(document[model]["cost"])
    cost["measured_ms" if document["latency_measured"] else "predicted_ms"] = cost.pop("latency_ms")
    return cost


def _paired(document: Document) -> Parts:
    """How sure the difference from the dense model is: both were scored on the same documents."""
    paired = document["paired"]
    if paired is None:
        return []
    name, difference, error = paired["metric"], paired["difference"], paired["stderr"]
    return [f"{name}, pruned - dense on the same {paired['documents']:,} documents: {difference:+.4f} ± {error:.4f}"]


def _recovery(document: Document) -> list[str]:
    """Commands that bring quality back, where much was lost."""
    if document["lost"] < _MUCH:
        return []
    study, flag = quote(document["study"]), _storage_flag(document)
    heal = f"prunesearch heal {study} --loss distill --steps 1000 --out {study}-healed"
    if _drops_sublayers(document):
        return [f"{heal} --as zeroed{flag}"]
    return [f"prunesearch compensate {study} --out {study}-compensated{flag}", f"{heal} --compensate{flag}"]


def _drops_sublayers(document: Document) -> bool:
    return any(letter in document["best"]["dropped"] for letter in "am")


def grid(document: Document) -> Parts:
    """Several studies that were searched at once, and what to do next."""
    searches = document["searches"]
    first, flag = quote(searches[0]["study"]), _storage_flag(searches[0])
    rows = [
        (
            s["study"],
            f"{len(s['front'])} on the front" if s["front"] else f"{s['value']:.4f}",
            f"{s['best']['cost']['params'] / s['dense']['cost']['params']:.3f}",
            f"{s['best']['cost']['latency_ms'] / s['dense']['cost']['latency_ms']:.3f}",
            s["trials"],
            Layers(s["best"]["dropped"]),
        )
        for s in searches
    ]
    columns = ("study", "best", "parameters", "latency", "trials", "layers dropped")
    computed, hits = (sum(s[name] for s in searches) for name in ("computed", "hits"))
    where = "measured" if searches[0]["latency_measured"] else "predicted"
    return [
        table(f"{len(rows)} studies over one engine and store, {duration(searches[-1]['seconds'])}", columns, rows),
        f"parameters and latency ({where}) as a share of the dense model's; this run: {computed} evaluated, "
        f"{hits} cache hits",
        _next(
            f"prunesearch study show {first}{flag}",
            f"prunesearch export {first} --out {first}{flag}",
            f"optuna-dashboard {_storage_word(searches[0])}",
        ),
    ]


def _pareto(document: Document) -> Parts:
    """The front, its knee against the dense model, and how to choose from it."""
    best, study, flag = document["best"], quote(document["study"]), _storage_flag(document)
    title = f"{document['study']}: {len(document['front'])} best of {document['trials']} trials"
    return [
        front_table(title, document["front"]),
        _compared(f"The knee drops layers {best['dropped']}", document),
        *_paired(document),
        _run_line(document),
        _next(
            f"prunesearch study best {study} --max-loss 10%{flag}",
            f"prunesearch export {study} --max-size {int(best['cost']['bytes'])} --out {study}{flag}",
            f"optuna-dashboard {_storage_word(document)}",
        ),
    ]


def exported(document: Document) -> Parts:
    """Where the checkpoint is and how it was verified."""
    check = document["verification"]
    said = " ".join(check["generated"].split())
    return [
        f"exported {document['folder']}: {number('params', document['params'])} parameters, "
        f"{document['bytes']:,} bytes ({gib(document['bytes'])}), without layers {document['dropped']}",
        f"verified: {check['weights']} tensors equal what was read; reloaded with from_pretrained, logits differ by "
        f"{_differences(check)}; allowed {check['allowed']:.3g}",
        f"it says: {said}" if said else "",
    ]


def _differences(check: Document) -> str:
    """The differences of a verification, each with what was compared."""
    parts = [f"{check['prefill_difference']:.3g} (prompt)"]
    if check["narrow_difference"] is not None:
        parts.append(f"{check['narrow_difference']:.3g} (with narrow attention windows)")
    if check["decode_difference"] is not None:
        how = "cached decoding" if check["cached"] else "decoding without a cache"
        parts.append(f"{check['decode_difference']:.3g} ({how}, {check['decoded']} steps)")
    return ", ".join(parts)


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
    if "gguf" in document:
        return [_verified_gguf(document)]
    lines: Parts = [
        f"{document['folder']} is what was exported: {document['weights']} tensors, logits differ by "
        f"{document['difference']:.3g}"
    ]
    if base := document.get("against_base"):
        lines.append(
            f"against {document['base_model']} without layers {document['dropped']}: logits differ by "
            f"{_differences(base)}"
        )
    return lines


def _verified_gguf(document: Document) -> str:
    """What a second verification found of a GGUF."""
    said = (
        f"{document['gguf']} is what was exported without layers {document['dropped']}: {document['tensors']} tensors"
    )
    check = document["llama_cpp"]
    if check is None:
        return f"{said}; not run: llama.cpp is not installed (pip install 'prunesearch[gguf]')"
    text = " ".join(check["generated"].split())
    if not document["compared"]:
        return f"{said}; llama.cpp runs it and says: {text} (--base MODEL compares it with the dense model)"
    return (
        f"{said}; in llama.cpp log-probabilities differ from the base model's candidate by {check['difference']:.3g} "
        f"nats in the mean (allowed {check['allowed']:.3g}); it says: {text}"
    )


def searched_and_exported(document: Document) -> Parts:
    """A whole run."""
    folder = quote(document["export"]["folder"])
    return [
        *found(document),
        *exported(document["export"]),
        _next(
            f"prunesearch evaluate {folder} --calibration builtin-held-out",
            *_recovery(document),
            f"optuna-dashboard {_storage_word(document)}",
        ),
    ]


def grid_and_exports(document: Document) -> Parts:
    """A run of several searches, and what was exported of them."""
    return [*grid(document), *(part for made in document["exports"] for part in exported(made))]


def demo(document: Document) -> Parts:
    """The demo's final screen."""
    best, export = document["best"], document["export"]
    cache = "" if document["cache"] == "storage/cache" else f" --cache {pasted(document['cache'], CACHE_VARIABLE)}"
    runs = [
        (
            run["sampler"],
            f"{run['value']:.4f}",
            run["trials"],
            run["computed"],
            run["hits"],
            f"{run['seconds']:.0f}",
            Layers(run["best"]["dropped"]),
        )
        for run in document["searches"]
    ]
    return [
        table(
            "Searches (one store: what one sampler scored, the next finds)",
            ("sampler", "best KL", "trials", "evaluated", "cache hits", "seconds", "layers dropped"),
            runs,
        ),
        dense_against_pruned(
            f"Dense against pruned: layers {best['dropped']} dropped",
            _measured(document["dense"]),
            _measured(document["pruned"]),
        ),
        f"wall time {document['seconds']:.0f} s",
        *exported(export),
        _next(
            f"optuna-dashboard {_storage_word(document)}",
            f"prunesearch evaluate {quote(export['folder'])} --calibration builtin-held-out",
            f"prunesearch search {quote(document['model'])} --drop 25% --trials 300{_storage_flag(document)}{cache}",
        ),
    ]


def _measured(figures: Document) -> Document:
    """Figures whose latency was measured, as it is in memory."""
    return {"measured_ms" if name == "latency_ms" else name: value for name, value in figures.items()}


def evaluation(document: Document) -> Parts:
    """Metrics with standard errors."""
    rows = []
    for name, value in document["metrics"].items():
        error = document["stderr"].get(name)
        rows.append((label(name), number(name, value), "-" if error is None else stderr_of(name, value, error)))
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


def _run_line(document: Document) -> str:
    failed = f", {document['failed']} failed" if document["failed"] else ""
    adopted = f", {document['adopted']} of them begun by an interrupted run" if document["adopted"] else ""
    damaged = f", {document['damaged']} damaged cache entries computed again" if document["damaged"] else ""
    return (
        f"this run: {document['computed']} evaluated, {document['hits']} cache hits{failed}{adopted}{damaged}, "
        f"{document['seconds']:.0f} s{_unfinished(document)}"
    )


def _unfinished(document: Document) -> str:
    """That a result is of a round which was not finished, and how to finish it."""
    missing = document["missing"]
    if not missing:
        return ""
    return (
        f"\nnot finished: {document['sampler']} has {missing} trials of its rounds to go, so this is not its result "
        f"yet; run it again with --trials {document['trials'] + missing}"
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
