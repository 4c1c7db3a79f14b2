"""A PostgreSQL server on loopback for tests and benchmarks: made in a folder of its own, and gone
afterwards.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self


def binary(name: str) -> str | None:
    """Where one of the server's programs is; distributions keep them out of PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(debian[-1]) if debian else None)


AVAILABLE = binary("initdb") is not None


class Server:
    """A server that can be stopped, also as if it had crashed, and started again on the same port.

    It refuses to run as root: then it runs as nobody.
    """

    def __init__(self, *, fsync: bool = False) -> None:
        self._user = "nobody" if os.getuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="pg-"))
        if self._user is not None:
            shutil.chown(self._folder, self._user, pwd.getpwnam(self._user).pw_gid)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._options = f"-h 127.0.0.1 -p {self.port} -k {self._folder}" + (
            "" if fsync else " -c fsync=off"
        )
        self._run("initdb", "-U", "me", "--auth=trust", "--no-sync")
        self.start()

    @property
    def url(self) -> str:
        """URL of its database."""
        return f"postgresql+psycopg://me:secret@127.0.0.1:{self.port}/postgres"

    def database(self, name: str) -> str:
        """Make another database; its URL."""
        command = [
            str(binary("createdb")),
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-U",
            "me",
            name,
        ]
        subprocess.run(command, check=True, capture_output=True)
        return self.url.removesuffix("postgres") + name

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._run("pg_ctl", "-w", "-l", str(self._folder / "log"), "-o", self._options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it;
        ``immediate`` is a crash: nothing is written down, and the next start recovers from the log.
        """
        self._run("pg_ctl", "-w", "-m", mode, "stop")

    def _run(self, program: str, *words: str) -> None:
        as_user: dict[str, Any] = {"user": self._user} if self._user else {}
        quiet: dict[str, Any] = {
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            "cwd": self._folder,
        }
        command = [str(binary(program)), "-D", str(self._folder / "data"), *words]
        subprocess.run(command, check=True, **quiet, **as_user)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pid = self._folder / "data" / "postmaster.pid"
        if pid.is_file():
            os.kill(int(pid.read_text().split()[0]), signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)
