"""Tables for people, built from plain values."""

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Group:
    """A title over a plain table whose first column is text and whose others are right-aligned."""
    built = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        built.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in rows:
        built.add_row(*(str(cell) for cell in row))
    return Group(Text(title, style="bold"), built)


def dense_against_pruned(
    title: str,
    dense: Mapping[str, float],
    pruned: Mapping[str, float],
    stderr: Mapping[str, float] | None = None,
) -> Group:
    """Metrics of the dense and the pruned model side by side, with the ratio pruned / dense.

    Args:
        stderr: standard errors of the pruned model's metrics, shown behind them.
    """
    errors = stderr or {}
    rows = []
    for name, after in pruned.items():
        before = dense.get(name)
        ratio = f"{after / before:.3f}" if before else "-"
        error = f" ± {number(name, errors[name])}" if name in errors else ""
        rows.append((label(name), "-" if before is None else number(name, before), number(name, after) + error, ratio))
    return table(title, ("", "dense", "pruned", "pruned/dense"), rows)


_LABELS = {
    "params": "parameters",
    "bytes": "bytes",
    "kl": "KL to dense (nats/token)",
    "cross_entropy": "cross-entropy (nats/token)",
    "latency_ms": "latency (ms)",
    "held_out_perplexity": "held-out perplexity",
    "held_out_kl": "held-out KL (nats/token)",
}


def label(metric: str) -> str:
    """A metric's name for people."""
    return _LABELS.get(metric, metric)


def number(metric: str, value: float) -> str:
    """A metric's value for people."""
    if metric == "bytes":
        return f"{int(value):,} ({gib(value)})"
    if metric == "params":
        return f"{int(value):,}"
    return f"{value:.1f}" if metric == "latency_ms" else f"{value:.4g}" if abs(value) >= 100 else f"{value:.4f}"


def gib(size: float) -> str:
    """Bytes as GiB (2^30)."""
    return f"{size / 2**30:.{2 if size >= 2**30 else 3}f} GiB"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
