"""`prunesearch serve` and `prunesearch token`, as a user runs them."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from prunesearch.service.access.access import Access
from prunesearch.service.access.token_file import holds_token, make_first_token
from prunesearch.service.database import open_database
from prunesearch.service.http.settings import HttpSettings
from prunesearch.service.settings import ServiceSettings
from tests.support.cli import refused, run, run_json

ALONE = ("--no-runner", "--no-dashboard")


def test_a_server_starts_without_any_configuration_and_ends_with_ctrl_c(here: Path) -> None:
    command = [sys.executable, "-m", "prunesearch", "serve", "--port", "0", *ALONE, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "}\n")
        document = json.loads("".join(lines) + "}")
        file = here / document["token_file"]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        secret = file.read_text().strip()
        assert secret not in json.dumps(document)
        assert Path(document["models"][0]).is_dir()
        headers = {"Authorization": f"Bearer {secret}"}
        with httpx2.Client(base_url=document["url"], headers=headers, trust_env=False) as client:
            me = client.get("/v1/me").json()
            assert me == {"name": "admin", "role": "admin"}
            assert client.get("/readyz").json()["runner"] is False
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
    access = Access(open_database(ServiceSettings().database))
    [change] = access.audit.changes(10)
    assert (change.action, change.target) == ("create_token", "admin")


def test_unusable_options_are_refused_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*words: str) -> str:
        return refused(capsys, monkeypatch, "serve", *ALONE, *words)

    assert "--tls-cert" in said("--host", "0.0.0.0")
    assert "--behind-proxy" in said("--host", "192.0.2.1")
    assert "go together" in said("--tls-cert", "x")
    assert "certificate" in said("--tls-cert", "x", "--tls-key", "y")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}" in said("--port", str(port))
    assert "unknown database" in said("--storage", "oracle://host/x", "--port", "0")
    missing = said("--storage", "sqlite:////proc/none/study.db", "--port", "0")
    assert "cannot write" in missing
    assert "--trusted-host" in said("--trusted-host", "https://prune.example/x")
    assert "--trusted-host" in said("--trusted-host", "prune.example:8712")
    for proxy in ("*", "0.0.0.0/0", "nginx"):
        assert "--behind-proxy" in said("--host", "0.0.0.0", "--behind-proxy", proxy)
    assert "--devices" in said("--devices", "cuda:0,gpu one")
    same = refused(capsys, monkeypatch, "serve", "--port", "18790", "--dashboard-port", "18790")
    assert "--dashboard-port 18790" in same
    monkeypatch.setattr("prunesearch.cli.serve.EXTRAS", ("fastapi", "no_such_package"))
    assert "pip install 'prunesearch[service]'" in said()


def test_tokens_are_made_listed_and_revoked_on_the_command_line(here: Path) -> None:
    made = run_json("token", "create", "ada", "--role", "submitter", "--expires", "30d")
    assert made["secret"].startswith("ps_")
    assert run("token", "create", "bob", "--role", "viewer").stdout.startswith("ps_")
    written = run("token", "create", "eve", "--role", "admin", "--secret-file", "eve.token").stdout
    assert "ps_" not in written
    file = here / "eve.token"
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600  # noqa: PTH116
    listed = run("token", "list").stdout
    assert "ps_" not in listed
    assert all(name in listed for name in ("ada", "bob", "eve", "submitter"))
    run("token", "revoke", "ada")
    records = {record["name"]: record for record in run_json("token", "list")}
    assert records["ada"]["revoked"] is not None
    access = Access(open_database(ServiceSettings().database))
    assert access.tokens.user_of(made["secret"]) is None
    assert access.tokens.user_of(file.read_text().strip()) is not None


def test_a_secret_replaces_no_file(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "notes.txt").write_text("text of the user")
    words = ("create", "eve", "--role", "viewer", "--secret-file", "notes.txt")
    assert "nothing is replaced" in refused(capsys, monkeypatch, "token", *words)
    assert (here / "notes.txt").read_text() == "text of the user"
    assert run_json("token", "list") == []


def test_a_new_token_comes_with_a_note_that_is_no_part_of_the_secret(here: Path) -> None:
    made = run("token", "create", "ada", "--role", "viewer", "--expires", "30d")
    assert len(made.stdout.split()) == 1
    assert "token ada (viewer, expires " in made.stderr
    assert "storage/service.db" in made.stderr
    assert made.stdout.strip() not in made.stderr


def test_a_folder_without_a_service_has_no_tokens_to_list(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (("list",), ("revoke", "ada")):
        assert "no database of a service" in refused(capsys, monkeypatch, "token", *words)
    assert not (here / "storage").exists()


def test_the_token_of_another_service_is_not_offered(here: Path, tmp_path: Path) -> None:
    first = Access(open_database(f"sqlite:///{tmp_path}/first.db"))
    second = Access(open_database(f"sqlite:///{tmp_path}/second.db"))
    file = tmp_path / "admin.token"
    assert not holds_token(first, file)
    assert make_first_token(first, file)
    assert holds_token(first, file)
    assert not holds_token(second, file)
    # Its file is kept when the other service makes its own first token.
    assert make_first_token(second, file)
    assert holds_token(second, file)
    assert holds_token(first, tmp_path / "admin.token.1")


def test_a_server_on_all_addresses_is_shown_by_its_name() -> None:
    http = HttpSettings(host="0.0.0.0", port=8712, dashboard_port=8713, tls_cert="c", tls_key="k")
    assert http.url == "https://0.0.0.0:8712"
    named = replace(http, trusted_hosts=("prune.example", "other.example"))
    assert (named.url, named.dashboard_url) == (
        "https://prune.example:8712",
        "https://prune.example:8713",
    )
    assert replace(named, host="192.0.2.1").url == "https://192.0.2.1:8712"


def test_refused_tokens_are_told_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*words: str) -> str:
        return refused(capsys, monkeypatch, "token", *words)

    assert "no token can have the name" in said("create", "a b", "--role", "viewer")
    assert "no valid token" in said("revoke", "nobody")
    run("token", "create", "ada", "--role", "viewer")
    assert "revoke it first" in said("create", "ada", "--role", "admin")
    assert "--expires" in said("create", "eve", "--role", "viewer", "--expires", "soon")
    place = said("create", "eve", "--role", "viewer", "--secret-file", "/proc/none/x")
    assert "cannot write the token" in place
    assert len(run_json("token", "list")) == 1
