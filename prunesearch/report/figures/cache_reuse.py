"""How the studies used the evaluation cache, and whose evaluations they reused."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from prunesearch.report.figures.figure import Cell, Figure, NumberTable, Panel, Series
from prunesearch.report.figures.pooled import short_names
from prunesearch.report.figures.registry import FigureEntry, register
from prunesearch.report.figures.report_data import ReportData
from prunesearch.report.figures.styles import NEUTRAL, numbered
from prunesearch.studies.study_data import StudyData, TrialData

_ITSELF = "this study"
_ELSEWHERE = "not in this report"
_MOST = 6  # studies that are named as the origin of reused evaluations


@dataclass
class _Use:
    """Use of the cache by one study.

    Attributes:
        computed: number of candidates that were scored.
        hits: number of candidates whose results were found, by the study that had scored them.
        saved: seconds of scoring that this saved, by the same.
        spent: seconds of scoring.
    """

    computed: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    saved: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    spent: float = 0.0


def figure(report: ReportData) -> Figure | None:
    """Return the figure; None if no trial says whether it was found in the cache."""
    names = short_names(report.studies)
    uses = _uses(report.studies)
    if not uses:
        return None
    origins = _origins(uses)
    return Figure(
        key="cache",
        title="Use of the cache",
        caption=_caption(report, uses),
        badges=(),
        panels=(_trial_panel(uses, origins, names), _time_panel(uses, origins, names)),
        table=_table(uses),
        columns=2,
    )


def _uses(studies: tuple[StudyData, ...]) -> dict[str, _Use]:
    """Return the use of the cache by each study that says something about it."""
    first = _first_scored(studies)
    uses: dict[str, _Use] = {}
    for study in studies:
        use = _Use()
        for trial in study.trials:
            how = trial.attributes.get("cache")
            if how == "computed":
                use.computed += 1
                use.spent += trial.figure("seconds") or 0.0
            elif how == "hit":
                origin = _origin(first.get(_key(study, trial)), study, trial)
                use.hits[origin] += 1
                use.saved[origin] += trial.figure("saved_seconds") or 0.0
        if use.computed or use.hits:
            uses[study.name] = use
    return uses


def _key(study: StudyData, trial: TrialData) -> tuple[str, str, str]:
    """Return what decides whether two trials share their evaluations."""
    return study.model_content, study.data_content, trial.dropped


def _first_scored(studies: tuple[StudyData, ...]) -> dict[tuple[str, str, str], tuple[float, str]]:
    """Return when and in which study each candidate was scored first."""
    first: dict[tuple[str, str, str], tuple[float, str]] = {}
    for study in studies:
        for trial in study.trials:
            if trial.attributes.get("cache") != "computed" or trial.finished is None:
                continue
            scored = trial.finished, study.name
            key = _key(study, trial)
            first[key] = min(first.get(key, scored), scored)
    return first


def _origin(scored: tuple[float, str] | None, study: StudyData, trial: TrialData) -> str:
    """Return the study that scored a candidate before a trial found it in the cache."""
    # A study that scored it later is not where it came from.
    if scored is None or (trial.finished is not None and scored[0] > trial.finished):
        return _ELSEWHERE
    return _ITSELF if scored[1] == study.name else scored[1]


def _origins(uses: dict[str, _Use]) -> list[str]:
    """Return the origins of reused evaluations, those that were reused most first."""
    total: Counter[str] = Counter()
    for use in uses.values():
        total.update(use.hits)
    # Studies of the report come first, in the order of how often they were reused.
    named = [name for name, _ in total.most_common() if name not in (_ITSELF, _ELSEWHERE)]
    return [*named[:_MOST], *named[_MOST:], _ITSELF, _ELSEWHERE]


def _series(
    uses: dict[str, _Use],
    origins: list[str],
    names: dict[str, str],
    amounts: Mapping[str, Mapping[str, float]],
    own: Mapping[str, float],
) -> list[Series]:
    """Return stacked bars: what was computed, then what was reused of each origin."""
    places = [names[name] for name in uses]
    found = [Series("computed", places, list(own.values()), "bars", style=NEUTRAL)]
    rest = [0.0] * len(places)
    for index, origin in enumerate(origins):
        values = [float(amounts[name].get(origin, 0)) for name in uses]
        if not any(values):
            continue
        # Studies that were seldom reused share one colour.
        if _MOST <= index < len(origins) - 2:
            rest = [a + b for a, b in zip(rest, values, strict=True)]
            continue
        shown = f"reused of {names.get(origin, origin)}"
        if origin == _ELSEWHERE:
            shown = "reused, scored elsewhere"
        found.append(Series(shown, places, values, "bars", style=numbered(index % _MOST)))
    if any(rest):
        found.append(Series("reused of other studies", places, rest, "bars", style=numbered(_MOST)))
    return found


def _trial_panel(uses: dict[str, _Use], origins: list[str], names: dict[str, str]) -> Panel:
    hits = {name: use.hits for name, use in uses.items()}
    computed = {name: float(use.computed) for name, use in uses.items()}
    return Panel(
        "Candidates",
        "study",
        "number of candidates",
        tuple(_series(uses, origins, names, hits, computed)),
        bars="stacked",
        categories=tuple(names[name] for name in uses),
    )


def _time_panel(uses: dict[str, _Use], origins: list[str], names: dict[str, str]) -> Panel:
    saved = {name: use.saved for name, use in uses.items()}
    spent = {name: use.spent for name, use in uses.items()}
    series = _series(uses, origins, names, saved, spent)
    return Panel(
        "Time of scoring, spent and saved",
        "study",
        "time (s)",
        tuple(series),
        bars="stacked",
        categories=tuple(names[name] for name in uses),
    )


def _caption(report: ReportData, uses: dict[str, _Use]) -> str:
    """Return the totals, and how to read the bars."""
    computed = sum(use.computed for use in uses.values())
    hits = sum(use.hits.total() for use in uses.values())
    saved = sum(sum(use.saved.values()) for use in uses.values())
    text = (
        f"Of {computed + hits:,} candidates {hits:,} were found in the cache, which saved "
        f"{saved:,.0f} s of scoring. A bar is a study: the candidates that it computed, and "
        "those that it reused, by the study that had computed them. The second panel shows the "
        "same in seconds of scoring."
    )
    if report.cache is not None:
        text += f" The cache holds {report.cache.entries:,} entries."
    return text


def _table(uses: dict[str, _Use]) -> NumberTable:
    # A row for what was computed, and one for each origin.
    rows: list[tuple[Cell, ...]] = []
    for name, use in uses.items():
        rows.append((name, "computed", use.computed, use.spent, None))
        for origin, count in use.hits.most_common():
            rows.append((name, f"reused: {origin}", count, None, use.saved[origin]))
    return NumberTable(("study", "candidates", "number", "scoring (s)", "saved (s)"), tuple(rows))


register(
    FigureEntry(
        name="cache",
        title="Use of the cache",
        order=80,
        figure=figure,
        absent="The studies were searched without a cache.",
    )
)
