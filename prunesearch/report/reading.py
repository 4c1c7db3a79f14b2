"""Reads what a report is made from: studies, their measurements and the cache's statistics.

No model is loaded.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from shlex import quote

from prunesearch.cache.location import CacheLocation
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import StorageError, StudyError, UnavailableError
from prunesearch.report.current_measurements import current
from prunesearch.report.figures.report_data import ReportData
from prunesearch.runtime.masking import STORAGE_VARIABLE, command
from prunesearch.studies import cache_use, measurements
from prunesearch.studies.study_data import StudyData, read_studies


def read_report(
    storage: str, names: Sequence[str], cache: str | None = None, *, joint: bool = False
) -> ReportData:
    """Read the data of a report.

    Args:
        storage: URL of the database of studies.
        names: names of the studies. A name that is given twice counts once.
        cache: location of the evaluation cache; None to leave it out. It need not exist.
        joint: whether studies of different models may stand on one page.

    Raises:
        UnknownNameError: a study does not exist.
        StudyError: a study has no finished trial, was not made by prunesearch, or is of another
            model.
        StorageError: the database cannot be read.
    """
    wanted = list(dict.fromkeys(names))
    studies = read_studies(storage, wanted)
    for study in studies:
        study.require_finished()
    if not joint:
        _refuse_other_models(studies)
    measured = {}
    for study in studies:
        measured[study.name] = current(study, measurements.read(storage, study.name))
    return ReportData(studies, datetime.now(UTC), measured, _statistics(cache, storage))


def check_studies(storage: str, names: Sequence[str], *, joint: bool) -> None:
    """Refuse studies that `read_report` would refuse.

    Raises:
        PruneSearchError: see `read_report`.
    """
    studies = read_studies(storage, names)
    for study in studies:
        study.require_finished()
    if not joint:
        _refuse_other_models(studies)


def _refuse_other_models(studies: Sequence[StudyData]) -> None:
    first = studies[0]
    for study in studies[1:]:
        if _model(study) != _model(first):
            raise StudyError(
                f"studies {first.name!r} and {study.name!r} are of different models "
                f"({first.model_name}, {study.model_name}): report them one by one, or give "
                "`joint` to put both on one page"
            )


def _model(study: StudyData) -> str:
    return study.model_content or study.model_name


def _statistics(cache: str | None, storage: str) -> cache_use.CacheStatistics | None:
    """Return the statistics of the cache; None if it is not there."""
    if cache is None:
        return None
    try:
        return cache_use.statistics(CacheLocation.parse(cache), storage)
    except (StorageError, UnavailableError, OSError):
        # A report needs the studies only. They may have been copied from another machine, and the
        # cache may be somebody else's or damaged.
        return None


def report_command(report: ReportData, out: str, storage: str, *, joint: bool) -> str:
    """Return the command that makes a report again. It names no folder of this machine.

    Args:
        report: data of the report.
        out: name of the folder of the report.
        storage: URL of the database of studies.
        joint: whether studies of different models stand on one page.
    """
    words = ["prunesearch", "report", "--out", out]
    if joint:
        words.append("--joint")
    line = command(words)[0]
    # Another database is named by its variable, because its URL may hold a folder or a password.
    if storage != RunOptions().storage:
        line += f' --storage "${STORAGE_VARIABLE}"'
    names = [study.name for study in report.studies]
    if any(name.startswith("-") for name in names):
        line += " --"
    return " ".join([line, *map(quote, names)])
