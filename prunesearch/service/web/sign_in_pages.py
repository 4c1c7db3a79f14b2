"""Pages: sign in and out, and the files that all pages load."""

from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, Response

from prunesearch.errors import NotFoundError
from prunesearch.service.http.auth import check_origin, local_path
from prunesearch.service.http.sign_in import clear_cookie, set_cookie, sign_in, sign_out
from prunesearch.service.web.layout import entered, page, to
from prunesearch.service.web.rendering import STATIC

_TYPES = {"app.css": "text/css", "app.js": "text/javascript", "icon.svg": "image/svg+xml"}
"""Files that pages load, and their types. Nothing else is served from the folder."""
_REFUSED = "this token is not known, or it has expired or was revoked"


def add_to(app: FastAPI) -> None:
    """Add the routes."""
    app.get("/sign-in", include_in_schema=False)(sign_in_page)
    app.post("/sign-in", include_in_schema=False)(begin)
    app.post("/sign-out", include_in_schema=False)(end)
    app.get("/static/{name}", include_in_schema=False)(static_file)


def sign_in_page(request: Request, next: Annotated[str, Query()] = "/") -> HTMLResponse:
    """Show the sign-in page."""
    return page(request, "sign_in.html", {"next": local_path(next)})


async def begin(request: Request) -> Response:
    """Sign in with the token that was entered, and go on to the page that was asked for."""
    fields = await entered(request)
    # The path came from a URL, so it may name another site.
    following = local_path(fields.get("next", "/"))
    secret = await sign_in(request, fields.get("token", ""))
    if secret is None:
        values = {"next": following, "errors": {"token": _REFUSED}}
        return page(request, "sign_in.html", values, status=403)
    response = to(following)
    set_cookie(request, response, secret)
    return response


async def end(request: Request) -> Response:
    """Sign out. A page of another site cannot: it would not send the cookie."""
    check_origin(request)
    await sign_out(request)
    response = to("/sign-in?done=sign-out")
    clear_cookie(response)
    return response


def static_file(name: str) -> Response:
    """Send the style sheet, the script or the icon.

    Raises:
        NotFoundError: the file does not exist.
    """
    # Names are compared with a list, so none can lead out of the folder.
    if name not in _TYPES:
        raise NotFoundError(f"there is no file {name!r}")
    headers = {"Cache-Control": "public, max-age=3600"}
    return FileResponse(STATIC / name, media_type=_TYPES[name], headers=headers)
