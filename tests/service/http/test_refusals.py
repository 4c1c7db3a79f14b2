"""Requests that are refused before a route sees them, and the form of every error."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from httpx2 import Response

from tests.support.http_service import QUICK, HttpService, http_service


def check(answer: Response, status: int) -> dict[str, object]:
    """Check that an answer is a problem document, and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert {"type", "title", "status", "detail", "instance"} <= problem.keys()
    assert problem["status"] == status
    found: dict[str, object] = problem
    return found


def test_every_error_is_a_problem_document(service: HttpService) -> None:
    client, viewer = service.client, service.headers("viewer")
    submitter = service.headers("submitter")
    check(client.get("/nothing/here"), 404)
    assert "POST" in client.put("/v1/jobs").headers["allow"]
    check(client.put("/v1/jobs"), 405)
    check(client.get("/v1/jobs/job-0123456789abcdef", headers=viewer), 404)
    check(client.get("/v1/jobs/..%2f..%2fsecret", headers=viewer), 404)
    check(client.get("/v1/jobs?limit=0", headers=viewer), 422)
    check(client.post("/v1/jobs", content="{", headers=submitter), 422)
    check(client.get("/v1/studies/none%27%3B--/trials", headers=viewer), 404)
    problem = check(client.post("/v1/jobs", json={"recipe": {}, "x": 1}, headers=submitter), 422)
    assert problem["errors"] == [{"field": "x", "message": "Extra inputs are not permitted"}]


def test_a_failure_shows_no_internals_and_logs_one_line(
    service: HttpService, caplog: pytest.LogCaptureFixture
) -> None:
    service.jobs.failing = RuntimeError("password=hunter2 in\nline 2")
    with caplog.at_level(logging.ERROR, "prunesearch.service"):
        problem = check(service.client.get("/v1/jobs", headers=service.headers()), 500)
    assert "hunter2" not in str(problem)
    number = str(problem["detail"]).split()[-1]
    [line] = [record.getMessage() for record in caplog.records if number in record.getMessage()]
    assert "hunter2" not in line
    assert "\n" not in line
    assert "RuntimeError" in line


def test_large_slow_and_compressed_bodies_are_refused(service: HttpService) -> None:
    client, headers = service.client, service.headers()
    check(client.post("/v1/jobs", content=b"x" * (2**20 + 1), headers=headers), 413)

    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 65536

    check(client.post("/v1/jobs", content=chunks(), headers=headers), 413)
    packed = {**headers, "Content-Encoding": "gzip"}
    check(client.post("/v1/jobs", content=b"\x1f\x8b", headers=packed), 415)
    text = {**headers, "Content-Type": "text/plain"}
    check(client.post("/v1/jobs", content=b"model: m", headers=text), 422)
    assert not service.jobs.list().jobs


def test_foreign_hosts_and_tokens_in_urls_are_refused(service: HttpService) -> None:
    client, viewer = service.client, service.headers("viewer")
    for host in (
        "evil.example",
        "127.0.0.1.evil.example",
        "evil.example:8712",
        "",
        "127.0.0.1:1@evil.example",
    ):
        check(client.get("/v1/jobs", headers={**viewer, "Host": host}), 400)
    for host in ("localhost:1", "127.0.0.1", "[::1]:8712"):
        assert client.get("/v1/jobs", headers={**viewer, "Host": host}).status_code == 200
    for query in (f"token={service.tokens['viewer']}", f"x={service.tokens['viewer']}", "api_key="):
        problem = check(client.get(f"/v1/jobs?{query}", headers=viewer), 400)
        assert service.tokens["viewer"] not in str(problem)


def test_security_headers_are_on_every_answer(service: HttpService) -> None:
    for path in ("/healthz", "/v1/jobs", "/nothing", "/openapi.json"):
        headers = service.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"
        policy = headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "access-control-allow-origin" not in headers


def test_head_and_options_are_answered(service: HttpService) -> None:
    viewer, job = service.headers("viewer"), service.submit()
    client = service.client
    got, head = (client.request(verb, "/v1/jobs", headers=viewer) for verb in ("GET", "HEAD"))
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == got.headers["content-length"]
    # A stream would never end.
    stream = client.head(f"/v1/jobs/{job}/events", headers=viewer)
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert client.head("/v1/jobs").status_code == 401
    options = client.options("/v1/jobs", headers={"Origin": "https://other.site"})
    assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")
    assert "access-control-allow-origin" not in options.headers
    check(client.options("/nothing"), 404)


def test_texts_from_users_cannot_add_headers(service: HttpService) -> None:
    headers = {**service.headers(), "Idempotency-Key": "a b"}
    check(service.client.post("/v1/jobs", json={"recipe": {}}, headers=headers), 422)
    answer = service.client.get(
        "/sign-in?next=%0d%0aSet-Cookie:%20a=b", headers=service.headers("viewer")
    )
    assert "a=b" not in answer.headers.get("set-cookie", "")


def test_too_many_requests_are_refused(tmp_path: Path) -> None:
    with http_service(tmp_path, replace(QUICK, requests_per_minute=3)) as service:
        viewer = service.headers("viewer")
        statuses = [service.client.get("/v1/me", headers=viewer).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        answer = service.client.get("/v1/me", headers=viewer)
        check(answer, 429)
        assert int(answer.headers["retry-after"]) > 0
        assert service.client.get("/v1/me", headers=service.headers("admin")).status_code == 200


def test_the_metrics_need_a_token_unless_opened(service: HttpService, tmp_path: Path) -> None:
    assert service.client.get("/metrics").status_code == 401
    job = service.submit()
    service.jobs.finish(job, "failed")
    text = service.client.get("/metrics", headers=service.headers("viewer")).text
    assert 'prunesearch_jobs{state="failed"} 1.0' in text
    assert 'route="/v1/jobs"' in text
    assert job not in text
    with http_service(tmp_path / "open", replace(QUICK, open_metrics=True)) as opened:
        assert opened.client.get("/metrics").status_code == 200


def test_probes_tell_whether_a_runner_lives(service: HttpService) -> None:
    assert service.client.get("/readyz").json()["ready"] is True
    service.jobs.running = False
    answer = service.client.get("/readyz", headers={"Host": "10.0.0.7:8712"})
    assert (answer.status_code, answer.json()["runner"]) == (503, False)
    assert service.client.get("/healthz").status_code == 200
