"""A service for a benchmark, in processes and a folder of its own: started, killed, started again."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from prunesearch.runtime.masking import CACHE_VARIABLE, STORAGE_VARIABLE
from prunesearch.service.client import Client
from prunesearch.service.credentials import ServerAddress
from prunesearch.service.jobs import Jobs
from prunesearch.service.settings import ServiceSettings
from tests.support.models import byte_tokenizer, tiny
from tests.support.paths import REPOSITORY

MODEL = "tiny"
"""Name of the model that recipes of a benchmark search."""
N_LAYERS = 16
_PATIENCE = 180.0  # seconds in which a process must have started or ended


class RunningService:
    """A service, which is stopped at the end of the ``with`` block.

    Args:
        folder: folder of its state. A tiny model is put into it.
        storage: URL of its database; None for SQLite in the folder.
        arguments: further arguments of `prunesearch serve`.

    Attributes:
        settings: settings of the service.
        url: URL of its HTTP interface.
    """

    def __init__(self, folder: Path, storage: str | None = None, *arguments: str) -> None:
        self._folder = folder.resolve()
        home = self._folder / "storage"
        self.settings = ServiceSettings(
            storage=storage or f"sqlite:///{home / 'study.db'}",
            cache=str(home / "cache") if storage is None else f"{home / 'cache'},{storage}",
            exports=home / "exports",
            models=(home / "models",),
            data=(home / "data",),
        )
        (home / "data").mkdir(parents=True)
        model = tiny(num_hidden_layers=N_LAYERS)
        model.save_pretrained(home / "models" / MODEL)
        byte_tokenizer().save_pretrained(home / "models" / MODEL)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the HTTP process."""
        assert self._process is not None
        return self._process.pid

    @property
    def token(self) -> str:
        """Token of an admin."""
        return (self._folder / "storage" / "admin.token").read_text().strip()

    def start(self) -> None:
        """Start the HTTP process, and wait until it can take jobs."""
        command = [sys.executable, "-m", "prunesearch", "serve", f"--port={self._port}"]
        command += ["--no-dashboard", *self._arguments]
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            STORAGE_VARIABLE: self.settings.storage,
            CACHE_VARIABLE: self.settings.cache,
        }
        with (self._folder / "serve.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=environment, stdout=log, stderr=log
            )
        self.wait_ready("/healthz" if "--no-runner" in self._arguments else "/readyz")

    def wait_ready(self, path: str = "/readyz") -> None:
        """Wait until the service answers at a path with success.

        Raises:
            TimeoutError: it does not within three minutes.
        """
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            try:
                if httpx2.get(self.url + path, timeout=5, trust_env=False).is_success:
                    return
            except httpx2.HTTPError:
                pass
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(
                    f"serve ended: {(self._folder / 'serve.log').read_text()[-2000:]}"
                )
            time.sleep(0.05)
        raise TimeoutError(f"the service does not answer at {path}")

    def kill(self) -> None:
        """Kill the HTTP process alone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def runner(self, jobs: Jobs) -> int:
        """Return the process id of the living runner; 0 if there is none."""
        for runner in jobs.runners():
            if runner.alive and runner.here:
                return runner.pid
        return 0

    def kill_runner(self, jobs: Jobs) -> None:
        """Kill the runner alone."""
        os.kill(self.runner(jobs), signal.SIGKILL)

    def stop(self) -> None:
        """Stop the service as Ctrl-C does."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()

    def client(self) -> Client:
        """Return a connection with the token of an admin."""
        return Client(ServerAddress.parse(self.url), self.token)

    def memory(self) -> int:
        """Return the resident memory of the HTTP process, in bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("a process has its memory in its status")
