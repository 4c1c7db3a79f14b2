"""Studies on a real PostgreSQL server, started on loopback and stopped afterwards."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from prunesearch.errors import StorageError, StudyError
from prunesearch.recipe import Recipe
from prunesearch.store import studies

RECIPE = Recipe(model="m", drop="2")
pytestmark = pytest.mark.skipif(shutil.which("initdb") is None, reason="PostgreSQL's server is not installed")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The URL of an empty database; the server refuses to run as root, so then it runs as nobody."""
    user = "nobody" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    as_user = {"user": user} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="pg-") as name, socket.socket() as probe:
        folder = Path(name)
        if as_user:
            shutil.chown(folder, user)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        data = str(folder / "data")
        quiet = {"check": True, "capture_output": True, "cwd": folder, **as_user}
        subprocess.run(["initdb", "-D", data, "-U", "me", "--auth=trust", "--no-sync"], **quiet)
        serve = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"
        start = ["pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", serve, "start"]
        subprocess.run(start, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **as_user)
        try:
            yield f"postgresql+psycopg://me:secret@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run(["pg_ctl", "-D", data, "-m", "immediate", "stop"], **quiet)


def test_a_study_is_made_held_and_resumed(url: str) -> None:
    storage = studies.open_storage(url, create=True)
    made = studies.create_or_resume(storage, "s", RECIPE, {"a": 1}, metrics=["kl"], maximize=[False])
    made.add_trial(optuna.trial.create_trial(value=0.5, user_attrs={"dropped": "1,2"}))
    again = studies.open_storage(url, create=True)
    assert studies.create_or_resume(again, "s", RECIPE, {"a": 1}, metrics=["kl"], maximize=[False]).best_value == 0.5
    assert [summary.name for summary in studies.summaries(again)] == ["s"]


def test_a_study_has_one_writer_across_connections(url: str) -> None:
    first, second = (studies.open_storage(url, create=True) for _ in range(2))
    with studies.sole_writer(first, "s"):
        with studies.sole_writer(second, "other"):
            pass
        with pytest.raises(StudyError, match="another process"), studies.sole_writer(second, "s"):
            pass
    with studies.sole_writer(second, "s"):
        pass


def test_passwords_are_not_printed(url: str) -> None:
    assert "secret" not in studies.shown(url)
    with pytest.raises(StorageError, match="cannot open") as caught:
        studies.open_storage(url.replace("/postgres", "/nowhere"), create=True)
    assert "secret" not in str(caught.value)
