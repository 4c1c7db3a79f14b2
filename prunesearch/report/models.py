"""Output of `evaluate`, `analyze` and `plan` for people."""

from itertools import groupby
from typing import TYPE_CHECKING

from prunesearch.report.tables import (
    Parts,
    duration,
    gib,
    label,
    next_commands,
    number,
    stderr_of,
    table,
)
from prunesearch.units import noun_for, plural
from prunesearch.widths.layer_widths import described

if TYPE_CHECKING:
    from prunesearch.execution.plan_types import MemoryPlan
    from prunesearch.models.analyze import BlockInventory, NamedInventory
    from prunesearch.report.results import EvaluationReport, ProtocolReport


def evaluation(report: "EvaluationReport") -> Parts:
    """Show metrics with their standard errors."""
    rows = []
    for name, value in report.metrics.items():
        error = report.stderr.get(name)
        shown = "-" if error is None else stderr_of(name, value, error)
        rows.append((label(name), number(name, value), shown))
    rows.append((label("params"), number("params", report.params), "-"))
    rows.append((label("bytes"), number("bytes", report.bytes), "-"))
    title = report.model
    if report.dropped != "none":
        title += f" {described(report.dropped)}"
    shown_protocol = "" if report.protocol is None else _protocol(report.protocol)
    return [
        table(title, ("", "value", "standard error"), rows),
        shown_protocol,
        "from the cache" if report.cached else "",
    ]


def _protocol(found: "ProtocolReport") -> str:
    """Say what a protocol read, and whether its numbers can be compared with published ones."""
    said = (
        f"protocol {found.name} ({found.papers}): {found.windows} "
        f"{noun_for(found.windows, 'window')} of {found.window} "
        f"{noun_for(found.window, 'token')}, of {plural(found.tokens, 'token')} in "
        f"{plural(found.rows, 'row')}"
    )
    if found.comparable:
        return said
    return f"{said}\nnot comparable with published numbers: {found.text}"


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
    blocks = f"{len(inventory.blocks)} {noun_for(len(inventory.blocks), 'block')}"
    title = f"{found.model}: {blocks} (from its {inventory.source})"
    return [table(title, ("block (each)", "parameters", "attention", "MLP", "size"), rows)]


def plan(plan: "MemoryPlan") -> Parts:
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
        f"{plan.model}: {plan.blocks} {noun_for(plan.blocks, 'block')} of {plan.block_params:,} "
        f"parameters, "
        f"{plan.params:,} in all (from its {plan.source}), in {plan.dtype}"
    )
    return [
        table(
            title,
            ("--offload", "memory", f"in {gib(plan.memory)}", "read a generation", "time"),
            rows,
        ),
        f"a generation: {plan.candidates} {noun_for(plan.candidates, 'candidate')} without "
        f"{plan.drop} of the blocks, at random, on "
        f"{plan.tokens:,} tokens; they share {100 * plan.shared:.0f} % of the work, "
        f"later ones more",
        f"this machine ({speed.device}): {products}; reads {speed.disk / 1e9:.3g} GB/s from "
        f"disk, "
        f"{speed.cached / 1e9:.3g} GB/s from the page cache",
        *plan.notes,
        next_commands(plan.command) if plan.command else "",
    ]
