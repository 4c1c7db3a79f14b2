"""Routes of access: who I am, tokens, and the log of changes."""

from typing import Annotated

from fastapi import FastAPI, Path, Query, Request, Response

from prunesearch.runtime.json_values import to_json
from prunesearch.service.access.roles import User
from prunesearch.service.http.auth import Admin, Viewer
from prunesearch.service.http.documents import (
    ChangePageDocument,
    NewTokenDocument,
    TokenListDocument,
    TokenRequest,
    UserDocument,
)
from prunesearch.service.http.routes.jobs import Limit
from prunesearch.service.http.routing import changed, problems
from prunesearch.service.http.services import Shared
from prunesearch.units import parse_duration

TokenName = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$", description="Name of the token.")
]


def add_to(app: FastAPI) -> None:
    """Add the routes of access."""
    app.get(
        "/v1/me",
        operation_id="show_user",
        response_model=UserDocument,
        responses=problems(),
        tags=["access"],
    )(show_user)
    app.get(
        "/v1/tokens",
        operation_id="list_tokens",
        response_model=TokenListDocument,
        responses=problems(),
        tags=["access"],
    )(list_tokens)
    app.post(
        "/v1/tokens",
        operation_id="create_token",
        status_code=201,
        response_model=NewTokenDocument,
        responses=problems(408, 409, 413, 415),
        tags=["access"],
    )(create_token)
    app.delete(
        "/v1/tokens/{name}",
        operation_id="revoke_token",
        status_code=204,
        response_class=Response,
        responses=problems(404),
        tags=["access"],
    )(revoke_token)
    app.get(
        "/v1/audit",
        operation_id="list_changes",
        response_model=ChangePageDocument,
        responses=problems(),
        tags=["access"],
    )(list_changes)


def show_user(user: Viewer) -> User:
    """Show the name and the role of the token."""
    return user


def list_tokens(user: Admin, services: Shared) -> object:
    """List all tokens, without their secrets."""
    return {"tokens": to_json(services.access.tokens.records())}


def create_token(request: Request, asked: TokenRequest, user: Admin, services: Shared) -> object:
    """Make a token. Its secret is in the answer, and nowhere else."""
    lifetime = None if asked.expires is None else parse_duration(asked.expires, "expires")
    made = services.access.tokens.create(asked.name, asked.role, lifetime)
    changed(request, f"{asked.name} ({asked.role})")
    return to_json(made)


def revoke_token(name: TokenName, user: Admin, services: Shared) -> Response:
    """Revoke a token. Its sessions and streams end within seconds."""
    services.access.tokens.revoke(name)
    return Response(status_code=204)


def list_changes(
    user: Admin,
    services: Shared,
    limit: Limit = 50,
    cursor: Annotated[int | None, Query(ge=0, le=2**62)] = None,
) -> object:
    """List the changes that users made, the newest first."""
    changes = services.access.audit.changes(limit + 1, cursor)
    following = str(changes[limit - 1].id) if len(changes) > limit else None
    return {"changes": to_json(changes[:limit]), "next": following}
