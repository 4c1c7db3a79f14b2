"""Who may do what: every route with every kind of token, CSRF tokens, and the audit log."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from fastapi.routing import iter_route_contexts

from prunesearch.service.access import secrets
from prunesearch.service.access.roles import ROLES, Role
from prunesearch.service.access.sessions import COOKIE
from prunesearch.service.http.auth import SAFE_METHODS, Require
from prunesearch.service.http.routing import AuditedRoute
from prunesearch.service.tables import TOKENS
from tests.support.http_service import BASE, HttpService, http_service

PUBLIC = {"/healthz", "/readyz", "/openapi.json"}
"""Routes that need no token. A new route is not among them unless somebody adds it here."""
PAGES = {"/sign-in", "/sign-out", "/static/{name}"}
VALUES = {
    "job_id": "job-0123456789abcdef",
    "name": "a-viewer",
    "path": "config.json",
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpService]:
    """A service whose requests are all refused, so that tests can share it."""
    with http_service(tmp_path_factory.mktemp("service")) as started:
        yield started


def routes(service: HttpService) -> list[tuple[str, str, Role | None]]:
    """Method, path and role of every route, as the app has them."""
    found: list[tuple[str, str, Role | None]] = []
    for route in iter_route_contexts(service.app.routes):
        if not route.methods or route.path in PUBLIC | PAGES:
            continue
        path = re.sub(r"{(\w+)(:\w+)?}", lambda match: VALUES[match[1]], str(route.path))
        roles = [
            part.call.role
            for part in getattr(getattr(route, "dependant", None), "dependencies", [])
            if isinstance(part.call, Require)
        ]
        for method in sorted(route.methods - {"HEAD"}):
            found.append((method, path, roles[0] if roles else None))
    return found


def rows(service: HttpService) -> list[object]:
    """All that a request could change."""
    found: list[object] = [service.jobs.list().jobs, service.access.audit.changes(1000)]
    engine = sqlalchemy.create_engine(service.services.settings.database)
    with engine.connect() as connection:
        found.append(connection.execute(sqlalchemy.select(TOKENS)).all())
    engine.dispose()
    return found


def invalid_tokens(service: HttpService) -> dict[str, dict[str, str]]:
    """Headers of requests that nobody may send."""
    tokens = service.access.tokens
    if "expired" not in {record.name for record in tokens.records()}:
        tokens.create("expired", "admin", 0.001)
        tokens.create("revoked", "admin")
        tokens.revoke("revoked")
    expired, revoked = secrets.new_token(), secrets.new_token()
    engine = sqlalchemy.create_engine(service.services.settings.database)
    with engine.begin() as connection:
        for name, secret in (("expired", expired), ("revoked", revoked)):
            change = sqlalchemy.update(TOKENS).where(TOKENS.c.name == name)
            connection.execute(change.values(hash=secrets.digest(secret)))
    engine.dispose()
    time.sleep(0.002)
    good = service.tokens["admin"]
    return {
        "none": {},
        "malformed": {"Authorization": "Bearer nonsense"},
        "basic": {"Authorization": f"Basic {good}"},
        "twice": {"Authorization": f"Bearer {good} {good}"},
        "unknown": {"Authorization": f"Bearer {secrets.new_token()}"},
        "expired": {"Authorization": f"Bearer {expired}"},
        "revoked": {"Authorization": f"Bearer {revoked}"},
        "cookie": {"Cookie": f"{COOKIE}={secrets.new_session()}"},
        "token as cookie": {"Cookie": f"{COOKIE}={good}"},
    }


def test_every_route_refuses_every_invalid_token(shared: HttpService) -> None:
    headers = invalid_tokens(shared)
    before = rows(shared)
    every = routes(shared)
    assert len(every) > 20
    for method, path, _ in every:
        for kind, sent in headers.items():
            answer = shared.client.request(
                method, path, headers=sent, json={}, follow_redirects=False
            )
            where = f"{method} {path} with {kind}"
            # A page leads to the sign-in page.
            if answer.status_code == 303:
                assert answer.headers["location"].startswith("/sign-in"), where
                continue
            assert answer.status_code == 401, where
            assert answer.headers["www-authenticate"].startswith("Bearer"), where
            assert answer.headers["content-type"].startswith("application/problem+json"), where
    assert rows(shared) == before


def test_every_route_refuses_a_role_that_is_too_low(shared: HttpService) -> None:
    before, tried = rows(shared), 0
    for method, path, role in routes(shared):
        if role is None:
            assert path == "/metrics", f"{path} names no role"  # it depends on a setting
            continue
        for lower in ROLES[: ROLES.index(role)]:
            answer = shared.client.request(method, path, headers=shared.headers(lower), json={})
            assert answer.status_code == 403, f"{method} {path} as {lower}"
            tried += 1
    assert tried >= 10
    assert rows(shared) == before


def test_every_change_of_every_route_is_audited(shared: HttpService) -> None:
    for route in iter_route_contexts(shared.app.routes):
        if (route.methods or set()) - SAFE_METHODS:
            assert isinstance(route.original_route, AuditedRoute), route.path


def test_public_routes_show_no_data(shared: HttpService) -> None:
    for path in PUBLIC:
        answer = shared.client.get(path)
        assert answer.status_code == 200
        assert "a-viewer" not in answer.text


def test_a_session_needs_its_csrf_token_for_changes(service: HttpService) -> None:
    secret = service.access.sessions.begin(service.tokens["submitter"])
    assert secret is not None
    found = service.access.signed_in(secret, session=True)
    assert found is not None
    cookie = {"Cookie": f"{COOKIE}={secret}"}
    document = {"recipe": {"model": "m"}}

    def post(**headers: str) -> int:
        sent = {**cookie, **{name.replace("_", "-"): text for name, text in headers.items()}}
        return service.client.post("/v1/jobs", json=document, headers=sent).status_code

    assert service.client.get("/v1/jobs", headers=cookie).status_code == 200
    assert post() == 403
    assert post(X_CSRF_Token="x") == 403
    other = service.access.sessions.begin(service.tokens["admin"])
    stolen = service.access.signed_in(str(other), session=True)
    assert stolen is not None
    assert post(X_CSRF_Token=stolen.csrf) == 403
    assert post(X_CSRF_Token=found.csrf, Origin="https://other.site") == 403
    assert post(X_CSRF_Token=found.csrf, Origin="null") == 403
    assert post(X_CSRF_Token=found.csrf, Sec_Fetch_Site="cross-site") == 403
    assert post(X_CSRF_Token=found.csrf, Origin=BASE) == 201
    # The field of a page's form counts as well.
    form = {"csrf_token": found.csrf}
    path = f"/v1/jobs/{service.submit()}/cancel"
    assert service.client.post(path, data=form, headers=cookie).status_code == 200
    service.access.tokens.revoke("a-submitter")
    assert service.client.get("/v1/jobs", headers=cookie).status_code == 401


def test_tokens_are_made_listed_and_revoked(service: HttpService) -> None:
    admin = service.headers("admin")
    made = service.client.post(
        "/v1/tokens", json={"name": "ada", "role": "viewer", "expires": "30d"}, headers=admin
    )
    assert made.status_code == 201
    secret = made.json()["secret"]
    me = service.client.get("/v1/me", headers={"Authorization": f"Bearer {secret}"})
    assert me.json() == {"name": "ada", "role": "viewer"}
    again = service.client.post("/v1/tokens", json={"name": "ada", "role": "admin"}, headers=admin)
    assert again.status_code == 409
    listed = service.client.get("/v1/tokens", headers=admin)
    assert secret not in listed.text
    assert {token["name"] for token in listed.json()["tokens"]} >= {"ada", "a-admin"}
    assert service.client.delete("/v1/tokens/ada", headers=admin).status_code == 204
    assert service.client.delete("/v1/tokens/ada", headers=admin).status_code == 404
    assert service.access.tokens.user_of(secret) is None
    changes = service.client.get("/v1/audit", headers=admin).json()["changes"]
    assert [(change["action"], change["target"]) for change in changes] == [
        ("revoke_token", "ada"),
        ("create_token", "ada (viewer)"),
    ]
    # A name whose token is not valid any more can be used again, and the earlier token stays dead.
    service.access.tokens.create("ada", "admin")
    assert service.access.tokens.user_of(secret) is None


def test_the_database_holds_no_secret(service: HttpService, tmp_path: Path) -> None:
    session = service.access.sessions.begin(service.tokens["admin"])
    content = (tmp_path / "service.db").read_bytes()
    assert session is not None
    for secret in (*service.tokens.values(), session):
        assert secret.encode() not in content
