"""Page: a study."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import quote, urlencode

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import HTMLResponse

from prunesearch.errors import NotFoundError
from prunesearch.report.recommendation import decided
from prunesearch.service.access.roles import User
from prunesearch.service.http.auth import page_user
from prunesearch.service.http.services import Services, Shared
from prunesearch.service.job import FINAL
from prunesearch.service.study_points import StudyPoints, TrialPoint
from prunesearch.service.web.layout import page
from prunesearch.service.web.study_charts import charts_of
from prunesearch.service.web.study_source import points_of
from prunesearch.studies.study_rows import ListedStudy
from prunesearch.units import plural

PageViewer = Annotated[User, Depends(page_user("viewer"))]
_ROWS = 50  # trials of a page
_JOBS = 5  # jobs that are linked


@dataclass(frozen=True)
class TrialColumn:
    """A column of the table of trials.

    Attributes:
        name: heading.
        number: whether it holds numbers.
        url: where a click on the heading leads; empty if the table cannot be sorted by it.
        sorted: ``ascending`` or ``descending`` if the table is sorted by it, else empty.
    """

    name: str
    number: bool = True
    url: str = ""
    sorted: str = ""


@dataclass(frozen=True)
class TrialTable:
    """A page of a study's trials.

    Attributes:
        columns: headings.
        trials: trials in order.
        words: the order in words.
        shown: which of how many trials are shown, in words.
        first_page, next_page: paths of other pages. None: the page does not exist.
    """

    columns: tuple[TrialColumn, ...]
    trials: tuple[TrialPoint, ...]
    words: str
    shown: str
    first_page: str | None
    next_page: str | None


def add_to(app: FastAPI) -> None:
    """Add the route."""
    app.get("/studies/{name:path}", include_in_schema=False)(study_page)


def study_page(
    request: Request,
    name: str,
    user: PageViewer,
    services: Shared,
    sort: Annotated[str, Query(max_length=20)] = "number",
    order: Annotated[str, Query(max_length=20)] = "",
    start: Annotated[int, Query(alias="from", ge=0, le=2**40)] = 0,
) -> HTMLResponse:
    """Show a study."""
    found = points_of(services.settings, name)
    if found is None:
        raise NotFoundError(f"there is no study {name!r}")
    # Studies of other programs have charts and trials, but no recipe.
    summary = _summary(services, name)
    jobs = services.jobs.list(study=name, limit=_JOBS).jobs
    shown = charts_of(found)
    recommendation = None if summary is None else summary.recommendation
    table = trial_table(found, f"/studies/{quote(name, safe='')}", sort, order, start)
    values = {
        "section": "jobs",
        "name": name,
        "study": summary,
        "decided": decided(recommendation, shown.metric),
        "jobs": jobs,
        "active": any(job.state not in FINAL for job in jobs),
        "is_pareto": shown.is_pareto,
        "metric": shown.metric,
        "chart": shown.chart,
        "map": shown.map,
        "table": table,
    }
    return page(request, "study.html", values)


def _summary(services: Services, name: str) -> ListedStudy | None:
    """Return the summary of a study. None: prunesearch did not make it."""
    try:
        return services.studies.study(name)
    except NotFoundError:
        return None


def trial_table(
    study: StudyPoints, path: str, sort: str = "number", order: str = "", start: int = 0
) -> TrialTable:
    """Return a page of the table of trials.

    Args:
        study: the finished trials.
        path: path of the study's page.
        sort: ``number``, or the index of a value.
        order: ``descending``, or anything else for ascending.
        start: number of trials before the page.
    """
    # Parameters that mean nothing are read as the defaults.
    index = int(sort) if sort.isdecimal() and int(sort) < len(study.metrics) else None
    direction: Literal["ascending", "descending"] = "ascending"
    if order == "descending":
        direction = "descending"
    # 1. The order.
    rows: Sequence[TrialPoint] = study.points
    if index is not None:
        chosen = index
        complete = [point for point in study.points if len(point.values) > chosen]
        rows = sorted(complete, key=lambda point: (point.values[chosen], point.number))
    if direction == "descending":
        rows = rows[::-1]
    # 2. The headings. A click on the sorted one turns the order.
    columns = [_column("trial", "number", None, index, direction, path)]
    for i, metric in enumerate(study.metrics):
        columns.append(_column(metric, str(i), i, index, direction, path))
    columns.append(TrialColumn("dropped layers", number=False))
    # 3. The page.
    start = min(start, max(0, len(rows) - 1)) // _ROWS * _ROWS
    until = min(len(rows), start + _ROWS)
    words = f"by {'trial' if index is None else study.metrics[index]}, {direction}"
    kept = {"sort": sort if index is not None else "number", "order": direction}
    following = {**kept, "from": str(until)}
    return TrialTable(
        tuple(columns),
        tuple(rows[start:until]),
        words,
        f"{start + 1:,} to {until:,} of {plural(len(rows), 'finished trial')}, {words}",
        f"{path}?{urlencode(kept)}#trials" if start else None,
        f"{path}?{urlencode(following)}#trials" if until < len(rows) else None,
    )


def _column(
    name: str, key: str, own: int | None, index: int | None, direction: str, path: str
) -> TrialColumn:
    """Return a heading that sorts.

    Args:
        name: text of the heading.
        key: value of the parameter `sort` that sorts by it.
        own: index of the value; None for the number of the trial.
        index: index of the value that the table is sorted by; None for the number.
        direction: present order.
        path: path of the study's page.
    """
    turned = "ascending"
    is_sorted = own == index
    if is_sorted and direction == "ascending":
        turned = "descending"
    url = f"{path}?{urlencode({'sort': key, 'order': turned})}#trials"
    return TrialColumn(name, True, url, direction if is_sorted else "")
