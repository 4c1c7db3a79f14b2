"""Output of `compensate` for people."""

from typing import TYPE_CHECKING

from prunesearch.report.export import exported
from prunesearch.report.tables import LayerList, Parts, label, table

if TYPE_CHECKING:
    from prunesearch.report.results import CompensatedReport


def compensated(report: "CompensatedReport") -> Parts:
    """Show the result of each gap, the metrics and the place of the export."""
    done = report.compensation
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
    return [
        table("Gaps, with the loss on held-out tokens", columns, gaps),
        table("Held-out tokens", ("", *models), metrics),
        recovered,
        *exported(report.export),
    ]
