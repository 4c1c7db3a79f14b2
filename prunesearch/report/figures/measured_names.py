"""Names of what later stages measured, the same in all figures."""

from collections.abc import Mapping, Sequence

from prunesearch.algorithms.registry import REGISTRY
from prunesearch.report.figures.styles import style_of
from prunesearch.studies.compared_study import metric_settings
from prunesearch.studies.measurements import BASELINE, Measurement
from prunesearch.studies.study_data import StudyData

_NAMES = {
    "dense": "dense",
    "winner": "pruned",
    "naive-best": "best by the search data",
    "healed": "healed",
    "compensated": "compensated",
    "exported": "exported",
}
_ORDER = tuple(_NAMES)
"""Roles from the dense model to what was made of the winner. Baselines come last."""


def name_of(measurement: Measurement, study: str, several: bool) -> str:
    """Return the displayed name of what was measured, such as ``pruned (pso)``.

    Args:
        measurement: the measurement.
        study: short name of its study.
        several: whether the report has several studies, so that the name needs that of the study.
    """
    role = measurement.role
    if role.startswith(BASELINE):
        # A baseline is a ranking of the layers, or the name of an algorithm.
        name = role.removeprefix(BASELINE)
        return name if name in REGISTRY.names() else f"{name} pruning"
    name = _NAMES.get(role, role)
    if several and role != "dense":
        return f"{name} ({study})"
    return name


def style_of_role(measurement: Measurement, study: StudyData) -> int:
    """Return the style of what was measured: a winner has that of its sampler."""
    role = measurement.role
    if role in ("winner", "naive-best"):
        return style_of(study.sampler)
    return style_of(role.removeprefix(BASELINE))


def place_of(measurement: Measurement) -> tuple[int, str]:
    """Return the position of a measurement in lists."""
    role = measurement.role
    if role in _ORDER:
        return _ORDER.index(role), ""
    return len(_ORDER), role


def latest(
    measurements: Mapping[str, Sequence[Measurement]], studies: Sequence[StudyData]
) -> list[tuple[StudyData, Measurement]]:
    """Return the measurements of the studies in the order of lists, each thing once.

    The dense model and the baselines may be measured once for each study. If candidate, role, data
    and metric with its settings are equal, the latest measurement is kept.
    """
    found: dict[tuple[str, ...], tuple[StudyData, Measurement]] = {}
    for study in studies:
        for made in measurements.get(study.name, ()):
            settings = metric_settings(study, made.metric)
            key: tuple[str, ...] = (
                made.role, made.candidate, made.data_content, made.metric, settings,
            )  # fmt: skip
            # What was made of a winner belongs to its study.
            if made.role != "dense" and not made.role.startswith(BASELINE):
                key = (*key, study.name)
            else:
                key = (*key, study.model_content)
            if key not in found or found[key][1].made <= made.made:
                found[key] = (study, made)
    return sorted(found.values(), key=lambda pair: place_of(pair[1]))
