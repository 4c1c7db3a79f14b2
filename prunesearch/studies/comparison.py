"""Compares studies: what each found, what it cost, and whether their winners differ.

Nothing is scored. Winners are compared by paired tests on the same documents, whose losses were
measured or are in the cache (see `document_losses`). All others are compared at equal numbers of
evaluations.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from prunesearch.analysis import anytime
from prunesearch.cache import maintenance
from prunesearch.cache.backend import Readable
from prunesearch.cache.location import CacheLocation
from prunesearch.errors import InputError, StorageError, StudyError, UnavailableError, one_line
from prunesearch.studies import measurements, study_data
from prunesearch.studies.compared_study import (
    ComparedStudy,
    best_after,
    difference_of,
    row_of,
    same_question,
)
from prunesearch.studies.measurements import Measurement
from prunesearch.studies.study_data import StudyData
from prunesearch.studies.winner_tests import MOST_PAIRED, NotTested, WinnerTest, winner_tests
from prunesearch.units import noun_for

_SEED = "seed"  # the setting in which studies of one mean differ


@dataclass(frozen=True)
class SamplerMean:
    """The mean of several studies that differ in their seed only.

    Attributes:
        sampler, budget, metric: what the studies have in common.
        studies: number of studies.
        evaluations: number of evaluations after which they are compared.
        mean: mean of their best values by then.
        stderr: standard error of the mean over the studies.
        low, high: its 95 % interval.
    """

    sampler: str
    budget: str
    metric: str
    studies: int
    evaluations: int
    mean: float
    stderr: float
    low: float
    high: float


@dataclass(frozen=True)
class StudyComparison:
    """What `prunesearch compare` prints.

    Attributes:
        studies: the studies, in the given order.
        equal_evaluations: number of evaluations at which best values are compared: that of the
            shortest study. None if the values of the studies cannot be compared.
        tests: tests of winners.
        untested: pairs of winners that were not compared.
        samplers: means over studies of the same sampler and budget.
        notes: what must be known to read the numbers.
    """

    studies: tuple[ComparedStudy, ...]
    equal_evaluations: int | None
    tests: tuple[WinnerTest, ...]
    untested: tuple[NotTested, ...]
    samplers: tuple[SamplerMean, ...]
    notes: tuple[str, ...]


def compare(
    storage: str, names: Sequence[str], cache: str | None = None, joint: bool = False
) -> StudyComparison:
    """Compare studies of a database.

    Args:
        storage: URL of the database of studies.
        names: names of the studies.
        cache: location of the evaluation cache. None: only measured losses are compared.
        joint: whether studies of different models may be compared.

    Raises:
        UnknownNameError: a study does not exist.
        StudyError: a study is foreign, no study has a finished trial, or the models differ.
        InputError: a name is given twice.
        StorageError: the database cannot be read.
    """
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"study {name!r} is named twice: name each study once")
    studies = study_data.read_studies(storage, names)
    if not any(study.complete() for study in studies):
        raise StudyError(
            f"no trial of {', '.join(map(repr, names))} has finished yet: run the search first"
        )
    if not joint:
        refuse_other_models(studies)
    measured = {name: measurements.read(storage, name) for name in names}
    with ExitStack() as opened:
        backends: list[Readable] = []
        missing = ""
        if cache is not None:
            try:
                location = CacheLocation.parse(cache)
                backends = opened.enter_context(maintenance.reading(location))
            except (StorageError, OSError) as error:
                missing = one_line(error)
        try:
            comparison = comparison_of(studies, measured, backends)
        except UnavailableError as error:
            missing = one_line(error)
            comparison = comparison_of(studies, measured, ())
    if missing and comparison.untested:
        return replace(comparison, notes=(*comparison.notes, missing))
    return comparison


def refuse_other_models(studies: Sequence[StudyData]) -> None:
    """Refuse studies of different models.

    Raises:
        StudyError: the content of two studies' models differs.
    """
    first = studies[0]
    for other in studies[1:]:
        if other.model_content != first.model_content:
            raise StudyError(
                f"study {first.name!r} prunes {first.model_name} and study {other.name!r} prunes "
                f"{other.model_name} of other content: their values cannot be compared; give "
                f"`joint` to list them together"
            )


def comparison_of(
    studies: Sequence[StudyData],
    measured: Mapping[str, Sequence[Measurement]],
    backends: Sequence[Readable] = (),
) -> StudyComparison:
    """Compare studies that were read.

    Args:
        studies: the studies.
        measured: measurements of each study by its name.
        backends: open backends of the cache.
    """
    rows = [row_of(study) for study in studies]
    tests, untested = winner_tests(studies, measured, backends)
    equal: int | None = None
    if same_question(studies):
        # Best values are compared after as many evaluations as the shortest study has.
        equal = min(row.evaluations for row in rows if row.evaluations)
        rows = [
            replace(row, best_at_equal=best_after(study, equal))
            for row, study in zip(rows, studies, strict=True)
        ]
    return StudyComparison(
        tuple(rows), equal, tests, untested, _sampler_means(studies), tuple(_notes(studies))
    )


def _sampler_means(studies: Sequence[StudyData]) -> tuple[SamplerMean, ...]:
    """Return the means of studies that have sampler, budget and everything but the seed in common.

    Samplers without a second study are part of it if another has one, for comparison.
    """
    groups: defaultdict[str, list[StudyData]] = defaultdict(list)
    for study in studies:
        if study.is_pareto or not study.complete():
            continue
        settings = {name: value for name, value in study.identity.items() if name != _SEED}
        content = study.model_content, study.data_content, study.recipe.search.removed
        groups[json.dumps([*content, study.sampler, settings], sort_keys=True)].append(study)
    if not any(len(found) > 1 for found in groups.values()):
        return ()
    # All groups are compared after as many evaluations as the shortest study has.
    evaluations = min(len(study.evaluated()) for found in groups.values() for study in found)
    means = []
    for found in groups.values():
        best = []
        for study in found:
            value = best_after(study, evaluations)
            if value is not None:
                best.append(value)
        if not best:
            continue
        curve = anytime.mean_curve([[value] for value in best])
        means.append(
            SamplerMean(
                found[0].sampler,
                found[0].recipe.search.removed,
                found[0].value_names[0],
                len(best),
                evaluations,
                curve.mean[0],
                curve.stderr[0],
                curve.low[0],
                curve.high[0],
            )
        )
    return tuple(means)


def _notes(studies: Sequence[StudyData]) -> list[str]:
    """Return what must be known to read the numbers."""
    notes = []
    for study in studies:
        running = sum(trial.state == "running" for trial in study.trials)
        if not study.complete():
            notes.append(f"study {study.name} has no finished trial yet")
        elif running:
            trials = noun_for(
                running, "trial is under way or was left", "trials are under way or were left"
            )
            left = "by a search that was stopped"
            notes.append(f"study {study.name} is not finished: {running} {trials} {left}")
    # One note for each reason, because many studies may share it.
    first = studies[0]
    others: dict[str, list[str]] = {}
    for other in studies[1:]:
        reason = difference_of(first, other)
        if reason is not None and first.complete() and other.complete():
            others.setdefault(reason, []).append(other.name)
    for reason, names in others.items():
        notes.append(
            f"the best values of {first.name} and {', '.join(names)} cannot be compared: {reason}"
        )
    if sum(1 for study in studies if study.complete()) > MOST_PAIRED:
        notes.append(
            f"with more than {MOST_PAIRED} studies, each winner is compared with the best one only"
        )
    return notes
