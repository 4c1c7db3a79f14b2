"""The charts of a study, for its own page and for those of its jobs."""

import math
from dataclasses import dataclass

from prunesearch.service.http.services import Services
from prunesearch.service.study_points import StudyPoints
from prunesearch.service.web.charts import Chart, curve, front_chart
from prunesearch.service.web.layer_map import LayerMap, layer_map
from prunesearch.service.web.study_source import points_of

_MAP_ROWS = 12  # best trials in the map of layers


@dataclass(frozen=True)
class StudyCharts:
    """The charts of a study.

    Attributes:
        exists: whether there is such a study.
        trials: number of finished trials.
        is_pareto: whether it has several objectives.
        metric: name of the first value.
        chart: best value so far, or the front of a Pareto study. None without finished trials.
        map: the layers that the best trials drop. None without finished trials.
    """

    exists: bool = False
    trials: int = 0
    is_pareto: bool = False
    metric: str = "value"
    chart: Chart | None = None
    map: LayerMap | None = None


def of_study(services: Services, name: str, total: int = 0) -> StudyCharts:
    """Read a study and make its charts.

    Args:
        services: what the routes share.
        name: name of the study. It need not exist yet.
        total: number of trials that it shall have; 0 if that is not known.
    """
    found = points_of(services.settings, name)
    return StudyCharts() if found is None else charts_of(found, total)


def charts_of(study: StudyPoints, total: int = 0) -> StudyCharts:
    """Make the charts of a study.

    Args:
        study: its finished trials.
        total: number of trials that it shall have; 0 if that is not known.
    """
    metric = study.metrics[0]
    best = study.best(_MAP_ROWS)
    if study.is_pareto:
        chart = front_chart(study.points, best, metric, study.metrics[1])
        # A long front is shown by some of its trials, from one end to the other.
        step = max(1, math.ceil(len(best) / (2 * _MAP_ROWS)))
        best = best[::step]
    else:
        chart = curve(
            study.points,
            metric,
            total,
            larger=study.maximized[0],
            recommended=study.recommended,
        )
    return StudyCharts(
        True, len(study.points), study.is_pareto, metric, chart, layer_map(best, study.layers)
    )
