"""Requests that schemathesis makes from the OpenAPI document: no failure, and no change by a
refused request.
"""

from pathlib import Path
from typing import Any

import hypothesis
import schemathesis
from httpx2 import InvalidURL
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

from prunesearch.service.access.roles import ROLES, Role
from tests.support.http_service import BASE, HttpService, http_service

EXAMPLES = 2
"""Requests of each operation. `benchmarks.service_load` sends a thousand to a real server."""


def changes(service: HttpService) -> object:
    """All that a request could change."""
    return service.jobs.list(limit=10_000).jobs, service.access.tokens.records()


def test_the_document_is_valid_and_describes_every_route(service: HttpService) -> None:
    document = service.client.get("/openapi.json").json()
    schemathesis.openapi.from_dict(document).validate()
    ids = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            ids.append(operation["operationId"])
            statuses = set(operation["responses"])
            if path not in ("/healthz", "/readyz"):
                assert {"401", "403", "422", "429", "503"} <= statuses, f"{method} {path}"
                assert operation["security"], f"{method} {path}"
            problem = operation["responses"].get("422", {}).get("content", {})
            assert not problem or list(problem) == ["application/problem+json"]
    assert len(ids) == len(set(ids)) > 25
    assert set(document["components"]["securitySchemes"]) == {"token", "session"}


def test_fuzzed_requests_cause_no_failure_and_no_change(tmp_path: Path) -> None:
    with http_service(tmp_path) as service:
        jobs = [service.submit("submitter") for _ in range(2)]
        service.jobs.pause(jobs[0])
        statuses: set[int] = set()
        schema = schemathesis.openapi.from_dict(service.app.openapi())
        operations = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]
        for operation in operations:
            cases = st.one_of(
                operation.as_strategy(generation_mode=GenerationMode.POSITIVE),
                operation.as_strategy(generation_mode=GenerationMode.NEGATIVE),
            )

            @hypothesis.settings(
                max_examples=EXAMPLES,
                database=None,
                deadline=None,
                derandomize=True,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(cases, st.sampled_from(ROLES), st.booleans())
            def send(case: Any, role: Role, existing: bool) -> None:  # noqa: ANN401
                if existing and "job_id" in (case.path_parameters or {}):
                    case.path_parameters["job_id"] = jobs[0]
                before = changes(service)
                status = sent(service, case, role)
                statuses.add(status)
                assert status < 500, f"{case.method} {case.formatted_path}"
                if status >= 400 or role == "viewer":
                    assert changes(service) == before

            send()
        assert {200, 403, 404, 422} <= statuses


def sent(service: HttpService, case: Any, role: Role) -> int:  # noqa: ANN401 (of schemathesis)
    """Send a request, and return the status of the answer. Of a stream only the head is read."""
    settings = case.as_transport_kwargs(base_url=BASE)
    headers = {**dict(settings["headers"]), **service.headers(role)}
    method, accepted = settings["method"], {"Accept": "application/json"}
    try:
        answer = service.client.request(
            method,
            settings["url"],
            params=settings.get("params"),
            headers={**headers, **accepted},
            json=settings.get("json"),
            content=settings.get("data"),
            follow_redirects=False,
        )
    except (InvalidURL, UnicodeEncodeError, TypeError):
        return 400  # no client can send it
    return int(answer.status_code)
