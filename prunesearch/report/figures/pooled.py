"""Studies whose candidates are drawn or fitted together, and short names of studies."""

from collections.abc import Sequence
from dataclasses import dataclass

from prunesearch.studies.compared_study import value_settings
from prunesearch.studies.study_data import StudyData

_LONGEST = 41  # letters of a short name


@dataclass(frozen=True)
class PooledStudies:
    """Studies whose candidates consist of the same units and were scored on the same data.

    They may remove different amounts. See `groups.ComparableStudies` for those that do not.

    Attributes:
        title: what tells these studies from the others of a report; empty if there are no others.
        studies: the studies, each with a finished trial.
    """

    title: str
    studies: tuple[StudyData, ...]

    @property
    def value_label(self) -> str:
        """Label of the axis with the searched value."""
        return self.studies[0].metric_label

    def by_sampler(self) -> dict[str, tuple[StudyData, ...]]:
        """Return the studies of each sampler."""
        found: dict[str, tuple[StudyData, ...]] = {}
        for study in self.studies:
            found[study.sampler] = (*found.get(study.sampler, ()), study)
        return found


def finished(studies: Sequence[StudyData]) -> list[StudyData]:
    """Return the studies that have a finished trial."""
    return [study for study in studies if study.complete()]


def pooled(studies: Sequence[StudyData]) -> tuple[PooledStudies, ...]:
    """Put studies with a finished trial together, in the order of the studies."""
    members: dict[tuple[object, ...], list[StudyData]] = {}
    for study in finished(studies):
        key = (
            study.model_content,
            study.data_content,
            study.value_names[0],
            value_settings(study),
            study.units,
            study.unit_sizes,
        )
        members.setdefault(key, []).append(study)
    groups = list(members.values())
    found = []
    for title, group in zip(_titles(groups), groups, strict=True):
        found.append(PooledStudies(title, tuple(group)))
    return tuple(found)


def _titles(groups: Sequence[Sequence[StudyData]]) -> list[str]:
    """Return a title of each group, made of what is not the same in all of them."""
    if len(groups) < 2:
        return [""] * len(groups)
    described = []
    for group in groups:
        amounts = list(dict.fromkeys(study.recipe.search.removed for study in group))
        described.append(
            (
                group[0].model_name.rstrip("/").rsplit("/", 1)[-1],
                f"removing {', '.join(amounts)}",
                group[0].metric_label,
            )
        )
    # A part that all groups share says nothing.
    titles = []
    for parts in described:
        kept = []
        for place, part in enumerate(parts):
            if any(other[place] != part for other in described):
                kept.append(part)
        titles.append(", ".join(kept))
    if len(set(titles)) == len(titles):
        return titles
    return [", ".join(study.name for study in group) for group in groups]


def short_names(studies: Sequence[StudyData]) -> dict[str, str]:
    """Return a short name of each study, by its name: without the words that all names share.

    The words of a name are separated by dashes. A single study has the name of its sampler.
    """
    if len(studies) == 1:
        return {studies[0].name: studies[0].sampler}
    words = {study.name: study.name.split("-") for study in studies}
    least = min((len(split) for split in words.values()), default=0)
    # Count the words that all names begin and end with.
    start, end = 0, 0
    while start < least and len({tuple(split[: start + 1]) for split in words.values()}) == 1:
        start += 1
    while end < least - start and len({tuple(split[-1 - end :]) for split in words.values()}) == 1:
        end += 1
    found = {}
    for name, split in words.items():
        found[name] = shortened("-".join(split[start : len(split) - end]) or name)
    # Names that differ in the middle only stay whole.
    if len(set(found.values())) < len(found):
        return {name: name for name in found}
    return found


def shortened(name: str) -> str:
    """Return a name without the middle of a long one, which would leave no room for a figure."""
    if len(name) <= _LONGEST:
        return name
    half = (_LONGEST - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
