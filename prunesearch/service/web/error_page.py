"""The page that a browser gets instead of a problem document."""

from starlette.datastructures import Headers
from starlette.types import Scope

from prunesearch.service.web.rendering import render

_FOR_PROGRAMS = ("/v1/", "/metrics", "/healthz", "/readyz", "/openapi.json", "/static/")
"""Beginnings of the paths that programs read, whatever they accept."""

PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
"""Headers of the page. The page of an unforeseen failure passes no middleware that sets them."""


def is_for_a_page(scope: Scope) -> bool:
    """Return whether a request asks for a page: its path is one of a page, and it takes HTML."""
    if scope["type"] != "http" or scope["path"].startswith(_FOR_PROGRAMS):
        return False
    return "text/html" in Headers(scope=scope).get("accept", "")


def error_page(title: str, detail: str, status: int, scope: Scope) -> str:
    """Return the HTML of an error.

    Args:
        title: kind of the error, in words.
        detail: what happened, which value, and what to do.
        status: status of the response.
        scope: the request. Its state has the user, if one is signed in.
    """
    # Some errors happen before anybody is signed in.
    state = scope.get("state", {})
    return render(
        "error.html",
        user=state.get("user"),
        csrf_token=state.get("csrf", ""),
        dashboard_url=None,
        section="",
        notice="",
        title=title,
        detail=detail,
        status=status,
    )
