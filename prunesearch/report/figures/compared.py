"""What a report compares: measured models, and the best values of algorithms over several seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunesearch.analysis.intervals import half_width, quantile_of, reach_of, standard_error
from prunesearch.analysis.paired import PairedTest, holm, paired_test
from prunesearch.report.figures.figure import SEARCHED_ON
from prunesearch.report.figures.groups import ComparableStudies, StudyGroup
from prunesearch.report.figures.measured_names import name_of, style_of_role
from prunesearch.report.figures.measured_together import measured_together
from prunesearch.report.removals import Removal
from prunesearch.studies.measurements import BASELINE, Badge, Measurement
from prunesearch.studies.study_data import StudyData, TrialData


@dataclass(frozen=True)
class ComparedModel:
    """One model or algorithm among those that are compared.

    Attributes:
        name: displayed name.
        study: name of the study; empty if it belongs to none in particular.
        candidate: what it drops; empty for several candidates.
        value: value of the metric.
        stderr: its standard error; None if it is not known.
        reach: half of the 95 % interval; 0 if the error is not known.
        n: number of documents, or of studies whose mean it is.
        losses: losses that a test can pair, by document or seed; empty without.
        style: number of the style.
        is_winner: whether others may be compared with it.
    """

    name: str
    study: str
    candidate: str
    value: float
    stderr: float | None
    reach: float
    n: int
    losses: tuple[float, ...]
    style: int
    is_winner: bool


@dataclass(frozen=True)
class ComparedRow:
    """An entry beside the reference of its comparison.

    Attributes:
        entry: the entry.
        test: difference of its losses from those of the reference; None if they cannot be paired,
            or if it is the reference.
        p: probability of the test, corrected for all tests of the comparison; None without.
    """

    entry: ComparedModel
    test: PairedTest | None
    p: float | None


@dataclass(frozen=True)
class ModelComparison:
    """Entries whose values can be compared.

    Attributes:
        title: name of the data.
        metric: name of the metric.
        badge: whether the search has seen the data.
        reference: name of the entry that the others are compared with; empty without.
        rows: the entries.
    """

    title: str
    metric: str
    badge: Badge
    reference: str
    rows: tuple[ComparedRow, ...]


def measured(
    measurements: Mapping[str, Sequence[Measurement]],
    studies: Sequence[StudyData],
    names: Mapping[str, str],
) -> list[ModelComparison]:
    """Return the comparisons of measured models: one for each budget, data and metric.

    Args:
        measurements: measurements by the name of the study.
        studies: studies of the report.
        names: short name of each study.
    """
    comparisons = []
    found = measured_together(measurements, studies)
    for together in found:
        first = together.first
        entries = _entries(together.pairs, names, len(studies) > 1)
        comparisons.append(_compare(together.title(found), first.metric, first.badge, entries))
    return comparisons


def _entries(
    pairs: Sequence[tuple[StudyData, Measurement]], names: Mapping[str, str], several: bool
) -> list[ComparedModel]:
    """Return an entry for each model. Baselines with several candidates are a mean."""
    entries = []
    by_name = _by_name(pairs, names, several)
    for name, same in by_name.items():
        study, made = same[0]
        error = _error_of([each for _, each in same])
        quantile = quantile_of(made.n) if len(same) == 1 else half_width(len(same))
        entries.append(
            ComparedModel(
                name=name if len(same) == 1 else f"{name}, mean of {len(same)}",
                study="" if made.role.startswith(BASELINE) else study.name,
                candidate=made.candidate if len(same) == 1 else "",
                value=float(np.mean([each.value for _, each in same])),
                stderr=error,
                reach=reach_of(error, quantile),
                n=made.n,
                losses=_mean_losses([each for _, each in same]),
                style=style_of_role(made, study),
                is_winner=made.role == "winner",
            )
        )
    return entries


def _by_name(
    pairs: Sequence[tuple[StudyData, Measurement]], names: Mapping[str, str], several: bool
) -> dict[str, list[tuple[StudyData, Measurement]]]:
    """Return measurements by their displayed name. Only baselines may have several of one name."""
    shown = [name_of(made, names[study.name], several) for study, made in pairs]
    found: dict[str, list[tuple[StudyData, Measurement]]] = {}
    for name, (study, made) in zip(shown, pairs, strict=True):
        # Checkpoints of several candidates are told apart by what they drop.
        if shown.count(name) > 1 and not made.role.startswith(BASELINE):
            name = f"{name}, {Removal.of(made.candidate).phrase}"
        found.setdefault(name, []).append((study, made))
    return found


def _error_of(made: Sequence[Measurement]) -> float | None:
    """Return the standard error of a measurement, or of the mean of several candidates."""
    if len(made) == 1:
        return made[0].stderr
    return standard_error([each.value for each in made])


def _mean_losses(made: Sequence[Measurement]) -> tuple[float, ...]:
    """Return the mean loss of each document; empty if one measurement lacks them."""
    if not all(each.per_document and made[0].is_comparable(each) for each in made):
        return ()
    return tuple(np.mean([each.per_document for each in made], axis=0).tolist())


def searched(together: ComparableStudies, names: Mapping[str, str]) -> ModelComparison:
    """Return the comparison of the best values that the studies found on the search data.

    Algorithms with several seeds are compared by the seeds that they have in common. A single study
    has the standard error that its search stored, and no test.

    Args:
        together: studies with a finished trial each.
        names: short name of each study.
    """
    entries = []
    for group in together.groups:
        if len(group.studies) > 1:
            entries.append(_group_entry(group, _common_seeds(together.groups)))
        else:
            entries.append(_study_entry(group.studies[0], group, names))
    first = together.first
    title = ": ".join(part for part in (together.title, "best of each study") if part)
    return _compare(title, first.value_names[0], SEARCHED_ON, entries)


def _common_seeds(groups: Sequence[StudyGroup]) -> list[int]:
    """Return the seeds that all algorithms with several studies have, in order."""
    seeds: set[int] | None = None
    for group in groups:
        if len(group.studies) > 1:
            own = {study.recipe.search.seed for study in group.studies}
            seeds = own if seeds is None else seeds & own
    return sorted(seeds or ())


def _group_entry(group: StudyGroup, seeds: Sequence[int]) -> ComparedModel:
    """Return the mean of the best values of several seeds."""
    best = [(study, _best_of(study)) for study in group.studies]
    values = [trial.values[0] for _, trial in best]
    losses = {study.recipe.search.seed: study.losses(trial)[0] for study, trial in best}
    error = standard_error(values)
    return ComparedModel(
        name=f"{group.label}, mean of {len(values)} studies",
        study="",
        candidate="",
        value=float(np.mean(values)),
        stderr=error,
        reach=half_width(len(values)) * error,
        n=len(values),
        losses=tuple(losses[seed] for seed in seeds),
        style=group.style,
        is_winner=True,
    )


def _best_of(study: StudyData) -> TrialData:
    """Return the best trial of a study; under noise the recommended one."""
    best = study.best()
    assert best is not None, "studies without a finished trial are refused"
    return best


def _study_entry(study: StudyData, group: StudyGroup, names: Mapping[str, str]) -> ComparedModel:
    """Return the value of a study's best trial."""
    best = _best_of(study)
    error = study.error_of(best)
    return ComparedModel(
        names[study.name],
        study.name,
        best.dropped,
        best.values[0],
        error,
        reach_of(error),
        1,
        (),
        group.style,
        is_winner=True,
    )


def _compare(
    title: str, metric: str, badge: Badge, entries: Sequence[ComparedModel]
) -> ModelComparison:
    """Compare entries with the best winner among them, and correct for the number of tests."""
    # 1. The reference is the winner with the least mean loss.
    reference: ComparedModel | None = None
    for entry in entries:
        if entry.is_winner and len(entry.losses) > 1:
            better = reference is None or np.mean(entry.losses) < np.mean(reference.losses)
            reference = entry if better else reference
    # 2. Test the others.
    tests = [_test(entry, reference) for entry in entries]
    corrected = iter(holm([test.p for test in tests if test is not None]))
    rows = []
    for entry, test in zip(entries, tests, strict=True):
        rows.append(ComparedRow(entry, test, None if test is None else next(corrected)))
    return ModelComparison(title, metric, badge, reference.name if reference else "", tuple(rows))


def _test(entry: ComparedModel, reference: ComparedModel | None) -> PairedTest | None:
    """Compare an entry with the reference; None if their losses cannot be paired."""
    if reference is None or entry is reference or len(entry.losses) != len(reference.losses):
        return None
    # Equal candidates need no test.
    if entry.candidate and entry.candidate == reference.candidate:
        return None
    return paired_test(reference.losses, entry.losses)
