"""Shows a comparison of studies."""

from collections.abc import Sequence

from rich.console import Group

from prunesearch.report.removals import Removal, heading
from prunesearch.report.tables import (
    LayerList,
    Parts,
    Prose,
    duration,
    label,
    number,
    stderr_of,
    table,
    without_constant,
)
from prunesearch.studies.compared_study import ComparedStudy
from prunesearch.studies.comparison import SamplerMean, StudyComparison
from prunesearch.studies.winner_tests import WinnerTest
from prunesearch.units import plural


def comparison(found: StudyComparison) -> Parts:
    """Show one row for each study, the tests of their winners, and means over seeds."""
    parts: Parts = [_studies(found)]
    if found.tests:
        parts.append(_tests(found.tests))
    # One line for each reason, because many pairs may share it.
    pairs: dict[str, list[str]] = {}
    for pair in found.untested:
        pairs.setdefault(pair.reason, []).append(f"{pair.first} and {pair.second}")
    for reason, names in pairs.items():
        parts.append(f"not tested: {'; '.join(names)}: {reason}")
    if found.samplers:
        parts.append(_samplers(found.samplers, _is_decided(found)))
    for note in found.notes:
        parts.append(f"note: {note}")
    return parts


def _studies(found: StudyComparison) -> Group:
    # A winner that was decided under noise need not have the best measured value.
    decided = _is_decided(found)
    best, equal = ("value of the winner", "naive best") if decided else ("best", "best")
    after = "all"
    if found.equal_evaluations is not None:
        after = plural(found.equal_evaluations, "evaluation")
    equal = f"{equal} after {after}"
    columns = (
        "study", "model", "sampler", "removes", "value", best, "confirmed", "naive best", equal,
        "evaluations", "confirmed with (evaluations)",
        "distinct candidates", "cache hits", "scored for", "saved by the cache",
        "evaluations to best", "time to best", heading(row.winner for row in found.studies),
    )  # fmt: skip
    rows = []
    for row in found.studies:
        rows.append(
            (
                row.study,
                row.model,
                row.sampler,
                row.budget,
                label(row.metric),
                _best(row),
                *_decided(row),
                _value(row.metric, row.best_at_equal),
                f"{row.evaluations:,}",
                f"{row.confirming_evaluations:.0f}" if row.confirming_evaluations else "-",
                f"{row.distinct:,}",
                f"{row.hits:,}",
                duration(row.seconds),
                duration(row.saved_seconds) if row.hits else "-",
                "-" if row.evaluations_to_best is None else f"{row.evaluations_to_best:,}",
                "-" if row.seconds_to_best is None else duration(row.seconds_to_best),
                LayerList(Removal.of(row.winner or "-").brief),
            )
        )
    return table("Studies", *without_constant(columns, rows, {"-"}))


def _best(row: ComparedStudy) -> str:
    """Return a study's best value with its standard error, or the size of its front."""
    if row.front:
        return f"{row.front} on the front"
    if row.best is None:
        return "-"
    shown = number(row.metric, row.best)
    if row.stderr:
        shown += f" ± {stderr_of(row.metric, row.best, row.stderr)}"
    return shown


def _decided(row: ComparedStudy) -> tuple[str, str]:
    """Return the winner's value on further documents, and the naive best's measured value."""
    made = row.recommendation
    if made is None:
        return "-", "-"
    best, shown = made.best, "-"
    if best.fresh is not None:
        shown = f"{best.fresh:.4f} ({best.low:.4f} to {best.high:.4f})"
    return shown, number(row.metric, made.naive_best.value)


def _value(metric: str, value: float | None) -> str:
    return "-" if value is None else number(metric, value)


def _tests(tests: Sequence[WinnerTest]) -> Group:
    columns = (
        "better winner", "than", "loss", "documents", "by", "95 % interval", "p",
        "p, corrected", "differ", "data",
    )  # fmt: skip
    rows = []
    for test in tests:
        first, second, sign = test.first, test.second, 1.0
        if test.difference < 0:
            first, second, sign = second, first, -1.0
        low, high = sorted((sign * test.low, sign * test.high))
        rows.append(
            (
                first,
                second,
                label(test.metric),
                f"{test.documents:,}",
                f"{sign * test.difference:.4f} ± {test.stderr:.4f}",
                Prose(f"{low:.4f} to {high:.4f}"),
                f"{test.p:.2g}",
                f"{test.p_corrected:.2g}",
                "yes" if test.differ else "not shown",
                Prose(f"{test.data}, {test.badge}"),
            )
        )
    title = "Winners on the same documents (paired; p by sign flips, corrected by Holm's method)"
    return table(title, *without_constant(columns, rows, {"-"}))


def _is_decided(found: StudyComparison) -> bool:
    return any(row.recommendation is not None for row in found.studies)


def _samplers(means: Sequence[SamplerMean], decided: bool) -> Group:
    rows = []
    for mean in means:
        interval = shown = "-"
        if mean.studies > 1:
            shown = f"{mean.stderr:.4f}"
            interval = f"{mean.low:.4f} to {mean.high:.4f}"
        rows.append(
            (
                mean.sampler,
                mean.budget,
                label(mean.metric),
                mean.studies,
                number(mean.metric, mean.mean),
                shown,
                Prose(interval),
            )
        )
    columns = ("sampler", "removes", "value", "studies", "mean", "standard error", "95 % interval")
    best = "naive best" if decided else "best"
    title = (
        f"Samplers: mean of the {best} values after {plural(means[0].evaluations, 'evaluation')}"
    )
    return table(title, *without_constant(columns, rows, {"-"}))
