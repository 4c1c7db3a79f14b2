"""Output of the commands for people.

Each function turns one command's JSON document into tables and lines.
"""

from collections.abc import Mapping
from itertools import groupby
from shlex import quote
from typing import TYPE_CHECKING, Any

from rich.console import Group

from prunesearch.report.study import front_table
from prunesearch.report.tables import (
    Commands,
    Layers,
    Parts,
    dense_against_pruned,
    duration,
    gib,
    label,
    number,
    stderr_of,
    table,
)
from prunesearch.runtime.masking import CACHE_VARIABLE, STORAGE_VARIABLE, pasted

if TYPE_CHECKING:
    from prunesearch.execution.memory_plan import Plan
    from prunesearch.export.results import (
        Exported,
        ExportedGguf,
        GgufRecheck,
        PrintedRecipe,
        Recheck,
        Verification,
    )
    from prunesearch.models.analyze import BlockInventory, NamedInventory

Document = Mapping[str, Any]
_MUCH = 0.1  # lost share of the dense model's quality above which commands that recover it are suggested


def search(document: Document) -> Parts:
    """Show the best candidate against the dense model, the cost of the run, and the next
    commands.
    """
    if document["front"]:
        return _pareto(document)
    study, flag = quote(document["study"]), _storage_flag(document)
    # A plain checkpoint cannot leave out single sublayers.
    form = " --as zeroed" if _drops_sublayers(document) else ""
    return [
        *found(document),
        _next(
            f"prunesearch export {study} --out {study}{form}{flag}",
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
                Layers(each["best"]["dropped"]),
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
        _next(
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
        _next(
            f"prunesearch study best {study} --max-loss 10%{flag}",
            f"prunesearch export {study} --max-size {int(best['cost']['bytes'])} --out "
            f"{study}{flag}",
            f"optuna-dashboard {_storage_word(document)}",
        ),
    ]


def exported(made: "Exported") -> Parts:
    """Show where the checkpoint is and how it was verified."""
    check = made.verification
    said = " ".join(check.generated.split())
    parts: Parts = [
        f"exported {made.folder}: {number('params', made.params)} parameters, "
        f"{made.bytes:,} bytes ({gib(made.bytes)}), without layers {made.candidate.text}",
        f"verified: {check.weights} tensors equal what was read; reloaded with from_pretrained, "
        f"logits differ by {_differences(check)}; allowed {check.allowed:.3g}",
    ]
    if said:
        parts.append(f"it says: {said}")
    if made.pushed is not None:
        parts.append(f"pushed to {made.pushed}")
    return parts


def _differences(check: "Verification") -> str:
    """List the differences that a verification measured, each with the compared outputs."""
    parts = [f"{check.prefill_difference:.3g} (prompt)"]
    if check.narrow_difference is not None:
        parts.append(f"{check.narrow_difference:.3g} (with narrow attention windows)")
    if check.decode_difference is not None:
        how = "cached decoding" if check.cached else "decoding without a cache"
        parts.append(f"{check.decode_difference:.3g} ({how}, {check.decoded} steps)")
    return ", ".join(parts)


def delivered(done: "Exported | ExportedGguf | PrintedRecipe") -> Parts:
    """Show the result of an export command: printed text, a GGUF file or a checkpoint."""
    from prunesearch.export.results import ExportedGguf, PrintedRecipe

    if isinstance(done, PrintedRecipe):
        return [done.text.rstrip()]
    if isinstance(done, ExportedGguf):
        return _exported_gguf(done)
    return exported(done)


def _exported_gguf(made: "ExportedGguf") -> Parts:
    """Show where a GGUF file is and how it was verified."""
    check = made.check
    proof = (
        "not verified, since llama.cpp is not installed: pip install 'prunesearch[gguf]', then run "
        f"prunesearch verify {quote(str(made.path))}"
    )
    if check is not None:
        proof = (
            f"verified in llama.cpp: log-probabilities differ by {check.difference:.3g} nats in "
            f"the mean (allowed {check.allowed}), {check.largest:.3g} at most, over "
            f"{check.steps} greedy tokens; it says: {' '.join(check.generated.split())}"
        )
    written = f"wrote {made.path}: {made.bytes:,} bytes, without layers {made.candidate.text}"
    return [written, proof]


def verified(found: "Recheck | GgufRecheck") -> Parts:
    """Show the result of a repeated verification."""
    from prunesearch.export.results import GgufRecheck

    if isinstance(found, GgufRecheck):
        return [_verified_gguf(found)]
    lines: Parts = [
        f"{found.folder} is what was exported: {found.weights} tensors, logits differ by "
        f"{found.difference:.3g}"
    ]
    if found.against_base is not None:
        lines.append(
            f"against {found.base_model} without layers {found.dropped}: logits differ by "
            f"{_differences(found.against_base)}"
        )
    return lines


def _verified_gguf(found: "GgufRecheck") -> str:
    """Describe the result of a repeated verification of a GGUF file."""
    from prunesearch.export.results import LlamaCppCheck

    said = f"{found.path} is what was exported without layers {found.dropped}: "
    said += f"{found.tensors} tensors"
    check = found.llama_cpp
    if check is None:
        return f"{said}; not run: llama.cpp is not installed (pip install 'prunesearch[gguf]')"
    text = " ".join(check.generated.split())
    if not isinstance(check, LlamaCppCheck):
        return f"{said}; llama.cpp runs it and says: {text} (--base MODEL compares it with the dense model)"
    return (
        f"{said}; in llama.cpp log-probabilities differ from the base model's candidate by "
        f"{check.difference:.3g} nats in the mean (allowed {check.allowed:.3g}); it says: {text}"
    )


def searched_and_exported(document: Document) -> Parts:
    """Show a search and the export of its best candidate."""
    folder = quote(str(document["export"].folder))
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
                Layers(run["best"]["dropped"]),
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
        _next(
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


def evaluation(document: Document) -> Parts:
    """Show metrics with their standard errors."""
    rows = []
    for name, value in document["metrics"].items():
        error = document["stderr"].get(name)
        shown = "-" if error is None else stderr_of(name, value, error)
        rows.append((label(name), number(name, value), shown))
    rows.append((label("params"), number("params", document["params"]), "-"))
    rows.append((label("bytes"), number("bytes", document["bytes"]), "-"))
    title = document["model"]
    if document["dropped"] != "none":
        title += f" without layers {document['dropped']}"
    return [
        table(title, ("", "value", "standard error"), rows),
        "from the cache" if document["cached"] else "",
    ]


def inventory(found: "NamedInventory") -> Parts:
    """Show parameters and bytes of each block. Equal neighbours share a line."""

    def weight(block: "BlockInventory") -> tuple[int, int, int, int]:
        return block.params, block.attention, block.mlp, block.bytes

    inventory = found.inventory
    rows = []
    for (params, attention, mlp, size), group in groupby(inventory.blocks, key=weight):
        indices = [block.index for block in group]
        span = str(indices[0]) if len(indices) == 1 else f"{indices[0]}-{indices[-1]}"
        rows.append((span, f"{params:,}", f"{attention:,}", f"{mlp:,}", gib(size)))
    # The rest is the embedding, the final norm and the head.
    other = inventory.params - sum(block.params for block in inventory.blocks)
    other_bytes = inventory.bytes - sum(block.bytes for block in inventory.blocks)
    rows.append(("other", f"{other:,}", "", "", gib(other_bytes)))
    rows.append(("total", f"{inventory.params:,}", "", "", gib(inventory.bytes)))
    title = f"{found.model}: {len(inventory.blocks)} blocks (from its {inventory.source})"
    return [table(title, ("block (each)", "parameters", "attention", "MLP", "size"), rows)]


def plan(plan: "Plan") -> Parts:
    """Show what each location of the weights costs, which one to use, and the command for it."""
    rows = []
    for mode in plan.modes:
        memory = gib(mode.memory)
        if mode.host_memory:
            memory += f" + {gib(mode.host_memory)} in host memory"
        fits = "yes" if mode.fits else "no"
        read = gib(mode.bytes_read) if mode.bytes_read else "-"
        rows.append((mode.offload, memory, fits, read, duration(mode.seconds)))
    speed = plan.speed
    rates = []
    for name, rate in sorted(speed.flops.items()):
        rates.append(f"{rate / 1e9:.4g} GFLOP/s in {name}")
    products = ", ".join(rates)
    title = (
        f"{plan.model}: {plan.blocks} blocks of {plan.block_params:,} "
        f"parameters, "
        f"{plan.params:,} in all (from its {plan.source}), in {plan.dtype}"
    )
    return [
        table(
            title,
            ("--offload", "memory", f"in {gib(plan.memory)}", "read a generation", "time"),
            rows,
        ),
        f"a generation: {plan.candidates} candidates without {plan.drop} of the "
        f"blocks, at random, on "
        f"{plan.tokens:,} tokens; they share {100 * plan.shared:.0f} % of the work, "
        f"later ones more",
        f"this machine ({speed.device}): {products}; reads {speed.disk / 1e9:.3g} GB/s from "
        f"disk, "
        f"{speed.cached / 1e9:.3g} GB/s from the page cache",
        *plan.notes,
        _next(plan.command) if plan.command else "",
    ]


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


def _next(*commands: str) -> Commands:
    """Format commands that the user may run next."""
    lines = ["next:"]
    for command in commands:
        lines.append(f"  {command}")
    return Commands("\n".join(lines))
