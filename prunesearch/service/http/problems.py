"""Errors as problem documents (RFC 9457).

Every error of the HTTP interface has this form. A failure that nobody foresaw shows no internals:
the answer has an id, and the log has one line with the same id.
"""

import logging
import secrets
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from time import monotonic

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError, ResponseValidationError
from pydantic import BaseModel, Field
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prunesearch.errors import (
    ConflictError,
    InputError,
    NotFoundError,
    StorageError,
    UnavailableError,
    one_line,
)
from prunesearch.runtime.masking import masked_text, printable
from prunesearch.service.http.middleware.methods import allowed_methods
from prunesearch.service.web.error_page import PAGE_HEADERS, error_page, is_for_a_page

MEDIA_TYPE = "application/problem+json"
_TITLES = {413: "Content Too Large", 416: "Range Not Satisfiable", 422: "Unprocessable Content"}
"""Present names of statuses. Those of the standard library depend on its version."""
RETRY_SECONDS = 5
"""Seconds after which a client should try again when the database does not answer."""
logger = logging.getLogger("prunesearch.service")


class FieldError(BaseModel):
    """What is wrong with one field of a request."""

    field: str = Field(description="Name of the field, with the names of what it is in.")
    message: str = Field(description="What is wrong, in one line.")


class Problem(BaseModel):
    """An error, as RFC 9457 describes it."""

    type: str = Field(default="about:blank", description="Kind of the problem, as a URI.")
    title: str = Field(description="Kind of the problem, in words.")
    status: int = Field(description="Status of the HTTP response.")
    detail: str = Field(description="What happened, which value, and what to do.")
    instance: str = Field(description="Path of the request.")
    errors: list[FieldError] | None = Field(
        default=None, description="What is wrong with the fields of the request."
    )


class ProblemError(Exception):
    """Ends a request with a problem document.

    Args:
        status: status of the response.
        detail: what happened, which value, and what to do.
        headers: further headers of the response.
        errors: what is wrong with the fields of the request.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[FieldError] = (),
    ) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.headers, self.errors = dict(headers or {}), list(errors)


def response_of(problem: ProblemError, scope: Scope) -> Response:
    """Return the response of a problem: a problem document, or for a page an error page.

    Args:
        problem: the problem.
        scope: the request, which gives the field `instance`.
    """
    document = Problem(
        title=_TITLES.get(problem.status) or HTTPStatus(problem.status).phrase,
        status=problem.status,
        detail=printable(masked_text(problem.detail)),
        instance=printable(masked_text(str(scope.get("path", "")))),
        errors=problem.errors or None,
    )
    if is_for_a_page(scope):
        text = error_page(document.title, document.detail, problem.status, scope)
        return HTMLResponse(text, problem.status, {**PAGE_HEADERS, **problem.headers})
    content = document.model_dump(mode="json", exclude_none=True)
    return JSONResponse(content, problem.status, problem.headers, MEDIA_TYPE)


def unavailable(detail: str = "") -> ProblemError:
    """Return the problem of a database that does not answer."""
    text = detail or "the database does not answer at the moment: try again in a few seconds"
    return ProblemError(503, text, {"Retry-After": str(RETRY_SECONDS)})


def add_handlers(app: FastAPI) -> None:
    """Have an app answer every error with a problem document."""
    app.add_exception_handler(ProblemError, _problem)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(InputError, _refused)
    app.add_exception_handler(UnavailableError, _away)
    for kind in (OperationalError, InterfaceError, DBAPIError, PoolTimeoutError):
        app.add_exception_handler(kind, _database_error)
    app.add_exception_handler(ResponseValidationError, _unforeseen)
    # Starlette would let the failure through after its answer, and the log would have it all.
    app.add_middleware(_Failures)


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return response_of(error, request.scope)


_TYPES = ("dict[", "list[", "constrained-", "str", "tagged-union[")
_LOG_SECONDS = 10.0
_logged = -_LOG_SECONDS
"""Time of the monotonic clock when a database that is away was logged last."""
_DETAILS = {
    404: "nothing is here: see /openapi.json for the paths",
    405: "the path does not take this method: see the header Allow",
}


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer an error that FastAPI or Starlette raises."""
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    detail = str(error.detail)
    if detail == phrase:
        detail = _DETAILS.get(error.status_code, detail)
        if error.status_code == 404 and is_for_a_page(request.scope):
            detail = "the page does not exist: the list of jobs leads to all others"
    headers = dict(error.headers or {})
    if error.status_code == 405:
        allowed = allowed_methods(request.app.routes, request.scope["path"])
        headers["Allow"] = ", ".join(sorted(allowed))
    return response_of(ProblemError(error.status_code, detail, headers), request.scope)


async def _invalid_request(request: Request, error: Exception) -> Response:
    """Answer a request whose parameters or body do not have the described form."""
    assert isinstance(error, RequestValidationError)
    errors = []
    for found in error.errors():
        field = printable(_field(found["loc"]))
        errors.append(FieldError(field=field, message=printable(str(found["msg"]))))
    first = errors[0]
    more = "" if len(errors) == 1 else f" (and {len(errors) - 1} more)"
    detail = f"{first.field}: {first.message}{more}"
    return response_of(ProblemError(422, detail, errors=errors), request.scope)


def _field(place: Sequence[int | str]) -> str:
    """Return the name of a field. The first part says where it is: in the body or the query."""
    parts = []
    for part in place[1:]:
        # The types of a field that takes several.
        if not isinstance(part, str) or not part.startswith(_TYPES):
            parts.append(str(part))
    return ".".join(parts) or str(place[0])


async def _refused(request: Request, error: Exception) -> Response:
    """Answer an error that the user can correct."""
    assert isinstance(error, InputError)
    status = 422
    if isinstance(error, NotFoundError):
        status = 404
    elif isinstance(error, ConflictError):
        status = 409
    elif isinstance(error, StorageError):
        return await _away(request, error)
    return response_of(ProblemError(status, str(error)), request.scope)


async def _away(request: Request, error: Exception) -> Response:
    """Answer a request while the database is away. Of many requests in a row one is logged."""
    global _logged
    request.app.state.services.metrics.refused.inc()
    if monotonic() - _logged > _LOG_SECONDS:
        _logged = monotonic()
        logger.warning("the database is away: %s", one_line(error))
    return response_of(unavailable(), request.scope)


async def _database_error(request: Request, error: Exception) -> Response:
    """Answer a failure of the database. A lost connection is something else than a bug."""
    if isinstance(error, OperationalError | InterfaceError | PoolTimeoutError):
        return await _away(request, error)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return await _away(request, error)
    return await _unforeseen(request, error)


class _Failures:
    """Answers failures that nobody foresaw.

    Args:
        app: the app.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:  # noqa: BLE001 (every failure needs an answer)
            answer = await _unforeseen(Request(scope), error)
            # After the beginning of a response, the connection is closed without its end.
            if not begun:
                await answer(scope, receive, send)


async def _unforeseen(request: Request, error: Exception) -> Response:
    """Answer a bug. The log has the cause; the answer has only its id."""
    number = secrets.token_hex(6)
    path = printable(request.scope.get("path", ""))
    logger.error(
        "failure %s: %s %s: %s: %s",
        number,
        request.method,
        path,
        type(error).__name__,
        printable(one_line(error)),
        exc_info=logger.isEnabledFor(logging.DEBUG),
    )
    detail = f"the server failed; its log says why, under the id {number}"
    return response_of(ProblemError(500, detail), request.scope)
