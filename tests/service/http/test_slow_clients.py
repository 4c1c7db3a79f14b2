"""What only a real connection shows: slow headers and bodies, readers that take nothing, the end."""

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.http_service import QUICK, HttpService, made_service
from tests.support.live_server import LiveServer, live_server

HURRIED = replace(QUICK, body_seconds=0.3, answer_seconds=0.5, idle_reader_seconds=0.3)


@pytest.fixture
def served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[HttpService, LiveServer]]:
    """A service with short times."""
    monkeypatch.setattr("prunesearch.service.http.connections._HEADER_SECONDS", 0.3)
    service = made_service(tmp_path, HURRIED)
    with live_server(service.app) as live:
        yield service, live


def dialog(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send parts of a request, and return everything that comes until the connection ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        received = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            while piece := connection.recv(65536):
                received += piece
        except (ConnectionResetError, BrokenPipeError):
            pass
        return received


def test_a_slow_body_is_refused_in_time(served: tuple[HttpService, LiveServer]) -> None:
    service, live = served
    token = service.tokens["submitter"].encode()
    head = (
        b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " + token + b"\r\n"
        b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    began = time.monotonic()
    answer = dialog(live.port, head)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"application/problem+json" in answer
    assert time.monotonic() - began < 5
    # Parts that come now and then do not make it last longer.
    parts = [head, *[b" "] * 3]
    assert dialog(live.port, *parts, pause=0.12).startswith(b"HTTP/1.1 408")
    assert not service.jobs.list().jobs


def test_a_connection_whose_headers_do_not_arrive_is_closed(
    served: tuple[HttpService, LiveServer],
) -> None:
    _, live = served
    began = time.monotonic()
    assert dialog(live.port) == b""
    assert dialog(live.port, b"GET /healthz HTTP/1.1\r\nHo") == b""
    assert time.monotonic() - began < 5


def test_malformed_requests_and_lengths_are_refused(
    served: tuple[HttpService, LiveServer],
) -> None:
    _, live = served
    start = b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    for rest in (
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"X: a\nSet-Cookie: b\x00\r\n\r\n",
    ):
        answer = dialog(live.port, start + rest)
        assert answer[9:12] in (b"400", b"401", b""), answer
    # A header of any size is not collected.
    big = b"X: " + b"x" * 10_000_000
    assert dialog(live.port, start + big)[9:12] in (b"400", b"431", b"")
    ending = b"HTTP/1.1 200"
    assert dialog(
        live.port, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    ).startswith(ending)


def test_no_answer_names_the_server(served: tuple[HttpService, LiveServer]) -> None:
    _, live = served
    for path in ("/healthz", "/v1/jobs", "/nothing"):
        assert "server" not in live.client.get(path).headers


def test_a_reader_that_takes_nothing_is_left(served: tuple[HttpService, LiveServer]) -> None:
    service, live = served
    job = service.submit()
    token = service.tokens["viewer"]
    with socket.create_connection(("127.0.0.1", live.port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = (
            f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {token}\r\n\r\n"
        )
        connection.sendall(request.encode())
        hub = service.services.events
        wait_until(lambda: hub.open_streams == 1)
        for _ in range(300):
            service.jobs.add_event(job, "log", text="x" * 100_000)
        wait_until(lambda: hub.open_streams == 0)
    assert live.client.get("/healthz").status_code == 200


def test_a_database_that_hangs_is_answered_for_in_time(
    served: tuple[HttpService, LiveServer],
) -> None:
    service, live = served
    headers = service.headers("viewer")
    service.jobs.hanging.clear()
    try:
        began = time.monotonic()
        answer = live.client.get("/v1/jobs", headers=headers)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert time.monotonic() - began < 3
        assert live.client.get("/healthz").status_code == 200
    finally:
        service.jobs.hanging.set()
    assert live.client.get("/v1/jobs", headers=headers).status_code == 200


def test_open_streams_end_when_the_process_is_told_to_end(tmp_path: Path) -> None:
    service = made_service(tmp_path)
    job = service.submit()
    with live_server(service.app) as live:
        began = time.monotonic()
        headers = service.headers("viewer")
        with live.client.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as answer:
            lines = answer.iter_lines()
            assert next(lines) == "retry: 1000"
            live.stop()
            assert "event: state" in list(lines)
    assert time.monotonic() - began < 4


def wait_until(condition: object) -> None:
    """Wait until a condition holds."""
    assert callable(condition)
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
