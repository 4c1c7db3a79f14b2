"""How often each algorithm dropped each layer: in all candidates, in the best and the worst."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

import numpy as np

from prunesearch.analysis.drops import DropShares, Shares, drop_shares
from prunesearch.report.figures.figure import (
    SEARCHED_ON,
    Cell,
    Figure,
    Heatmap,
    NumberTable,
    Panel,
    Rule,
    Series,
)
from prunesearch.report.figures.groups import ComparableStudies, StudyGroup, comparable
from prunesearch.report.figures.pooled import finished
from prunesearch.report.figures.registry import FigureEntry, register
from prunesearch.report.figures.report_data import ReportData
from prunesearch.report.figures.styles import NEUTRAL
from prunesearch.report.figures.units import UnitKind, joined, kinds_of
from prunesearch.studies.study_data import StudyData

_PARTS: tuple[tuple[str, Callable[[DropShares], Shares]], ...] = (
    ("all candidates", attrgetter("all")),
    ("best tenth", attrgetter("best")),
    ("worst tenth", attrgetter("worst")),
)
_MOST_BARS = 24  # bars of a panel; above, lines are drawn
_MOST_LINES = 3  # algorithms that are drawn as bars or lines; of more, maps are drawn
_MOST_BLOCKS = 48  # blocks of the same


@dataclass(frozen=True)
class _GroupShares:
    """How often the candidates of an algorithm drop each unit.

    Attributes:
        group: studies of the algorithm.
        shares: shares of all candidates, of the best and of the worst.
    """

    group: StudyGroup
    shares: DropShares


def figure(report: ReportData) -> Figure | None:
    """Return the figure; None if no study has a finished trial."""
    panels: list[Panel] = []
    rows: list[tuple[Cell, ...]] = []
    narrows = False
    for together in comparable(finished(report.studies)):
        found = []
        for group in together.groups:
            found.append(_GroupShares(group, shares_of(group.studies)))
        # A unit of more than one part is narrowed, not dropped.
        narrows = narrows or any(size > 1 for size in together.first.unit_sizes)
        panels += _panels(together, found)
        rows += _rows(together, found)
    if not panels:
        return None
    what = "share of a layer that candidates remove" if narrows else "share that drops a layer"
    return Figure(
        key="drops",
        title="How often each layer was dropped",
        caption=(
            f"The {what}, in percent, for each layer. The errors are 95 % intervals, computed as "
            "if the candidates were drawn independently. The model can spare a layer that the best "
            "tenth of the candidates drops more often than the worst tenth. The dotted line is the "
            "mean over the layers. Many algorithms or layers are drawn as a map, where the colour "
            "is the share; the intervals are in the table."
        ),
        badges=(SEARCHED_ON,),
        panels=tuple(panels),
        table=NumberTable(
            (
                "candidates",
                "algorithm",
                "layer",
                "number of candidates",
                "share",
                "95 % from",
                "to",
                "data",
            ),
            tuple(rows),
        ),
        columns=1 if any(panel.heatmap for panel in panels) else len(_PARTS),
    )


def shares_of(studies: Sequence[StudyData]) -> DropShares:
    """Return how often the candidates of studies drop each unit.

    The best and the worst tenth are those of each study by itself, because seeds differ.

    Args:
        studies: studies with equal units, each with a finished trial.
    """
    share_TU, place_T = [], []
    for study in studies:
        ranked = study.ranked()
        share_TU.append(study.dropped_shares(ranked))
        # A candidate's place among those of its study stands for its loss.
        place_T.append((np.arange(len(ranked)) + 0.5) / len(ranked))
    return drop_shares(np.concatenate(share_TU), np.concatenate(place_T))


def _panels(together: ComparableStudies, found: Sequence[_GroupShares]) -> list[Panel]:
    """Return a panel for each kind of unit and part of the candidates."""
    panels = []
    narrows = any(size > 1 for size in together.first.unit_sizes)
    label = "removed in the mean (%)" if narrows else "candidates that drop it (%)"
    for kind in kinds_of(together.first.units):
        for part, pick in _PARTS:
            title = joined(together.title, kind.title, part)
            picked = [(each.group, pick(each.shares)) for each in found]
            # Lines of many algorithms or layers would cover each other.
            if len(found) > _MOST_LINES or len(kind.places) > _MOST_BLOCKS:
                panels.append(Panel(title, kind.label, "", (_map(picked, kind, label),)))
                continue
            content = tuple(_series(group, shares, kind, len(found)) for group, shares in picked)
            rule = Rule(_mean(found, kind), "mean of all layers", style=NEUTRAL)
            panels.append(
                Panel(title, kind.label, label, content, rules=(rule,), y_range=(0.0, 103.0))
            )
    return panels


def _mean(found: Sequence[_GroupShares], kind: UnitKind) -> float:
    """Return the mean over algorithms and units, in percent."""
    shares_GU = [np.array(each.shares.all.share)[list(kind.places)] for each in found]
    return 100.0 * float(np.mean(shares_GU))


def _map(picked: Sequence[tuple[StudyGroup, Shares]], kind: UnitKind, label: str) -> Heatmap:
    """Return a map with a row for each algorithm."""
    rows = []
    for _, shares in picked:
        rows.append([100.0 * shares.share[place] for place in kind.places])
    return Heatmap(kind.names, [group.label for group, _ in picked], rows, label)


def _series(group: StudyGroup, shares: Shares, kind: UnitKind, groups: int) -> Series:
    """Return the shares of one algorithm: bars, or a line if there would be too many bars."""
    y = [100.0 * shares.share[place] for place in kind.places]
    low = [100.0 * shares.low[place] for place in kind.places]
    high = [100.0 * shares.high[place] for place in kind.places]
    drawn_as: Literal["bars", "line"] = "line"
    if groups * len(kind.places) <= _MOST_BARS:
        drawn_as = "bars"
    return Series(group.label, kind.x, y, drawn_as, low, high, group.style)


def _rows(together: ComparableStudies, found: Sequence[_GroupShares]) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    for each in found:
        for part, pick in _PARTS:
            shares = pick(each.shares)
            for place, unit in enumerate(together.first.units):
                rows.append(
                    (
                        joined(together.title, part),
                        each.group.label,
                        unit,
                        shares.trials,
                        shares.share[place],
                        shares.low[place],
                        shares.high[place],
                        SEARCHED_ON,
                    )
                )
    return rows


register(
    FigureEntry(
        name="drops",
        title="How often each layer was dropped",
        order=30,
        figure=figure,
        absent="No study has a finished trial.",
    )
)
