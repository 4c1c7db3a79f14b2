"""Layers that the algorithms agree on: what the best candidates drop, side by side."""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from prunesearch.analysis.drops import Agreement, agreement
from prunesearch.analysis.paired import holm
from prunesearch.report.figures.drops import shares_of
from prunesearch.report.figures.figure import (
    SEARCHED_ON,
    Cell,
    Figure,
    Heatmap,
    NumberTable,
    Panel,
)
from prunesearch.report.figures.groups import ComparableStudies, comparable
from prunesearch.report.figures.pooled import finished, short_names
from prunesearch.report.figures.registry import FigureEntry, register
from prunesearch.report.figures.report_data import ReportData
from prunesearch.report.figures.units import UnitKind, joined, kinds_of
from prunesearch.studies.study_data import StudyData

_MOST_ROWS = 24  # studies of a map


def figure(report: ReportData) -> Figure | None:
    """Return the figure; None without two studies that remove the same amount."""
    names = short_names(report.studies)
    panels: list[Panel] = []
    rows: list[tuple[Cell, ...]] = []
    for together in comparable(finished(report.studies)):
        if len(together.studies) < 2 or together.first.is_pareto:
            continue
        for kind in kinds_of(together.first.units):
            panels.append(_panel(together, kind, names))
        rows += _pairs(together)
    if not panels:
        return None
    return Figure(
        key="agreement",
        title="Layers that the algorithms agree on",
        caption=(
            "A row is a study and a column is a layer. The colour is how much of the layer the "
            "best candidate of the study removes, in percent. The last row is the mean: 100 % is a "
            "layer that all of them drop. The table compares each two algorithms: the layers that "
            "both drop, and the rank correlation of how often the best tenth of their candidates "
            "drops each layer (1: the same order, 0: unrelated)."
        ),
        badges=(SEARCHED_ON,),
        panels=tuple(panels),
        table=NumberTable(
            (
                "algorithms",
                "both drop",
                "only the first",
                "only the second",
                "common share (Jaccard)",
                "of random subsets",
                "rank correlation of the best tenths",
                "p (Holm)",
                "data",
            ),
            tuple(rows),
        ),
        open_table=True,
    )


def _best_share_U(studies: Sequence[StudyData]) -> NDArray[np.float64]:
    """Return how much the best candidate of some studies drops of each unit."""
    losses: list[float] = []
    shares: list[NDArray[np.float64]] = []
    for study in studies:
        best = study.best()
        assert best is not None, "studies without a finished trial are left out"
        losses.append(study.losses(best)[0])
        shares.append(study.dropped_shares([best])[0])
    return shares[int(np.argmin(losses))]


def _panel(together: ComparableStudies, kind: UnitKind, names: dict[str, str]) -> Panel:
    """Return the map of the best candidates of a group."""
    studies = together.studies[:_MOST_ROWS]
    rows, labels = [], []
    for study in studies:
        share_U = _best_share_U([study])
        rows.append(100.0 * share_U[list(kind.places)])
        labels.append(names[study.name])
    # The last row tells how many of them agree.
    rows.append(np.mean(rows, axis=0))
    labels.append("mean")
    return Panel(
        joined(together.title, kind.title),
        kind.label,
        "",
        (
            Heatmap(
                kind.names,
                labels,
                [row.tolist() for row in rows],
                "removed by the best candidate (%)",
            ),
        ),
    )


def _pairs(together: ComparableStudies) -> list[tuple[Cell, ...]]:
    """Return a row for each two algorithms."""
    # 1. Compare what the best candidates and the best tenths drop.
    units = together.first.units
    names: list[str] = []
    compared: list[Agreement] = []
    for one, other in combinations(together.groups, 2):
        dropped, tenths = [], []
        for group in (one, other):
            share_U = _best_share_U(group.studies)
            dropped.append([unit for unit, share in zip(units, share_U, strict=True) if share > 0])
            tenths.append(shares_of(group.studies).best.share)
        names.append(joined(together.title, f"{one.label}, {other.label}"))
        compared.append(agreement(units, dropped[0], dropped[1], tenths[0], tenths[1]))
    # 2. Each comparison is one of several. One that is not defined counts as no difference.
    corrected = holm([1.0 if math.isnan(found.p) else found.p for found in compared])
    rows: list[tuple[Cell, ...]] = []
    for name, found, p in zip(names, compared, corrected, strict=True):
        rows.append(
            (
                name,
                ", ".join(found.common) or None,
                ", ".join(found.only_first) or None,
                ", ".join(found.only_second) or None,
                found.jaccard,
                _number(found.expected),
                _number(found.rank_correlation),
                None if math.isnan(found.p) else p,
                SEARCHED_ON,
            )
        )
    return rows


def _number(value: float) -> float | None:
    """Return a number, or None if it is not defined."""
    return value if math.isfinite(value) else None


register(
    FigureEntry(
        name="agreement",
        title="Layers that the algorithms agree on",
        order=35,
        figure=figure,
        absent="The report has no two studies that remove the same amount.",
    )
)
