"""What a search cost: the time of scoring, and what the cache saved."""

from dataclasses import dataclass
from typing import Self

from prunesearch.studies.study_data import StudyData


@dataclass(frozen=True)
class SearchCost:
    """What a search cost. All trials count, also failed ones and those that are under way.

    Attributes:
        second_N: seconds of scoring of each trial that was not a cache hit.
        computed: number of candidates that were scored.
        hits: number of candidates that were found in the cache.
        saved_seconds: seconds of scoring that the cache saved.
        span: seconds from the first start to the last end of a trial. Breaks count. None if no
            trial has ended.
    """

    second_N: tuple[float, ...]
    computed: int
    hits: int
    saved_seconds: float
    span: float | None

    @classmethod
    def of(cls, study: StudyData) -> Self:
        """Add up what a study cost.

        A study of an earlier version does not say where its results came from. Its trials count as
        neither computed nor found, and their time counts.
        """
        second_N: list[float] = []
        starts: list[float] = []
        ends: list[float] = []
        computed, hits, saved = 0, 0, 0.0
        for trial in study.trials:
            how = trial.attributes.get("cache")
            computed += how == "computed"
            hits += how == "hit"
            # A cache hit took no time. A trial without a time was not scored yet.
            seconds = trial.figure("seconds")
            if how != "hit" and seconds is not None:
                second_N.append(seconds)
            saved += trial.figure("saved_seconds") or 0.0
            if trial.started is not None and trial.finished is not None:
                starts.append(trial.started)
                ends.append(trial.finished)
        span = max(ends) - min(starts) if ends else None
        return cls(tuple(second_N), computed, hits, saved, span)

    @property
    def seconds(self) -> float:
        """Seconds of scoring in all."""
        return sum(self.second_N)
