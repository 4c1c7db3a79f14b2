"""What a report is made from, read before the first figure is made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType

from prunesearch.studies.cache_use import CacheStatistics
from prunesearch.studies.measurements import Measurement
from prunesearch.studies.study_data import StudyData


@dataclass(frozen=True)
class ReportData:
    """Studies, and what was measured of their candidates.

    Attributes:
        studies: the studies, in the order in which they were named.
        measurements: what later stages measured, by the name of the study.
        cache: statistics of the evaluation cache; None if it is not there or was not asked for.
        made: time of the report, with a time zone.
    """

    studies: tuple[StudyData, ...]
    made: datetime
    measurements: Mapping[str, tuple[Measurement, ...]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    cache: CacheStatistics | None = None
