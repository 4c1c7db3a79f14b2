"""DBOS as the service uses it: no pickles, no network, no port, and one line for each warning."""

import base64
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy

from prunesearch.pipeline.run import stages_of
from prunesearch.runtime.patching import replaced
from prunesearch.service import queue
from prunesearch.service.job_state import STAGES
from prunesearch.service.jobs import Jobs
from tests.support.jobs import request, settings_in


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.file,)


def test_a_pickle_in_the_database_is_not_loaded(tmp_path: Path) -> None:
    jobs = Jobs(settings_in(tmp_path))
    job, _ = jobs.submit(request("s"), "ann")
    jobs.cancel(job.id)
    bomb = base64.b64encode(pickle.dumps(Bomb(tmp_path / "exploded"))).decode()
    with jobs._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE workflow_status SET serialization = 'py_pickle'")
        connection.exec_driver_sql("UPDATE workflow_input SET inputs = ?", (bomb,))
        connection.exec_driver_sql(
            "INSERT INTO workflow_output (workflow_uuid, output, retention_timestamp) VALUES (?, ?, 0)",
            (job.id, bomb),
        )
    assert jobs.result(job.id) is None
    client = queue.open_client(jobs.settings.database)
    (status,) = client.list_workflows()
    assert str(status.input) == bomb
    assert not (tmp_path / "exploded").exists()
    queue.close_client(client)
    jobs.close()


def test_values_are_stored_as_json(tmp_path: Path) -> None:
    jobs = Jobs(settings_in(tmp_path))
    jobs.submit(request("s"), "ann")
    with jobs._engine.connect() as connection:
        row = connection.exec_driver_sql(
            "SELECT s.serialization, i.inputs FROM workflow_status s, workflow_input i"
        ).one()
    assert row[0] == "portable_json"
    assert row[1].startswith('{"namedArgs":{},"positionalArgs":[{"recipe":')
    jobs.close()


def test_a_warning_of_the_queue_is_one_line_without_secrets(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("dbos")
    with replaced(logger, "handlers", []):
        queue.quiet_logger()
        try:
            raise ValueError("no\nanswer from postgresql://me:hunter2@host/db")
        except ValueError as error:
            logger.error("it failed:", exc_info=error)
        logger.info("not shown")
    said = capsys.readouterr().err
    assert said == "queue: it failed: ValueError: no answer from postgresql://me:***@host/db\n"


def test_the_stages_are_those_of_the_pipeline() -> None:
    for command, names in STAGES.items():
        assert tuple(stage.name for stage in stages_of(command)) == names


SCRIPT = """
import socket, sys
from pathlib import Path

def refuse(self, address):
    raise AssertionError(f"a connection to {address}")

opened = []
listen = socket.socket.listen
socket.socket.connect = refuse
socket.socket.listen = lambda self, *rest: opened.append(self)
from prunesearch.service.runner import Runner
from prunesearch.service.settings import ServiceSettings

settings = ServiceSettings(storage=f"sqlite:///{sys.argv[1]}/study.db", cache=f"{sys.argv[1]}/cache")
with Runner(settings):
    pass
assert not opened, opened
assert "torch" not in sys.modules
assert not [name for name in sys.modules if name.startswith("opentelemetry.exporter")]
print("quiet")
"""


def test_a_runner_opens_no_port_and_no_connection(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "DBOS__CONDUCTOR_KEY": "k",
        "DBOS__CONDUCTOR_URL": "ws://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("quiet\n", "")


def test_the_clock_of_the_records_is_that_of_the_database(database: str) -> None:
    from prunesearch.service.database import now, open_database

    engine = open_database(database)
    with engine.connect() as connection:
        here, there = connection.execute(
            sqlalchemy.select(now(engine), sqlalchemy.text("extract(epoch from now())"))
        ).one()
    assert abs(here - float(there)) < 5
    engine.dispose()
