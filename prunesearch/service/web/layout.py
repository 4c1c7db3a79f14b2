"""Makes the response of a page: the template with what every page shows."""

from collections.abc import Mapping

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse

from prunesearch.service.http.middleware.headers import host_name
from prunesearch.service.http.services import services_of
from prunesearch.service.web.rendering import render

NOTICES = {
    "submit": "The job was submitted.",
    "repeated": "This page was sent before, so its job is shown.",
    "pause": "The job will pause when the step that is under way is finished.",
    "resume": "The job goes on.",
    "stop": "The search ends after the generation that is under way.",
    "cancel": "The job was cancelled. Its finished trials and evaluations are kept.",
    "delete": "The job was deleted. Its study and its evaluations are kept.",
    "revoke": "The token was revoked.",
    "sign-out": "You are signed out.",
}
"""What a page says after a change, by the value of its parameter `done`."""


def page(
    request: Request, template: str, values: Mapping[str, object], status: int = 200
) -> HTMLResponse:
    """Return the response of a page.

    Args:
        request: the request. Its state has the user, if one is signed in.
        template: file name of the template.
        values: what the template prints.
        status: status of the response.
    """
    state = request.state
    text = render(
        template,
        **{
            "user": getattr(state, "user", None),
            "csrf_token": getattr(state, "csrf", ""),
            "dashboard_url": _dashboard_url(request),
            "section": "",
            "notice": NOTICES.get(request.query_params.get("done", ""), ""),
            "errors": {},
            **values,
        },
    )
    # A page shows what only its user may see, and changes all the time.
    return HTMLResponse(text, status, {"Cache-Control": "no-store"})


def _dashboard_url(request: Request) -> str | None:
    """Return the URL of the dashboard by the name with which the browser reaches this service.

    A session belongs to that name, and the address of the listener may be one that nobody can type.
    """
    port = services_of(request).http.dashboard_port
    if port is None:
        return None
    name = host_name(request.headers.get("host", ""))
    host = f"[{name}]" if ":" in name else name
    return f"{request.url.scheme}://{host}:{port}"


def to(path: str) -> RedirectResponse:
    """Return the response that leads a browser to another page after a change."""
    return RedirectResponse(path, status_code=303)


async def entered(request: Request) -> dict[str, str]:
    """Return the fields of a form that a browser sent. Files are left out."""
    # Browsers send line breaks as CR LF.
    values = {}
    for name, value in (await request.form()).items():
        if isinstance(value, str):
            values[name] = value.replace("\r\n", "\n")
    return values
