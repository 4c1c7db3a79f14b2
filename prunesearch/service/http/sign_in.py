"""Signing in and out of a browser, for the pages."""

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool

from prunesearch.service.access.sessions import COOKIE, LIFETIME
from prunesearch.service.http.auth import check_origin
from prunesearch.service.http.routing import address_of
from prunesearch.service.http.services import services_of


async def sign_in(request: Request, token: str) -> str | None:
    """Begin a session with a token that a user entered.

    Args:
        request: the request of the form.
        token: text that was entered.

    Returns:
        The secret for `set_cookie`, or None if the token is not valid.

    Raises:
        ProblemError: another site sent the form, or there were too many attempts.
    """
    check_origin(request)
    services = services_of(request)
    services.limits.count_sign_in(address_of(request))
    secret = await run_in_threadpool(services.access.sessions.begin, token.strip())
    found = None
    if secret is not None:
        found = await run_in_threadpool(services.access.signed_in, secret, session=True)
    who = found.user.name if found is not None else ""
    action = "sign_in" if found is not None else "sign_in_refused"
    await run_in_threadpool(services.access.audit.record, who, action, "", "", address_of(request))
    return secret


async def sign_out(request: Request) -> None:
    """End the session of a request. There may be none."""
    secret = request.cookies.get(COOKIE)
    if secret:
        await run_in_threadpool(services_of(request).access.sessions.end, secret)


def set_cookie(request: Request, response: Response, secret: str) -> None:
    """Give a browser its session. Scripts cannot read it, and other sites cannot use it."""
    response.set_cookie(
        COOKIE,
        secret,
        max_age=int(LIFETIME),
        path="/",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def clear_cookie(response: Response) -> None:
    """Take the session from a browser."""
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
