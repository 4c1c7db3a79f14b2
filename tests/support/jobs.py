"""Jobs, runners and waiting, for tests of the service."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from prunesearch.service.job import FINAL, Job, JobCommand, JobRequest
from prunesearch.service.jobs import Jobs
from prunesearch.service.settings import ServiceSettings
from tests.support.paths import REPOSITORY
from tests.support.stand_in_job import FOLDER

STAND_IN = (sys.executable, "-S", str(REPOSITORY / "tests" / "support" / "stand_in_job.py"))
"""Program of jobs that start at once."""
Value = TypeVar("Value")


def settings_in(folder: Path, storage: str | None = None, **more: object) -> ServiceSettings:
    """Settings of a service whose state is in a folder, with one model named ``fake``."""
    for name in ("models/fake", "data", "signs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "models" / "fake" / "config.json").write_text("{}")
    values: dict[str, object] = {
        "storage": storage or f"sqlite:///{folder}/study.db",
        "cache": str(folder / "cache"),
        "exports": folder / "exports",
        "models": (folder / "models",),
        "data": (folder / "data",),
        **more,
    }
    return ServiceSettings(**values)  # type: ignore[arg-type]


def request(study: str, model: str = "fake", command: JobCommand = "search") -> JobRequest:
    """A request for a job of a study."""
    return JobRequest({"model": model, "search": {"drop": "2"}}, command, None, study)


def until(look: Callable[[], Value], seconds: float = 120.0) -> Value:
    """Wait until a look finds something, for long enough where many processes share a core."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def ended(jobs: Jobs, job: Job, seconds: float = 120.0) -> Job:
    """The job once it has ended, and its last event is there."""

    def look() -> bool:
        events = jobs.events(job.id, kinds=("state",))
        return bool(events) and events[-1].data["state"] in FINAL

    until(look, seconds)
    return jobs.get(job.id)


def in_state(jobs: Jobs, job: Job, state: str) -> Job:
    """The job once it has a state, and told so."""
    until(lambda: jobs.events(job.id, kinds=("state",))[-1].data["state"] == state)
    return jobs.get(job.id)


def told_trial(jobs: Jobs, job: Job, number: int = 1) -> None:
    """Wait until a job has told a trial."""

    def look() -> bool:
        found = jobs.events(job.id, kinds=("search",))
        return any(int(str(event.data["done"])) >= number for event in found)

    until(look)


def log_of(folder: Path) -> list[list[str]]:
    """What the stand-in processes noted."""
    log = folder / "signs" / "log"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def let_go(folder: Path, job: Job) -> None:
    """Let the process of a job finish."""
    (folder / "signs" / f"{job.study}.go").touch()


def start_runner(
    settings: ServiceSettings, *words: str, program: str | None = None
) -> "subprocess.Popen[bytes]":
    """Start a runner in a process of its own.

    Args:
        settings: settings of the service.
        words: more words of the command line.
        program: ``stand-in`` for jobs that start at once.
    """
    code = "import sys, prunesearch.service.child as child, prunesearch.service.runner as runner\n"
    if program is not None:
        code += f"runner.Runner.__init__.__defaults__ = ({STAND_IN!r},)\n"
        code += "runner.LOOK = runner.POLL = 0.1; runner.PULSE = 0.2\n"
    code += "from prunesearch.__main__ import main\nmain()"
    folders = [f"--model-folder={path}" for path in settings.models]
    folders += [f"--data-folder={path}" for path in settings.data]
    folders.append(f"--exports={settings.exports}")
    environment = {
        **os.environ,
        "PRUNESEARCH_STORAGE": settings.storage,
        "PRUNESEARCH_CACHE": settings.cache,
        FOLDER: str(settings.exports.parent / "signs"),
    }
    return subprocess.Popen(
        [sys.executable, "-c", code, "runner", *folders, *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
