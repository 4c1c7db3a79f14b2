"""Who sends a request: bearer tokens, sessions of browsers, roles and CSRF tokens.

A route says which role it needs by a parameter `user: Viewer`, `Submitter` or `Admin`. A page uses
`page_user`, which leads to the sign-in page instead of answering 401.
"""

from typing import Annotated
from urllib.parse import quote, urlsplit

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyCookie, HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from prunesearch.service.access import secrets
from prunesearch.service.access.access import Access, Credential
from prunesearch.service.access.roles import Role, User
from prunesearch.service.access.sessions import COOKIE
from prunesearch.service.http.problems import ProblemError
from prunesearch.service.http.services import services_of

CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf_token"
"""Header, or field of a form, in which a browser sends the CSRF token of its session."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")

# These describe the two ways to sign in in the OpenAPI document. `authenticated` reads the headers.
_BEARER = HTTPBearer(
    scheme_name="token",
    description="A token, as `prunesearch token create` prints it.",
    auto_error=False,
)
_COOKIE = APIKeyCookie(
    name=COOKIE,
    scheme_name="session",
    description=f"The session of a browser. Changes need the header {CSRF_HEADER} too.",
    auto_error=False,
)


class SignInNeededError(Exception):
    """A page was asked for without a valid session.

    Attributes:
        path: path of the sign-in page, which leads back to the page.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class Require:
    """Dependency of a route: its user must have a role.

    On return, `request.state` has `user`, `credential` and `csrf` (empty without a session).

    Args:
        role: role that the route needs.
        page: whether the route is a page. Without a user it leads to the sign-in page.
    """

    def __init__(self, role: Role, *, page: bool = False) -> None:
        self.role, self.page = role, page

    async def __call__(
        self,
        request: Request,
        _bearer: Annotated[object, Security(_BEARER)] = None,
        _cookie: Annotated[object, Security(_COOKIE)] = None,
    ) -> User:
        """Return the user of a request.

        Raises:
            ProblemError: the token is missing or not valid (401), the role is too low or the CSRF
                token is missing (403), or there are too many requests (429).
            SignInNeededError: the same as 401, for a page.
        """
        try:
            user = await authenticated(request, services_of(request).access)
        except ProblemError as problem:
            if self.page and problem.status == 401 and request.method in SAFE_METHODS:
                raise SignInNeededError(sign_in_path(request)) from None
            raise
        if request.state.credential.session and request.method not in SAFE_METHODS:
            await _check_csrf(request)
        services_of(request).limits.count_token(user.name)
        if not user.may(self.role):
            raise ProblemError(
                403, f"this needs the role {self.role}, and token {user.name!r} is a {user.role}"
            )
        return user


def require(role: Role) -> Require:
    """Return the dependency of a route that needs a role."""
    return Require(role)


def page_user(role: Role = "viewer") -> Require:
    """Return the dependency of a page that needs a role."""
    return Require(role, page=True)


Viewer = Annotated[User, Depends(Require("viewer"))]
Submitter = Annotated[User, Depends(Require("submitter"))]
Admin = Annotated[User, Depends(Require("admin"))]
"""Parameters of routes that get the user, who has at least this role."""


async def authenticated(connection: HTTPConnection, access: Access) -> User:
    """Return who sends a request, by its token or its session.

    Args:
        connection: the request. On return its state has `user`, `credential` and `csrf`.
        access: the tokens and sessions.

    Raises:
        ProblemError: there is neither, or it is not valid.
    """
    secret, session = _secret_of(connection)
    found = await run_in_threadpool(access.signed_in, secret, session=session)
    if found is None:
        kind = "session" if session else "token"
        raise _unauthorized(f"the {kind} is not known, or it has expired or was revoked")
    connection.state.user = found.user
    connection.state.credential, connection.state.csrf = found.credential, found.csrf
    return found.user


def _secret_of(connection: HTTPConnection) -> tuple[str, bool]:
    """Return the secret that a request was sent with, and whether it is a session's.

    Raises:
        ProblemError: there is none, or the header is malformed.
    """
    headers = connection.headers.getlist("authorization")
    if headers:
        scheme, _, secret = headers[0].partition(" ")
        if len(headers) > 1 or scheme.lower() != "bearer" or not secrets.is_token(secret.strip()):
            raise _unauthorized(
                "the header Authorization has no token: it begins with ps_, and has 46 characters"
            )
        return secret.strip(), False
    cookie = connection.cookies.get(COOKIE)
    if cookie:
        return cookie, True
    raise _unauthorized("this needs a token: send it in the header Authorization after Bearer")


def _unauthorized(detail: str) -> ProblemError:
    return ProblemError(401, detail, {"WWW-Authenticate": 'Bearer realm="prunesearch"'})


async def _check_csrf(request: Request) -> None:
    """Check that a change was sent by a page of this service.

    Raises:
        ProblemError: another site sent it, or the CSRF token is missing or wrong.
    """
    check_origin(request)
    given = request.headers.get(CSRF_HEADER, "")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not given and kind in _FORM_TYPES:
        field = (await request.form()).get(CSRF_FIELD, "")
        given = field if isinstance(field, str) else ""
    if not secrets.equal(request.state.csrf, given):
        raise ProblemError(
            403, f"the CSRF token is missing or wrong: reload the page, or send {CSRF_HEADER}"
        )


def check_origin(request: HTTPConnection) -> None:
    """Refuse a request that a page of another site sends.

    Raises:
        ProblemError: the header Origin or Sec-Fetch-Site names another site.
    """
    origin = request.headers.get("origin")
    foreign = request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
    if origin is not None and origin != "null":
        foreign = foreign or urlsplit(origin).netloc != request.headers.get("host", "")
    elif origin == "null":
        foreign = True
    if foreign:
        raise ProblemError(403, "the request was sent by a page of another site")


def sign_in_path(request: Request) -> str:
    """Return the path of the sign-in page, which leads back to the page that was asked for."""
    wanted = request.url.path
    if request.url.query:
        wanted += "?" + request.url.query
    return "/sign-in?next=" + quote(wanted, safe="/")


def local_path(text: str) -> str:
    """Return a path of this service to lead a browser to, or ``/`` for anything else.

    A text such as ``//other.site`` or ``/\\other.site`` would lead to another site.
    """
    if not text.startswith("/") or text[1:2] in ("/", "\\") or not text.isprintable():
        return "/"
    return text


def credential_of(connection: HTTPConnection) -> Credential:
    """Return what an authenticated request was signed with."""
    credential = connection.state.credential
    assert isinstance(credential, Credential)
    return credential
