"""Winners on the data that they were searched on, and on fresh data.

Of many noisy scores the best is partly luck, so a winner does worse on data that no candidate was
compared on.
"""

import math
from collections.abc import Sequence

from prunesearch.analysis.intervals import ends, quantile_of, reach_of
from prunesearch.analysis.selection_bias import SelectionBias, mean_bias
from prunesearch.report.figures.figure import (
    HELD_OUT,
    SEARCHED_ON,
    Cell,
    Figure,
    NumberTable,
    Panel,
    Rule,
    Series,
)
from prunesearch.report.figures.pooled import short_names
from prunesearch.report.figures.registry import FigureEntry, register
from prunesearch.report.figures.report_data import ReportData
from prunesearch.report.figures.styles import NEUTRAL, numbered, style_of
from prunesearch.report.figures.winner_losses import WinnerOnBothData, winner_of

_HEAD = (
    "study",
    "algorithm",
    "winner",
    "loss on search data",
    "standard error",
    "loss on fresh data",
    "standard error (fresh)",
    "bias",
    "standard error of the bias",
    "95 % from",
    "to",
    "expected bias",
    "documents (fresh)",
)


def figure(report: ReportData) -> Figure | None:
    """Return the figure; None if no winner was measured on fresh data."""
    winners = []
    for study in report.studies:
        winner = winner_of(study, report.measurements.get(study.name, ()))
        if winner is not None:
            winners.append(winner)
    if not winners:
        return None
    names = short_names(report.studies)
    # Losses of different metrics have axes of their own.
    by_label: dict[str, list[WinnerOnBothData]] = {}
    for winner in winners:
        by_label.setdefault(winner.label, []).append(winner)
    panels: list[Panel] = []
    for same in by_label.values():
        panels += [_loss_panel(same, names), _bias_panel(same)]
    return Figure(
        key="selection-bias",
        title="Selection bias",
        caption=(
            "The bars are how much worse each winner is than the dense model, on the data that it "
            "was searched on and on fresh data. The bias is the second minus the first, for each "
            "algorithm. Error bars are 95 % intervals. A bias above zero means that the winner "
            "looks better on the search data than it is."
        ),
        badges=(SEARCHED_ON, HELD_OUT),
        panels=tuple(panels),
        table=NumberTable(_HEAD, tuple(_row(winner) for winner in winners)),
        columns=2,
    )


def _loss_panel(winners: Sequence[WinnerOnBothData], names: dict[str, str]) -> Panel:
    """Return the panel of both losses of each winner."""
    places = [names[winner.study.name] for winner in winners]
    content = []
    for index, (name, losses) in enumerate(
        (
            ("search data (searched on)", [winner.search for winner in winners]),
            ("fresh data (held out)", [winner.fresh for winner in winners]),
        )
    ):
        y = [loss.value for loss in losses]
        low, high = ends(y, [reach_of(loss.stderr, quantile_of(loss.n)) for loss in losses])
        content.append(Series(name, places, y, "bars", low, high, numbered(index)))
    return Panel(
        "Loss of the winners",
        "study",
        f"above the dense model, {winners[0].label}",
        tuple(content),
        categories=tuple(places),
    )


def _bias_panel(winners: Sequence[WinnerOnBothData]) -> Panel:
    """Return the panel of the bias of each algorithm, a mean if it has several studies."""
    samplers: dict[str, list[SelectionBias]] = {}
    for winner in winners:
        samplers.setdefault(winner.study.sampler, []).append(winner.bias)
    content = []
    for sampler, biases in samplers.items():
        y, low, high = biases[0].bias, biases[0].low, biases[0].high
        # Several studies have a mean, whose error is that over studies.
        if len(biases) > 1:
            mean = mean_bias([bias.bias for bias in biases])
            y, low, high = mean.mean, mean.low, mean.high
        content.append(
            Series(
                sampler,
                [sampler],
                [y],
                "points",
                [low],
                [high],
                style_of(sampler),
                in_legend=False,
            )
        )
    return Panel(
        "Bias of each algorithm",
        "algorithm",
        f"fresh \u2212 search data, {winners[0].label}",
        tuple(content),
        rules=(Rule(0.0, "no bias", style=NEUTRAL),),
        categories=tuple(samplers),
    )


def _row(winner: WinnerOnBothData) -> tuple[Cell, ...]:
    bias = winner.bias
    known = math.isfinite(bias.stderr)
    return (
        winner.study.name,
        winner.study.sampler,
        winner.candidate,
        winner.search.value,
        winner.search.stderr,
        winner.fresh.value,
        winner.fresh.stderr,
        bias.bias,
        bias.stderr if known else None,
        bias.low if known else None,
        bias.high if known else None,
        winner.expected,
        winner.fresh.n or None,
    )


register(
    FigureEntry(
        name="selection-bias",
        title="Selection bias",
        order=65,
        figure=figure,
        absent=(
            "No winner was measured on fresh data with the dense model: the option --score does it."
        ),
    )
)
