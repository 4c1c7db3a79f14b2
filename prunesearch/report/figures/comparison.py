"""The comparison of studies, baselines and healed models, with errors and paired tests."""

from collections.abc import Sequence

from prunesearch.objectives.registry import metric_labels
from prunesearch.report.figures.compared import ModelComparison, measured, searched
from prunesearch.report.figures.figure import Cell, Figure, NumberTable, Panel, Series
from prunesearch.report.figures.groups import comparable
from prunesearch.report.figures.pooled import finished, short_names
from prunesearch.report.figures.registry import FigureEntry, register
from prunesearch.report.figures.report_data import ReportData

_WIDE = 30.0  # ratio of the largest to the smallest value above which an axis is logarithmic
_HEAD = (
    "data",
    "metric",
    "what",
    "value",
    "standard error",
    "n",
    "compared with",
    "difference of losses",
    "standard error of the difference",
    "95 % from",
    "to",
    "p",
    "p (Holm)",
    "dropped",
    "badge",
)


def figure(report: ReportData) -> Figure | None:
    """Return the figure; None if no study has a finished trial."""
    names = short_names(report.studies)
    comparisons = []
    labels: dict[str, str] = dict(metric_labels())
    # 1. Compare what the studies found on the search data. A front has no best value.
    for together in comparable(finished(report.studies)):
        if not together.first.is_pareto:
            comparisons.append(searched(together, names))
            labels[together.first.value_names[0]] = together.first.metric_label
    # 2. Compare what was measured, on the search data and on fresh data.
    comparisons += measured(report.measurements, report.studies, names)
    if not comparisons:
        return None
    badges = tuple(dict.fromkeys(comparison.badge for comparison in comparisons))
    return Figure(
        key="comparison",
        title="Comparison",
        caption=_caption(comparisons),
        badges=badges,
        panels=tuple(_panel(comparison, labels) for comparison in comparisons),
        table=_table(comparisons, labels),
        open_table=True,
        columns=min(2, len(comparisons)),
    )


def _caption(comparisons: Sequence[ModelComparison]) -> str:
    """Return how to read the values and tests."""
    text = (
        "A point is the value of a model, or the mean of an algorithm over several studies. Its "
        "error bar is the 95 % interval."
    )
    if any(row.test is not None for comparison in comparisons for row in comparison.rows):
        return text + (
            " The table compares each with the best winner, on the same documents or over the same "
            "seeds. A positive difference of losses is worse than the winner. p is the probability "
            "of such a difference by chance: by flips of the signs of the paired differences, and "
            "then corrected for the number of comparisons (Holm)."
        )
    return text + (
        " There are no losses of the same documents to compare: the option --score of prunesearch "
        "report measures them, and studies of several seeds are compared by seed."
    )


def _panel(comparison: ModelComparison, labels: dict[str, str]) -> Panel:
    """Return the values of a comparison."""
    values = [row.entry.value for row in comparison.rows]
    # Perplexities of bad baselines are so large that the others would all lie at 0.
    log_y = min(values) > 0 and max(values) > _WIDE * min(values)
    content = []
    for row in comparison.rows:
        entry = row.entry
        # An error that is not known is not drawn as 0.
        low, high = None, None
        if entry.stderr is not None:
            low, high = [entry.value - entry.reach], [entry.value + entry.reach]
            if log_y and low[0] <= 0:
                low = [min(values)]
        content.append(
            Series(
                entry.name,
                [entry.name],
                [entry.value],
                "points",
                low,
                high,
                entry.style,
                in_legend=False,
            )
        )
    return Panel(
        f"{comparison.title} ({comparison.badge})",
        "",
        labels.get(comparison.metric, comparison.metric),
        tuple(content),
        log_y=log_y,
        categories=tuple(row.entry.name for row in comparison.rows),
    )


def _table(comparisons: Sequence[ModelComparison], labels: dict[str, str]) -> NumberTable:
    rows: list[tuple[Cell, ...]] = []
    for comparison in comparisons:
        for row in comparison.rows:
            entry, test = row.entry, row.test
            # The reference and equal candidates have no test.
            tested: tuple[Cell, ...] = (None,) * 6
            if test is not None:
                tested = (
                    comparison.reference,
                    test.difference,
                    test.stderr,
                    test.low,
                    test.high,
                    test.p,
                )
            rows.append(
                (
                    comparison.title,
                    labels.get(comparison.metric, comparison.metric),
                    entry.name,
                    entry.value,
                    entry.stderr,
                    entry.n or None,
                    *tested,
                    row.p,
                    entry.candidate or None,
                    comparison.badge,
                )
            )
    return NumberTable(_HEAD, tuple(rows))


register(
    FigureEntry(
        name="comparison",
        title="Comparison",
        order=5,
        figure=figure,
        absent="No study with one value has a finished trial.",
    )
)
