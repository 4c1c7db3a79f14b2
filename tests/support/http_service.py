"""A service in this process: the app with jobs in memory, a token of each role, and a client."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fastapi import FastAPI
from starlette.testclient import TestClient

from prunesearch.service.access.access import Access
from prunesearch.service.access.roles import ROLES, Role
from prunesearch.service.http.app import create_app
from prunesearch.service.http.services import Services
from prunesearch.service.http.settings import HttpSettings
from prunesearch.service.settings import ServiceSettings
from tests.support.memory_jobs import MemoryJobs

BASE = "http://127.0.0.1:8712"
QUICK = HttpSettings(
    poll_seconds=0.02, check_seconds=0.05, keep_alive_seconds=0.2, dashboard_port=8713
)


@dataclass
class HttpService:
    """A service in this process.

    Attributes:
        tokens: a token of each role. Its name is ``a-viewer`` and so on.
        client: sends requests without a token, unless `headers` are given.
    """

    app: FastAPI
    jobs: MemoryJobs
    tokens: dict[Role, str]
    client: TestClient

    @property
    def services(self) -> Services:
        found = self.app.state.services
        assert isinstance(found, Services)
        return found

    @property
    def access(self) -> Access:
        return self.services.access

    def headers(self, role: Role = "submitter", **more: str) -> dict[str, str]:
        """Headers of a request with a role's token."""
        return {"Authorization": f"Bearer {self.tokens[role]}", **more}

    def submit(self, role: Role = "submitter") -> str:
        """Submit a job and return its id."""
        document = {"recipe": {"model": "m"}}
        answer = self.client.post("/v1/jobs", json=document, headers=self.headers(role))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])


def settings_in(folder: Path) -> ServiceSettings:
    """Settings of a service with everything in one folder."""
    for name in ("models", "data"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return ServiceSettings(
        storage=f"sqlite:///{folder}/study.db",
        cache=str(folder / "cache"),
        exports=folder / "exports",
        models=(folder / "models",),
        data=(folder / "data",),
    )


def made_service(folder: Path, http: HttpSettings = QUICK) -> HttpService:
    """A service that follows no events, unless a server runs its app."""
    jobs = MemoryJobs()
    app = create_app(settings_in(folder), jobs=jobs, http=replace(http))
    access: Access = app.state.services.access
    tokens = {role: access.tokens.create(f"a-{role}", role).secret for role in ROLES}
    client = TestClient(app, base_url=BASE, raise_server_exceptions=False)
    return HttpService(app, jobs, tokens, client)


@contextmanager
def http_service(folder: Path, http: HttpSettings = QUICK) -> Iterator[HttpService]:
    """Start a service, and stop it when the block ends."""
    service = made_service(folder, http)
    with service.client:
        yield service
