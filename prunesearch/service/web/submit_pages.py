"""Page: submit a recipe, by fields or as YAML."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, Response
from starlette.concurrency import run_in_threadpool

from prunesearch.errors import InputError
from prunesearch.service.access.roles import User
from prunesearch.service.http.auth import page_user
from prunesearch.service.http.routing import changed
from prunesearch.service.http.services import Services, Shared
from prunesearch.service.job import JobRequest
from prunesearch.service.recipe_text import read_recipe
from prunesearch.service.web import choices, submit_fields
from prunesearch.service.web.layout import entered, page, to
from prunesearch.service.web.submit_fields import Entered, FieldsError

PageSubmitter = Annotated[User, Depends(page_user("submitter"))]


@dataclass(frozen=True)
class CheckedPreview:
    """What a checked job would do.

    Attributes:
        study: name of its study.
        command: its command.
        trials: total number of trials.
        recipe: its recipe as YAML.
        confirm: share of the scored documents that confirms; None: the default.
    """

    study: str
    command: str
    trials: int
    recipe: str
    confirm: float | None


def add_to(app: FastAPI) -> None:
    """Add the routes."""
    app.get("/submit", include_in_schema=False)(submit_page)
    app.post("/submit", name="submit_job", include_in_schema=False)(submit)


def submit_page(
    request: Request,
    user: PageSubmitter,
    services: Shared,
    way: Annotated[str, Query(alias="as", max_length=20)] = "",
    like: Annotated[str, Query(max_length=100)] = "",
) -> HTMLResponse:
    """Show the empty page, or one with the recipe of another job."""
    if like:
        return _page(request, services, Entered.like(services.jobs.get(like)), as_yaml=True)
    return _page(request, services, Entered(), as_yaml=way == "yaml")


async def submit(request: Request, user: PageSubmitter, services: Shared) -> Response:
    """Submit what was entered, or only check it. Mistakes are shown beside their fields."""
    # Both buttons send the same fields; one of them only checks.
    fields = await entered(request)
    given, as_yaml = Entered.of(fields), fields.get("as") == "yaml"
    only_check = fields.get("do") == "check"
    try:
        if only_check:
            checked = await run_in_threadpool(_check, services, given, as_yaml)
            return _page(request, services, given, as_yaml=as_yaml, checked=checked)
        job, new = await run_in_threadpool(_submit, services, given, as_yaml, user)
    except FieldsError as error:
        return _page(request, services, given, as_yaml=as_yaml, errors=error.errors)
    changed(request, job)
    return to(f"/jobs/{job}?done={'submit' if new else 'repeated'}")


def _request_of(given: Entered, as_yaml: bool) -> JobRequest:
    """Return the job that was entered.

    Raises:
        FieldsError: a value cannot be used.
    """
    if not as_yaml:
        return submit_fields.request_of_fields(given)
    try:
        document = read_recipe(given.yaml)
    except InputError as error:
        raise FieldsError({"yaml": str(error)}) from None
    return submit_fields.request_of_yaml(given, document)


def _placed(error: InputError, as_yaml: bool) -> FieldsError:
    """Return a refused request as the error of a field."""
    # The YAML page has few fields of its own.
    field = submit_fields.field_of(str(error))
    if as_yaml and field not in ("study", "trials", "confirm"):
        field = "yaml"
    # Messages for programs put names of fields between backticks.
    return FieldsError({field: str(error).replace("`", "")})


def _check(services: Services, given: Entered, as_yaml: bool) -> CheckedPreview:
    """Check a job without submitting it.

    Raises:
        FieldsError: it is refused.
    """
    asked = _request_of(given, as_yaml)
    try:
        allowed = services.jobs.check(asked)
    except InputError as error:
        raise _placed(error, as_yaml) from None
    recipe = submit_fields.recipe_text(allowed.recipe.document())
    return CheckedPreview(allowed.study, asked.command, allowed.trials, recipe, asked.confirm)


def _submit(services: Services, given: Entered, as_yaml: bool, user: User) -> tuple[str, bool]:
    """Submit a job. Return its identifier, and whether it is new.

    Raises:
        FieldsError: it is refused.
    """
    # The key makes one job of a page that is sent twice.
    asked = _request_of(given, as_yaml)
    try:
        job, new = services.jobs.submit(asked, user.name, f"page-{given.key}")
    except InputError as error:
        raise _placed(error, as_yaml) from None
    return job.id, new


def _page(
    request: Request,
    services: Services,
    given: Entered,
    *,
    as_yaml: bool,
    errors: Mapping[str, str] | None = None,
    checked: CheckedPreview | None = None,
) -> HTMLResponse:
    settings = services.settings
    values = {
        "section": "submit",
        "entered": given,
        "as_yaml": as_yaml,
        "errors": errors or {},
        "checked": checked,
        "models": choices.models(settings.models),
        "data_files": choices.data_files(settings.data),
        "allow_hub": settings.allow_hub,
        "labels": submit_fields.LABELS,
        "units": submit_fields.UNITS,
        "samplers": submit_fields.samplers(),
        "objectives": submit_fields.objective_choices(),
        "afters": submit_fields.AFTERS,
        "commands": submit_fields.COMMANDS,
    }
    return page(request, "submit.html", values, status=422 if errors else 200)
