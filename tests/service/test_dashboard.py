"""The dashboard: its sign-in, what each role may do, and the headers of what it sends."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from prunesearch.service.access.access import Access
from prunesearch.service.access.roles import ROLES, Role
from prunesearch.service.access.sessions import COOKIE
from prunesearch.service.dashboard import create_dashboard
from prunesearch.service.database import open_database
from tests.support.http_service import QUICK, settings_in
from tests.support.stored_studies import store_study, trial

BASE = "http://127.0.0.1:8713"


@dataclass
class Dashboard:
    """A dashboard in this process."""

    client: TestClient
    access: Access
    tokens: dict[Role, str]

    def cookie(self, role: Role) -> dict[str, str]:
        return {"Cookie": f"{COOKIE}={self.access.sessions.begin(self.tokens[role])}"}


@pytest.fixture
def dashboard(tmp_path: Path) -> Iterator[Dashboard]:
    """A dashboard with one study."""
    settings = settings_in(tmp_path)
    store_study(settings.storage, "s", [trial(0, 1.0)])
    access = Access(open_database(settings.database))
    tokens = {role: access.tokens.create(f"a-{role}", role).secret for role in ROLES}
    with TestClient(create_dashboard(settings, QUICK), base_url=BASE) as client:
        yield Dashboard(client, access, tokens)


def test_every_request_needs_a_sign_in(dashboard: Dashboard) -> None:
    client = dashboard.client
    for path in (
        "/",
        "/dashboard",
        "/api/studies",
        "/static/bundle.js",
        "/csv/1",
        "/artifacts/1/1/x",
    ):
        answer = client.get(path, follow_redirects=False)
        assert answer.status_code == 401, path
        page = client.get(path, headers={"Accept": "text/html"}, follow_redirects=False)
        assert page.status_code == 303
        assert page.headers["location"] == "http://127.0.0.1:8712/sign-in"
    assert client.delete("/api/studies/1").status_code == 401
    assert client.get("/api/studies", headers={"Host": "evil.example"}).status_code == 400


def test_the_dashboard_is_shown_to_tokens_and_sessions(dashboard: Dashboard) -> None:
    bearer = {"Authorization": f"Bearer {dashboard.tokens['viewer']}"}
    for headers in (bearer, dashboard.cookie("viewer")):
        studies = dashboard.client.get("/api/studies", headers=headers).json()
        assert [study["study_name"] for study in studies["study_summaries"]] == ["s"]
        page = dashboard.client.get("/dashboard", headers=headers)
        assert page.status_code == 200
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert "access-control-allow-origin" not in page.headers
    file = dashboard.client.get("/artifacts/1/1/x", headers=bearer)
    assert file.headers["content-security-policy"].startswith("sandbox")
    assert file.headers["x-content-type-options"] == "nosniff"
    dashboard.access.tokens.revoke("a-viewer")
    assert dashboard.client.get("/api/studies", headers=bearer).status_code == 401


def test_only_an_admin_may_change_anything_and_no_other_site(dashboard: Dashboard) -> None:
    def delete(headers: dict[str, str]) -> int:
        return dashboard.client.delete("/api/studies/1", headers=headers).status_code

    for role in ("viewer", "submitter"):
        assert delete({"Authorization": f"Bearer {dashboard.tokens[role]}"}) == 403
        assert delete({**dashboard.cookie(role), "Origin": BASE}) == 403
    admin = dashboard.cookie("admin")
    assert delete(admin) == 403
    assert delete({**admin, "Origin": "https://other.site"}) == 403
    assert delete({**admin, "Origin": "http://127.0.0.1:8712"}) == 403
    assert dashboard.access.audit.changes(10) == []
    assert delete({**admin, "Origin": BASE}) == 204
    [change] = dashboard.access.audit.changes(10)
    assert (change.who, change.target) == ("a-admin", "/api/studies/1")
