"""storage/compose.yaml and storage/Containerfile are well-formed, and use what exists."""

import re
import shlex
import subprocess
from typing import Any

import click
import pytest
import yaml

from prunesearch.cli.main import cli
from prunesearch.service.http.settings import HttpSettings
from tests.support.paths import REPOSITORY

STORAGE = REPOSITORY / "storage"
COMPOSE: dict[str, Any] = yaml.safe_load((STORAGE / "compose.yaml").read_text())
CONTAINERFILE = (STORAGE / "Containerfile").read_text()
OURS = ("service", "runner")


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Containerfile, with their continued lines in one."""
    text = re.sub(r"^#.*\n", "", CONTAINERFILE, flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]  # type: ignore[misc]


def substituted(text: str) -> str:
    """A text of the compose file with the defaults of its variables."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$$", "$")


def parameters(words: list[str]) -> dict[str, Any]:
    """What a command line of prunesearch means. It fails for what does not exist."""
    command: click.Command = cli
    words = [substituted(word) for word in words]
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    with command.make_context("prunesearch", words) as context:
        found: dict[str, Any] = context.params
    return found


def test_commands_and_options_exist() -> None:
    serve = parameters(COMPOSE["services"]["service"]["command"])
    assert serve["no_runner"], "the runner is a service of its own"
    assert (serve["port"], serve["dashboard_port"]) == (8712, 8713)
    # Other machines reach the service through a proxy only.
    HttpSettings(host=serve["host"], proxy_addresses=serve["proxy_addresses"]).check()
    (subnet,) = COMPOSE["networks"]["front"]["ipam"]["config"]
    assert serve["proxy_addresses"] == subnet["gateway"]
    assert parameters(COMPOSE["services"]["runner"]["command"])["jobs_per_device"] == 1
    page = (STORAGE / "README.md").read_text().partition("## In containers")[2]
    for words in re.findall(r"run --rm service (.*)", page):
        assert parameters(shlex.split(words))


def test_nothing_is_published_beyond_this_machine() -> None:
    for name, service in COMPOSE["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        assert "network_mode" not in service
        assert not service.get("privileged")
    assert "ports" not in COMPOSE["services"]["database"]
    assert COMPOSE["networks"]["default"]["internal"] is True


@pytest.mark.parametrize("name", OURS)
def test_our_processes_have_no_rights_that_they_do_not_need(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    binds = [volume for volume in service["volumes"] if isinstance(volume, dict)]
    assert {bind["target"].rpartition("/")[2] for bind in binds} == {"models", "data"}
    assert all(bind["read_only"] for bind in binds)
    named = {volume.partition(":")[0] for volume in service["volumes"] if isinstance(volume, str)}
    assert named == {"state", "exports", "cache"}
    assert service["depends_on"]["database"]["condition"] == "service_healthy"


def test_every_volume_network_and_secret_is_declared() -> None:
    used = set()
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            if isinstance(volume, str):
                used.add(volume.partition(":")[0])
        assert set(service.get("networks", ["default"])) <= set(COMPOSE["networks"])
        assert service["secrets"] == list(COMPOSE["secrets"])
    assert used == set(COMPOSE["volumes"])


def test_health_is_asked_where_it_is_told() -> None:
    services = COMPOSE["services"]
    assert services["database"]["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]
    check = services["service"]["healthcheck"]["test"]
    assert check[:3] == ["CMD", "python", "-c"]
    assert "http://127.0.0.1:8712/healthz" in check[3]
    compile(check[3], "healthcheck", "exec")
    (image_check,) = [rest for word, rest in instructions() if word == "HEALTHCHECK"]
    assert check[3] in image_check


def test_no_secret_is_in_a_file_that_is_kept() -> None:
    for name in OURS:
        service = COMPOSE["services"][name]
        for value in service["environment"].values():
            assert not re.search(r"://[^/@]*:[^/@]*@", value), "a password in a URL"
        shell, option, script, program = service["entrypoint"]
        assert (shell, option, program) == ("sh", "-c", "prunesearch")
        # The shell gives the password to the process alone, and passes the arguments on.
        script = substituted(script).replace("/run/secrets/postgres_password", "/dev/stdin")
        script = script.replace("exec prunesearch", "exec printf '%s\\n' \"$PGPASSWORD\"")
        done = subprocess.run(
            ["sh", "-c", script, program, "serve", "a b"],
            input="pass word\n",
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "\nserve\na b\n" or done.stdout == "pass word\nserve\na b\n"
    ignored = ["git", "check-ignore", "--quiet", "storage/secrets/postgres_password"]
    assert subprocess.run(ignored, cwd=REPOSITORY).returncode == 0
    for secret in COMPOSE["secrets"].values():
        assert secret == {"file": "./secrets/postgres_password"}


def test_the_image_holds_only_what_is_named_and_does_not_run_as_root() -> None:
    found = instructions()
    # Bases are pinned.
    (python,) = [rest for word, rest in found if word == "ARG" and rest.startswith("PYTHON=")]
    assert re.fullmatch(r"PYTHON=python:3\.\d+\.\d+-slim-\w+", python)
    assert {rest.split()[0] for word, rest in found if word == "FROM"} == {"${PYTHON}"}
    assert re.fullmatch(r"postgres:\d+\.\d+-\w+", COMPOSE["services"]["database"]["image"])
    # What is copied from the repository is kept in git, and no folder of state is.
    for word, rest in found:
        assert word != "ADD"
        if word == "COPY" and not rest.startswith("--from"):
            for name in rest.split()[:-1]:
                listed = subprocess.run(
                    ["git", "ls-files", name], cwd=REPOSITORY, capture_output=True, text=True
                )
                assert listed.stdout, name
                assert not name.startswith("storage")
    # The last user is not root, and the program is that of the package.
    users = [rest for word, rest in found if word == "USER"]
    assert users[-1] == "10001:10001"
    assert ("ENTRYPOINT", '["prunesearch"]') in found
    assert parameters(["serve"])["host"] == "127.0.0.1"
    build = COMPOSE["services"]["service"]["build"]
    assert (STORAGE / build["context"]).resolve() == REPOSITORY
    assert (REPOSITORY / build["dockerfile"]).is_file()
