"""Pages of admins: tokens, and the log of changes."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, get_args

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, Response
from starlette.concurrency import run_in_threadpool

from prunesearch.errors import InputError
from prunesearch.service.access.roles import ROLES, Role, User
from prunesearch.service.access.tokens import NewToken, TokenRecord
from prunesearch.service.http.auth import page_user
from prunesearch.service.http.routing import changed
from prunesearch.service.http.services import Services, Shared
from prunesearch.service.web.layout import entered, page, to
from prunesearch.units import parse_duration

PageAdmin = Annotated[User, Depends(page_user("admin"))]
_CHANGES = 100  # rows of a page


@dataclass(frozen=True)
class TokenRow:
    """A token in the list of tokens.

    Attributes:
        name, role, created, expires: as in `TokenRecord`.
        state: ``valid``, ``expired`` or ``revoked``.
    """

    name: str
    role: Role
    created: float
    expires: float | None
    state: str


def add_to(app: FastAPI) -> None:
    """Add the routes."""
    app.get("/tokens", include_in_schema=False)(tokens_page)
    app.post("/tokens", name="create_token", include_in_schema=False)(create)
    app.post("/tokens/revoke", name="revoke_token", include_in_schema=False)(revoke)
    app.get("/audit", include_in_schema=False)(audit_page)


def tokens_page(request: Request, user: PageAdmin, services: Shared) -> HTMLResponse:
    """Show the tokens."""
    return _page(request, services, {})


async def create(request: Request, user: PageAdmin, services: Shared) -> Response:
    """Make a token, and show its secret this once."""
    fields = await entered(request)
    # Collect the mistakes of all fields before the token is made.
    errors: dict[str, str] = {}
    name, expires = fields.get("name", "").strip(), fields.get("expires", "").strip()
    role = _role(fields.get("role", ""), errors)
    lifetime = None
    if expires:
        try:
            lifetime = parse_duration(expires, "expires")
        except InputError as error:
            errors["expires"] = str(error)
    made = None
    if not errors and role is not None:
        try:
            made = await run_in_threadpool(services.access.tokens.create, name, role, lifetime)
        except InputError as error:
            errors["name"] = str(error)
    # The answer has the secret. It is not a redirect, so that no URL leads to it.
    if made is not None:
        changed(request, name)
        return await run_in_threadpool(_page, request, services, {}, made)
    return await run_in_threadpool(_page, request, services, fields, None, errors)


def _role(text: str, errors: dict[str, str]) -> Role | None:
    for role in get_args(Role):
        if role == text:
            known: Role = role
            return known
    errors["role"] = f"unknown role {text!r}"
    return None


async def revoke(request: Request, user: PageAdmin, services: Shared) -> Response:
    """Revoke a token."""
    name = (await entered(request)).get("name", "")
    await run_in_threadpool(services.access.tokens.revoke, name)
    changed(request, name)
    return to("/tokens?done=revoke")


def _page(
    request: Request,
    services: Services,
    fields: Mapping[str, str],
    made: NewToken | None = None,
    errors: Mapping[str, str] | None = None,
) -> HTMLResponse:
    now = time.time()
    shown = {"name": "", "role": "submitter", "expires": "", **fields}
    new = None if made is None else {"name": made.record.name, "secret": made.secret}
    values = {
        "section": "tokens",
        "tokens": [_row(record, now) for record in services.access.tokens.records()],
        "roles": ROLES,
        "entered": shown,
        "made": new,
        "errors": errors or {},
    }
    return page(request, "tokens.html", values, status=422 if errors else 200)


def _row(record: TokenRecord, now: float) -> TokenRow:
    # A token can be both; then it was revoked by somebody.
    state = "valid"
    if record.revoked is not None:
        state = "revoked"
    elif record.expires is not None and record.expires <= now:
        state = "expired"
    return TokenRow(record.name, record.role, record.created, record.expires, state)


def audit_page(
    request: Request,
    user: PageAdmin,
    services: Shared,
    before: Annotated[int | None, Query(ge=1, le=2**62)] = None,
) -> HTMLResponse:
    """Show the log of changes."""
    entries = services.access.audit.changes(_CHANGES, before)
    # A full page may be followed by another one.
    more = f"/audit?before={entries[-1].id}" if len(entries) == _CHANGES else None
    values = {
        "section": "audit",
        "entries": entries,
        "first_page": "/audit" if before is not None else None,
        "next_page": more,
    }
    return page(request, "audit.html", values)
