"""Output of `compensate` for people."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group

from prunesearch.report.export import exported
from prunesearch.report.tables import LayerList, Parts, label, table

if TYPE_CHECKING:
    from prunesearch.report.results import CompensatedReport, WidthReport


def compensated(report: "CompensatedReport") -> Parts:
    """Show the result of each layer and gap, the metrics and the place of the export."""
    done = report.compensation
    parts: Parts = []
    if done.widths:
        parts.append(_widths(done.widths))
    # One row for each gap.
    gaps = []
    for gap in done.gaps:
        alpha = "-" if gap.alpha is None else f"{gap.alpha:.3f}"
        ridge = "-" if gap.ridge is None else f"{gap.ridge:g}"
        before, after = f"{gap.loss_before:.4f}", f"{gap.loss_after:.4f}"
        seconds = f"{gap.seconds:.1f}"
        gaps.append((LayerList(gap.dropped), gap.method, alpha, ridge, before, after, seconds))
    # One row for each metric, with one column for each model.
    models = {"dense": done.dense, "pruned": done.pruned, "compensated": done.compensated}
    metrics = []
    for metric in done.dense:
        # Adding 0.0 turns -0.0 into 0.0, which prints without a sign.
        rounded = [f"{round(model[metric], 4) + 0.0:.4f}" for model in models.values()]
        metrics.append((label(metric), *rounded))
    recovered = f"recovered {done.recovered:.1%} of the cross-entropy that pruning added"
    if done.cached:
        recovered += " (found before, and put in place)"
    columns = ("gap", "method", "alpha", "ridge", "loss before", "after", "seconds")
    if gaps or not done.widths:
        parts.append(table("Gaps, with the loss on held-out tokens", columns, gaps))
    parts.append(table("Held-out tokens", ("", *models), metrics))
    return [*parts, recovered, *exported(report.export)]


def _widths(widths: "Sequence[WidthReport]") -> Group:
    """Show the fits of the narrowed layers."""
    rows = []
    for width in widths:
        kept = f"{width.channels:,}", str(width.groups)
        attention = _fit(width.attention_ridge, width.attention_error)
        mlp = _fit(width.mlp_ridge, width.mlp_error)
        rows.append((str(width.layer), *kept, *attention, *mlp, f"{width.seconds:.1f}"))
    columns = (
        "layer", "channels", "KV groups", "attention ridge", "distance", "MLP ridge", "distance",
        "seconds",
    )  # fmt: skip
    title = "Narrowed layers, with the distance of their outputs from those of whole layers"
    return table(title, columns, rows)


def _fit(ridge: float | None, errors: Sequence[float] | None) -> tuple[str, str]:
    """Return the ridge and the distances of a fit as texts."""
    if ridge is None or errors is None:
        return "-", "-"
    before, after = errors
    return f"{ridge:g}", f"{before:.3f} → {after:.3f}"
