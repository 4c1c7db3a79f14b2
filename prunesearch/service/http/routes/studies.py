"""Routes of studies: list, show, best, front, trials, layers; and the statistics of the cache."""

import csv
import io
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Literal

from fastapi import FastAPI, Path, Query, Response
from starlette.responses import StreamingResponse

from prunesearch.cache.location import CacheLocation
from prunesearch.errors import InputError, NotFoundError
from prunesearch.runtime.json_values import Json, to_json
from prunesearch.service.http.auth import Viewer
from prunesearch.service.http.routes.jobs import Limit
from prunesearch.service.http.routing import problems
from prunesearch.service.http.services import Services, Shared
from prunesearch.service.http.study_documents import (
    BestTrialDocument,
    CacheDocument,
    LayersDocument,
    StudyDetailsDocument,
    StudyDocument,
    StudyPageDocument,
    TrialListDocument,
    TrialPageDocument,
)
from prunesearch.studies import cache_use
from prunesearch.studies.selection import SelectionCriteria
from prunesearch.studies.trial_rows import ListedTrial

Name = Annotated[
    str, Path(min_length=1, max_length=512, pattern=r"^[^\x00]*$", description="Name of the study.")
]
TrialStateName = Literal["running", "complete", "pruned", "fail", "waiting"]
_CSV_PAGE = 1000
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First letters of a cell that a spreadsheet would compute."""


def add_to(app: FastAPI) -> None:
    """Add the routes of studies."""
    get = app.get
    tags: list[str | Enum] = ["studies"]
    known = problems(404)
    get(
        "/v1/studies",
        operation_id="list_studies",
        response_model=StudyPageDocument,
        responses=problems(),
        tags=tags,
    )(list_studies)
    get(
        "/v1/studies/{name:path}/trials.csv",
        operation_id="trials_csv",
        response_class=Response,
        responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}, **known},
        tags=tags,
    )(trials_csv)
    # The name of a study may have slashes in it, so the route of the study itself comes last.
    for path, handler, model in (
        ("/best", best_trial, BestTrialDocument),
        ("/front", show_front, TrialListDocument),
        ("/trials", list_trials, TrialPageDocument),
        ("/layers", show_layers, LayersDocument),
        ("", show_study, StudyDetailsDocument),
    ):
        get(
            "/v1/studies/{name:path}" + path,
            operation_id=handler.__name__,
            response_model=model,
            responses=known,
            tags=tags,
        )(handler)
    get(
        "/v1/cache",
        operation_id="show_cache",
        response_model=CacheDocument,
        responses=known,
        tags=["cache"],
    )(show_cache)


def list_studies(
    user: Viewer,
    services: Shared,
    limit: Limit = 50,
    cursor: Annotated[
        str, Query(max_length=512, description="Field `next` of the page before.")
    ] = "",
) -> StudyPageDocument:
    """List studies in the order of their names, with their counts and their best trials."""
    found = services.studies.studies(limit + 1, cursor)
    more = len(found) > limit
    studies = [StudyDocument.model_validate(study) for study in found[:limit]]
    return StudyPageDocument(studies=studies, next=studies[-1].name if more else None)


def show_study(name: Name, user: Viewer, services: Shared) -> dict[str, Json]:
    """Show a study: its counts, its best trial, and its recipe."""
    study = to_json(services.studies.study(name))
    assert isinstance(study, dict)
    return {**study, "recipe": services.studies.recipe(name)}


def best_trial(
    name: Name,
    user: Viewer,
    services: Shared,
    max_loss: Annotated[
        str | None, Query(max_length=20, description="Largest loss: 2% or 0.05.")
    ] = None,
    max_size: Annotated[
        str | None, Query(max_length=20, description="Largest size: 100MiB.")
    ] = None,
) -> object:
    """Show the best trial, or the best that meets the limits.

    Where scores are noisy, it is the recommended one, and `recommendation` says how it was decided.
    """
    wanted = SelectionCriteria.parse(max_loss, max_size)
    best = services.studies.best(name, wanted)
    return to_json(
        {
            "number": best.trial.number,
            "state": "complete",
            "values": best.trial.values,
            "dropped": best.trial.dropped,
            "attributes": dict(best.trial.attributes),
            "started": None,
            "finished": None,
            "recommendation": best.recommendation,
        }
    )


def show_front(name: Name, user: Viewer, services: Shared) -> object:
    """Show the trials that no other trial dominates, the best quality first."""
    return to_json({"trials": services.studies.front(name)})


def list_trials(
    name: Name,
    user: Viewer,
    services: Shared,
    limit: Annotated[int, Query(ge=1, le=5000)] = 500,
    cursor: Annotated[
        int, Query(ge=0, le=2**31 - 1, description="Field `next` of the page before.")
    ] = 0,
    state: Annotated[list[TrialStateName] | None, Query(max_length=5)] = None,
) -> object:
    """List trials in the order of their numbers."""
    found = services.studies.trials(name, limit + 1, cursor, state or ())
    following = found[limit].number if len(found) > limit else None
    return to_json({"trials": found[:limit], "next": following})


def trials_csv(name: Name, user: Viewer, services: Shared) -> Response:
    """Download all trials as CSV. A cell that a spreadsheet would compute begins with a quote."""
    names = services.studies.attribute_names(name)
    objectives = services.studies.study(name).objectives
    file = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
    headers = {"Content-Disposition": f'attachment; filename="{file[:100]}.csv"'}
    lines = _csv(services, name, objectives, names)
    return StreamingResponse(lines, media_type="text/csv", headers=headers)


def _csv(services: Services, name: str, objectives: int, attributes: list[str]) -> Iterator[str]:
    """Yield the lines of the CSV file, a page of trials at a time."""
    values = [f"value_{index}" if objectives > 1 else "value" for index in range(objectives)]
    yield _line(["number", "state", *values, "dropped", "started", "finished", *attributes])
    first = 0
    while True:
        page = services.studies.trials(name, _CSV_PAGE, first)
        yield "".join(_line(_cells(trial, objectives, attributes)) for trial in page)
        if len(page) < _CSV_PAGE:
            return
        first = page[-1].number + 1


def _cells(trial: ListedTrial, objectives: int, attributes: list[str]) -> list[object]:
    cells: list[object] = [trial.number, trial.state]
    cells += [*trial.values, *[None] * objectives][:objectives]
    cells += [trial.dropped, trial.started, trial.finished]
    return cells + [trial.attributes.get(name) for name in attributes]


def _line(cells: list[object]) -> str:
    """Return a line of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow([_cell(cell) for cell in cells])
    return text.getvalue()


def _cell(value: object) -> object:
    """Return a cell that no spreadsheet computes. Numbers stay numbers."""
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    return "'" + text if text.startswith(_FORMULA) else text


def show_layers(name: Name, user: Viewer, services: Shared) -> object:
    """Show the importance of every layer, as `prunesearch study layers` does."""
    return to_json(services.studies.layers(name))


def show_cache(user: Viewer, services: Shared) -> object:
    """Show the entries of the evaluation cache by model and objective, and what they saved."""
    settings = services.settings
    try:
        found = cache_use.statistics(CacheLocation.parse(settings.cache), settings.storage)
    except InputError as error:
        raise NotFoundError(str(error)) from None
    return to_json(found)
