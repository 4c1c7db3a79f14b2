"""The client: which server sees the token, retries, errors in one line, and hostile answers."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from prunesearch.errors import ConflictError, InputError, NotFoundError, ServerError
from prunesearch.service import client as client_module
from prunesearch.service.client import BusyServerError, Client, ServerAwayError
from prunesearch.service.credentials import ServerAddress, token_for
from prunesearch.service.job import JobRequest
from tests.support.job_server import JOB_ID, TOKEN, Answer, JobServer, job_document, job_server


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobServer]:
    monkeypatch.setattr(client_module, "_WAITS", (0.0, 0.0))
    with job_server() as running:
        yield running


@pytest.fixture
def client(double: JobServer) -> Iterator[Client]:
    with Client(ServerAddress.parse(double.url), TOKEN) as made:
        yield made


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("PRUNESEARCH_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(path: Path, text: str = TOKEN, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:8712", True),
        ("http://localhost:8712/", True),
        ("http://[::1]:8712", True),
        ("https://pruning.example.org/team", False),
        ("http://localhost.example.org", False),
        ("http://127.0.0.1.example.org", False),
    ],
)
def test_a_server_is_on_this_machine_or_not(url: str, loopback: bool) -> None:
    server = ServerAddress.parse(url)
    assert server.is_loopback == loopback
    assert not server.url.endswith("/")


@pytest.mark.parametrize(
    "url",
    [
        "", "127.0.0.1:8712", "ftp://host", "http://", "http://host:99999", "http://host?token=x",
        "http://host#x", "http://[::1", "http://ho st", "https://user:hunter2@host",
        "http://127.0.0.1@evil.example.org",
    ],
)  # fmt: skip
def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="`server`") as refused:
        ServerAddress.parse(url)
    assert "hunter2" not in str(refused.value)


def test_the_token_comes_from_option_variable_user_and_folder_in_this_order(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ServerAddress.parse("http://127.0.0.1:8712")
    away = ServerAddress.parse("https://pruning.example.org")
    with pytest.raises(InputError, match="no token for http"):
        token_for(here, None, insecure_http=False)
    written(home / "storage" / "admin.token", "ps_admin")
    assert token_for(here, None, insecure_http=False) == "ps_admin"
    with pytest.raises(InputError, match="no token for https"):
        token_for(away, None, insecure_http=False)  # that of another server is not sent
    written(home / "config" / "prunesearch" / "token", "ps_user")
    assert token_for(here, None, insecure_http=False) == "ps_user"
    monkeypatch.setenv("PRUNESEARCH_TOKEN", "ps_variable")
    assert token_for(away, None, insecure_http=False) == "ps_variable"
    assert token_for(here, written(home / "other", "ps_o"), insecure_http=False) == "ps_o"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o622])
def test_a_token_file_that_others_may_read_is_refused(home: Path, mode: int) -> None:
    path = written(home / "token", mode=mode)
    with pytest.raises(InputError, match="chmod 600"):
        token_for(ServerAddress.parse("http://127.0.0.1"), path, insecure_http=False)


@pytest.mark.parametrize("text", ["", "two words", "ps_a\nX-Role: admin", "ps_ä", "p" * 600])
def test_a_token_that_cannot_stand_in_a_header_is_refused(home: Path, text: str) -> None:
    path = written(home / "token", text)
    with pytest.raises(InputError, match="does not hold a token") as refused:
        token_for(ServerAddress.parse("http://127.0.0.1"), path, insecure_http=False)
    assert not text or text not in str(refused.value)


def test_the_token_does_not_cross_the_network_unencrypted(home: Path) -> None:
    path, away = written(home / "token"), ServerAddress.parse("http://pruning.example.org")
    with pytest.raises(InputError, match="use https"):
        token_for(away, path, insecure_http=False)
    assert token_for(away, path, insecure_http=True) == TOKEN


def test_a_redirect_is_not_followed(client: Client, double: JobServer) -> None:
    with job_server() as other:
        double.on("GET /v1/jobs", Answer(307, b"", {"Location": f"{other.url}/v1/jobs"}))
        with pytest.raises(InputError, match="the token was not sent there"):
            client.jobs()
        assert not other.asked
    assert double.asked[0].headers["Authorization"] == f"Bearer {TOKEN}"


def test_a_proxy_does_not_see_the_token(double: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with job_server() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        double.on("GET /v1/jobs", Answer.of_json({"jobs": [], "next": None}))
        with Client(ServerAddress.parse(double.url), TOKEN) as client:
            assert client.jobs().jobs == ()
        assert not proxy.asked


def test_a_submission_is_sent_again_with_its_key(client: Client, double: JobServer) -> None:
    busy = Answer.of_json({"title": "starting"}, 503, **{"Retry-After": "0"})
    double.on("POST /v1/jobs", Answer(cut=True), busy, Answer.of_json(job_document("queued"), 201))
    job, new = client.submit(JobRequest({"model": "tiny"}, trials=8), "key-1")
    assert (job.id, job.state, new) == (JOB_ID, "queued", True)
    assert [asked.headers["Idempotency-Key"] for asked in double.asked] == ["key-1"] * 3
    assert len({asked.body for asked in double.asked}) == 1
    double.on("POST /v1/jobs", Answer.of_json(job_document("running"), 200))
    assert client.submit(JobRequest({"model": "tiny"}), "key-1")[1] is False


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (401, InputError, "ask for another"),
        (403, InputError, "a viewer may not"),
        (404, NotFoundError, "a viewer may not"),
        (409, ConflictError, "a viewer may not"),
        (422, InputError, "search.drop: must be a number"),
        (429, BusyServerError, "try again"),
        (500, ServerError, "failed with status 500"),
    ],
)
def test_a_problem_document_becomes_one_line(
    client: Client, double: JobServer, status: int, kind: type[Exception], said: str
) -> None:
    problem = {
        "title": "Refused",
        "detail": "a viewer may not\nsubmit",
        "errors": [{"field": "search.drop", "message": "must be a number"}, "x", {}],
    }
    double.on(f"GET /v1/jobs/{JOB_ID}", Answer.of_json(problem, status))
    with pytest.raises(kind, match=said) as raised:
        client.job(JOB_ID)
    assert type(raised.value) is kind
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_an_error_page_of_a_proxy_becomes_one_line(client: Client, double: JobServer) -> None:
    double.on("GET /v1/jobs", Answer(500, b"<html>" * 1000, {"Content-Type": "text/html"}))
    with pytest.raises(ServerError, match="failed with status 500"):
        client.jobs()


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"<html>", {"Content-Type": "text/html"}),
        Answer(200, b"[" * 100_000, {"Content-Type": "application/json"}),
        Answer(200, b"{}", {"Content-Type": "application/json", "Content-Encoding": "gzip"}),
        Answer.of_json([1]),
        Answer.of_json(job_document("exploded")),
        Answer.of_json(job_document(id="../../etc")),
        Answer.of_json(job_document(stages=[{"name": 3, "state": "running"}])),
        Answer.of_json(job_document(trials="8")),
    ],
)
def test_an_answer_that_is_not_understood_is_a_failure(
    client: Client, double: JobServer, answer: Answer
) -> None:
    double.on(f"GET /v1/jobs/{JOB_ID}", answer)
    with pytest.raises(ServerError):
        client.job(JOB_ID)


def test_an_answer_without_end_is_given_up(
    client: Client, double: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_LARGEST", 1000)
    double.on("GET /v1/jobs", Answer.of_json({"jobs": [], "next": "x" * 2000}))
    with pytest.raises(ServerError, match="larger than 1000 bytes"):
        client.jobs()


def test_a_server_that_is_away_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_WAITS", (0.0, 0.0))
    with job_server() as gone:
        url = gone.url
    with (
        Client(ServerAddress.parse(url), TOKEN) as client,
        pytest.raises(ServerAwayError, match="prunesearch serve") as raised,
    ):
        client.jobs()
    assert url in str(raised.value)
    assert TOKEN not in str(raised.value)


@pytest.mark.parametrize("job", ["", "..", "job-1", "job-0123456789abcdef/../../tokens", "JOB"])
def test_a_name_that_is_not_of_a_job_is_not_sent(
    client: Client, double: JobServer, job: str
) -> None:
    with pytest.raises(InputError, match="is not a job"):
        client.change(job, "cancel")
    assert not double.asked


def test_lists_are_filtered_by_the_server(client: Client, double: JobServer) -> None:
    double.on("GET /v1/jobs", Answer.of_json({"jobs": [job_document()], "next": "c1"}))
    page = client.jobs(state="running", study="a&b", limit=7)
    assert (page.jobs[0].id, page.next) == (JOB_ID, "c1")
    assert httpx2.URL(double.asked[0].path).params.get("study") == "a&b"


def test_a_certificate_that_is_not_trusted_has_its_own_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "_WAITS", ())

    def fail(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError(
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate "
            "(_ssl.c:1006)"
        )

    server = ServerAddress.parse("https://pruning.example.org")
    with (
        Client(server, TOKEN, httpx2.MockTransport(fail)) as client,
        pytest.raises(ServerAwayError, match="set SSL_CERT_FILE") as raised,
    ):
        client.jobs()
    assert "(certificate verify failed: self-signed certificate)" in str(raised.value)
