"""What dropping each layer costs, and which layers cost more together than one by one.

Both are fitted on all candidates of all studies that were scored on the same data.
"""

import math
from collections.abc import Sequence

import numpy as np

from prunesearch.analysis.intervals import NORMAL_REACH
from prunesearch.analysis.layer_effects import LayerEffects, PairEffect, layer_effects
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
from prunesearch.report.figures.pooled import PooledStudies, pooled
from prunesearch.report.figures.registry import FigureEntry, register
from prunesearch.report.figures.report_data import ReportData
from prunesearch.report.figures.styles import NEUTRAL, numbered
from prunesearch.report.figures.units import joined, kinds_of
from prunesearch.studies.study_data import StudyData

_ABSENT = "There are too few different candidates for a fit."


def effects_figure(report: ReportData) -> Figure | None:
    """Return the figure of the effects of layers; None with too few candidates."""
    panels: list[Panel] = []
    rows: list[tuple[Cell, ...]] = []
    shares = []
    for together in pooled(report.studies):
        # Without pairs, the effects are those of the additive model.
        found = _fit(together.studies, with_pairs=False)
        if all(map(math.isnan, found.effect)):
            continue
        panels += _effect_panels(together, found)
        rows += _effect_rows(together, found)
        shares.append((together.title, found.trials, found.explained))
    if not panels:
        return None
    return Figure(
        key="effects",
        title="What each layer is worth",
        caption=(
            "A point is how much worse the searched value gets if a layer is dropped, compared "
            "with the mean of the layers. It is fitted on all candidates, and the error bar is its "
            "95 % interval. The lowest layers can be spared. A long error bar means that few "
            "candidates differ in the layer." + _explained(shares)
        ),
        badges=(SEARCHED_ON,),
        panels=tuple(panels),
        table=NumberTable(
            ("studies", "layer", "effect", "standard deviation", "95 % from", "to", "data"),
            tuple(rows),
        ),
        columns=min(2, len(panels)),
    )


def pairs_figure(report: ReportData) -> Figure | None:
    """Return the map of the interactions of pairs; None if no pair occurs often enough."""
    panels: list[Panel] = []
    rows: list[tuple[Cell, ...]] = []
    shares = []
    for together in pooled(report.studies):
        found = _fit(together.studies, with_pairs=True)
        if not found.pairs:
            continue
        # Draw only the pairs that the candidates tell apart from 0.
        certain = [pair for pair in found.pairs if abs(pair.effect) > NORMAL_REACH * pair.stderr]
        if certain:
            panels.append(_pair_panel(together, certain))
        rows += _pair_rows(together, found.pairs)
        shares.append((together.title, found.trials, found.explained_with_pairs))
    if not rows:
        return None
    return Figure(
        key="pairs",
        title="Which layers depend on each other",
        caption=(
            "A row and a column are two layers. The colour is how much more it costs to drop both "
            "than the sum of dropping each. Above zero, one layer does the work of the other when "
            "that is dropped. Below zero, the second costs little once the first is dropped. Pairs "
            "whose 95 % interval includes zero are left empty. The table has every pair that "
            "enough candidates drop together and apart." + _explained(shares)
        ),
        badges=(SEARCHED_ON,),
        panels=tuple(panels),
        table=NumberTable(
            (
                "studies",
                "layer",
                "and layer",
                "interaction",
                "standard deviation",
                "95 % from",
                "to",
                "candidates that drop both",
                "data",
            ),
            tuple(rows),
        ),
        columns=max(1, min(2, len(panels))),
    )


def _fit(studies: Sequence[StudyData], *, with_pairs: bool) -> LayerEffects:
    """Fit the effects on the different candidates of studies. Each candidate counts once."""
    losses: list[float] = []
    rows = []
    known: set[str] = set()
    for study in studies:
        trials = []
        for trial in study.complete():
            # Equal candidates have equal losses, so a second one adds no information.
            if trial.dropped not in known:
                known.add(trial.dropped)
                trials.append(trial)
                losses.append(study.losses(trial)[0])
        rows.append(study.dropped_shares(trials))
    return layer_effects(np.concatenate(rows), losses, with_pairs=with_pairs)


def _explained(shares: Sequence[tuple[str, int, float]]) -> str:
    """Return the sentence that says how well the fit predicts candidates that it has not seen."""
    words = []
    for title, trials, explained in shares:
        if math.isfinite(explained):
            words.append(joined(title, f"{explained:.0%} with {trials:,} candidates"))
    if not words:
        return ""
    return f" Explained variance of candidates that were not fitted: {'; '.join(words)}."


def _effect_panels(together: PooledStudies, found: LayerEffects) -> list[Panel]:
    """Return a panel for each kind of unit."""
    effect_U, error_U = np.array(found.effect), NORMAL_REACH * np.array(found.stderr)
    panels = []
    for kind in kinds_of(together.studies[0].units):
        places = list(kind.places)
        series = Series(
            "effect",
            kind.x,
            effect_U[places].tolist(),
            "points",
            low=(effect_U - error_U)[places].tolist(),
            high=(effect_U + error_U)[places].tolist(),
            style=numbered(0),
            in_legend=False,
        )
        panels.append(
            Panel(
                joined(together.title, kind.title),
                kind.label,
                _unit(together),
                (series,),
                rules=(Rule(0.0, "mean of the layers", style=NEUTRAL),),
            )
        )
    return panels


def _unit(together: PooledStudies) -> str:
    """Return what gets worse, with its unit."""
    change = "fall" if together.studies[0].more_is_better else "rise"
    return f"{change} of {together.value_label}"


def _effect_rows(together: PooledStudies, found: LayerEffects) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    names = _names(together)
    for unit, effect, error in zip(
        together.studies[0].units, found.effect, found.stderr, strict=True
    ):
        # A unit that all candidates drop, or none, has no effect to estimate.
        if math.isnan(effect):
            rows.append((names, unit, None, None, None, None, SEARCHED_ON))
            continue
        reach = NORMAL_REACH * error
        rows.append((names, unit, effect, error, effect - reach, effect + reach, SEARCHED_ON))
    return rows


def _names(together: PooledStudies) -> str:
    """Return what a row is about."""
    return together.title or ", ".join(study.name for study in together.studies)


def _pair_panel(together: PooledStudies, pairs: Sequence[PairEffect]) -> Panel:
    """Return the symmetric map of the pairs. The diagonal is empty."""
    units = list(together.studies[0].units)
    # A pair has two cells, one on each side of the diagonal.
    z_UU = np.full((len(units), len(units)), np.nan)
    for pair in pairs:
        z_UU[pair.first, pair.second] = z_UU[pair.second, pair.first] = pair.effect
    heatmap = Heatmap(units, units, z_UU.tolist(), f"interaction: {_unit(together)}", True)
    return Panel(together.title, "layer", "layer", (heatmap,))


def _pair_rows(together: PooledStudies, pairs: Sequence[PairEffect]) -> list[tuple[Cell, ...]]:
    """Return the rows of pairs, those first that are known best to differ from 0."""
    units, names = together.studies[0].units, _names(together)

    def certainty(pair: PairEffect) -> float:
        return abs(pair.effect) / pair.stderr if pair.stderr > 0 else 0.0

    rows: list[tuple[Cell, ...]] = []
    for pair in sorted(pairs, key=certainty, reverse=True):
        reach = NORMAL_REACH * pair.stderr
        rows.append(
            (
                names,
                units[pair.first],
                units[pair.second],
                pair.effect,
                pair.stderr,
                pair.effect - reach,
                pair.effect + reach,
                pair.together,
                SEARCHED_ON,
            )
        )
    return rows


register(
    FigureEntry(
        name="effects",
        title="What each layer is worth",
        order=40,
        figure=effects_figure,
        absent=_ABSENT,
    )
)
register(
    FigureEntry(
        name="pairs",
        title="Which layers depend on each other",
        order=45,
        figure=pairs_figure,
        absent="No two layers were dropped together, and apart, in enough candidates.",
    )
)
