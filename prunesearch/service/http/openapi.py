"""The OpenAPI document of the HTTP interface."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from prunesearch.service.http.documents import EventPageDocument
from prunesearch.service.http.problems import Problem

_DESCRIPTION = """\
Submit recipes as jobs, follow them, and download what they produce.

Every request but those to `/healthz`, `/readyz` and this document needs a token in the header
`Authorization: Bearer …`. Every error is a problem document (RFC 9457). Times are in seconds since
1970. A list has a field `next`; send it as `cursor` to get the next page.
"""
_BY_HAND = (Problem, EventPageDocument)
"""Models that the routes name in the descriptions of their responses."""


def use_document(app: FastAPI) -> None:
    """Have an app make its document with `document`, once."""

    def made() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = document(app)
        return app.openapi_schema

    app.openapi = made  # type: ignore[method-assign]


def document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of an app."""
    made: dict[str, Any] = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=_DESCRIPTION,
        routes=app.routes,
    )
    _, described = models_json_schema(
        [(model, "serialization") for model in _BY_HAND],
        ref_template="#/components/schemas/{model}",
    )
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    for name, schema in described["$defs"].items():
        schemas.setdefault(name, schema)
    return made
