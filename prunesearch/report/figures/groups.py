"""Studies that belong together: those that differ in their seed, and those that can be compared."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prunesearch.report.figures.styles import style_of
from prunesearch.runtime.json_values import Json
from prunesearch.studies.compared_study import DEFAULT_SETTINGS, value_settings
from prunesearch.studies.study_data import StudyData

_SEED = "seed"


@dataclass(frozen=True)
class StudyGroup:
    """Studies that differ in nothing but their seed, so that their mean has an error.

    Attributes:
        label: name of the algorithm, and the settings in which it differs from other groups of the
            same algorithm.
        sampler: name of the algorithm.
        style: number of its style.
        studies: the studies.
    """

    label: str
    sampler: str
    style: int
    studies: tuple[StudyData, ...]


@dataclass(frozen=True)
class ComparableStudies:
    """Studies of one model, one metric, one amount and the same layers to choose from, on the same
    data.

    Attributes:
        title: what tells these studies from others of the report; empty if there are no others.
        groups: the studies by algorithm.
    """

    title: str
    groups: tuple[StudyGroup, ...]

    @property
    def studies(self) -> tuple[StudyData, ...]:
        """The studies of all groups."""
        found: list[StudyData] = []
        for group in self.groups:
            found += group.studies
        return tuple(found)

    @property
    def first(self) -> StudyData:
        """A study, for what all of them have in common."""
        return self.groups[0].studies[0]


def groups_of(studies: Sequence[StudyData]) -> tuple[StudyGroup, ...]:
    """Return studies by algorithm and settings, in the order of the studies."""
    # 1. Studies with the same settings, except the seed, form a group.
    found: dict[str, list[StudyData]] = {}
    for study in studies:
        found.setdefault(_settings_key(study), []).append(study)
    # 2. Groups of one algorithm get the settings in which they differ as a label.
    groups = []
    labels = _labels([members[0] for members in found.values()])
    for label, members in zip(labels, found.values(), strict=True):
        sampler = members[0].sampler
        groups.append(StudyGroup(label, sampler, style_of(sampler), tuple(members)))
    return tuple(groups)


def _labels(firsts: Sequence[StudyData]) -> list[str]:
    """Return the labels of groups, each from one of its studies."""
    cut, whole = [], []
    for first in firsts:
        alike = [other for other in firsts if other.sampler == first.sampler]
        cut.append(first.sampler + _differences(first, alike, _brief))
        whole.append(first.sampler + _differences(first, alike, _whole))
    # Values that begin with the same letters are not cut.
    labels = []
    for short, long in zip(cut, whole, strict=True):
        labels.append(short if cut.count(short) == 1 else long)
    return labels


def comparable(studies: Sequence[StudyData]) -> tuple[ComparableStudies, ...]:
    """Return studies by what makes their values comparable, in the order of the studies."""
    found: dict[tuple[str, ...], list[StudyData]] = {}
    for study in studies:
        found.setdefault(_facts(study), []).append(study)
    sets = []
    for members in found.values():
        title = []
        for index, shown in enumerate(_shown_facts(members[0])):
            # A fact that all studies share needs no mention.
            if len({other[index] for other in found}) > 1 and shown:
                title.append(shown)
        sets.append(ComparableStudies(", ".join(title), groups_of(members)))
    return tuple(sets)


def _facts(study: StudyData) -> tuple[str, ...]:
    """Return what must be equal for two values to be comparable."""
    return (
        study.model_content or study.model_name,
        study.data_content,
        ", ".join(study.value_names),
        value_settings(study),
        study.recipe.search.removed,
        ", ".join(study.units),
    )


def _shown_facts(study: StudyData) -> tuple[str, ...]:
    """Return the facts of `_facts` for people."""
    return (
        study.model_name,
        f"data {study.data_content[:6]}" if study.data_content else "",
        study.metric_label,
        value_settings(study) or DEFAULT_SETTINGS,
        f"removing {study.recipe.search.removed}",
        f"chosen among {len(study.units)}",
    )


def _settings_key(study: StudyData) -> str:
    settings = {name: value for name, value in study.identity.items() if name != _SEED}
    return json.dumps(settings, sort_keys=True)


def _differences(
    study: StudyData, others: Sequence[StudyData], shown: Callable[[Json], str]
) -> str:
    """Return the settings of a study in which others differ, such as `` (encoding keys)``.

    Args:
        study: the study.
        others: studies of the same algorithm.
        shown: function that returns the text of a value.
    """
    words = []
    for name, value in study.identity.items():
        values = {json.dumps(other.identity.get(name), sort_keys=True) for other in others}
        if name != _SEED and len(values) > 1:
            words.append(f"{name} {shown(value)}")
    return f" ({', '.join(words)})" if words else ""


def _brief(value: Json) -> str:
    """Return a setting in few letters. Digests are cut."""
    if isinstance(value, str):
        return value[:12]
    return _whole(value)[:24]


def _whole(value: Json) -> str:
    """Return a setting as text."""
    return value if isinstance(value, str) else json.dumps(value)
