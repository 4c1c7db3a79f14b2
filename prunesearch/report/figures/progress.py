"""The course of a search: its evaluations, the best candidate so far, and means over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunesearch.analysis.anytime import best_places, mean_curve
from prunesearch.report.figures.groups import StudyGroup
from prunesearch.studies.study_data import StudyData, TrialData


@dataclass(frozen=True)
class Course:
    """The evaluations of a study in their order.

    Attributes:
        study: the study.
        trials: trials that count as evaluations: finished ones and those that a race stopped.
        best: for each evaluation, the position of the best finished trial up to it; -1 before the
            first.
    """

    study: StudyData
    trials: tuple[TrialData, ...]
    best: NDArray[np.int64]

    @classmethod
    def of(cls, study: StudyData) -> "Course":
        """Return the course of a study with one value."""
        return cls(study, study.evaluated(), best_places(study.search_losses()))

    @property
    def improvements(self) -> list[int]:
        """Positions of the trials that were the best so far."""
        return sorted({int(position) for position in self.best if position >= 0})

    @property
    def finished(self) -> list[int]:
        """Positions of the finished trials whose values are finite."""
        found = []
        for position, trial in enumerate(self.trials):
            if trial.state == "complete" and trial.is_finite:
                found.append(position)
        return found

    def of_best(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Return a value of the best trial so far, for each evaluation.

        Args:
            values: the value of each trial.
        """
        array = np.append(np.asarray(values, dtype=float), math.nan)
        return array[self.best]


@dataclass(frozen=True)
class MeanCourse:
    """The mean of several courses of one algorithm at each evaluation where it changes.

    Attributes:
        x: numbers of evaluations, from 1.
        mean: mean over the studies that have got as far.
        error: standard error of the mean over studies; NaN if only one has got as far.
    """

    x: list[int]
    mean: list[float]
    error: list[float]


def mean_course(values: Sequence[NDArray[np.float64]]) -> MeanCourse:
    """Return the mean of several courses and its standard error.

    The mean ends where the shortest course ends, so that it never jumps because a study drops out.

    Args:
        values: for each study, the value at each evaluation.
    """
    curve = mean_curve(values)
    mean_E, error_E = np.array(curve.mean), np.array(curve.stderr)
    # A step needs its changes and its end only.
    changed_E = np.ones(len(mean_E), dtype=bool)
    changed_E[1:-1] = (mean_E[1:-1] != mean_E[:-2]) | (
        np.nan_to_num(error_E[1:-1]) != np.nan_to_num(error_E[:-2])
    )
    kept = np.flatnonzero(changed_E & np.isfinite(mean_E))
    return MeanCourse(
        x=[int(position) + 1 for position in kept],
        mean=[float(value) for value in mean_E[kept]],
        error=[float(value) for value in error_E[kept]],
    )


def courses_of(group: StudyGroup) -> tuple[Course, ...]:
    """Return the courses of the studies of a group that have a finished trial."""
    courses = [Course.of(study) for study in group.studies]
    return tuple(course for course in courses if course.finished)
