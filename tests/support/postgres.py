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
import time
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


BOUNCER = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")


class Bouncer:
    """PgBouncer in transaction mode, with a pool of three sessions, before a server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._folder = Path(tempfile.mkdtemp(prefix="bouncer-"))
        self._folder.chmod(0o755)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (self._folder / "users").write_text('"me" "secret"\n')
        (self._folder / "ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port}\n[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nauth_type = trust\n"
            f"auth_file = {self._folder}/users\npool_mode = transaction\n"
            "default_pool_size = 3\nunix_socket_dir =\nserver_login_retry = 1\n"
            "ignore_startup_parameters = extra_float_digits\n"
        )
        self.start()

    def url(self, direct: str) -> str:
        """URL through the pool of a database of the server."""
        return direct.replace(f":{self._server.port}/", f":{self.port}/")

    def start(self) -> None:
        """Start it and wait until it answers."""
        as_user: dict[str, Any] = {}
        if os.getuid() == 0:
            as_user = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid}
        self._process = subprocess.Popen(
            [str(BOUNCER), str(self._folder / "ini")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **as_user,
        )
        end = time.monotonic() + 20
        while time.monotonic() < end and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError("PgBouncer does not start")

    def stop(self) -> None:
        """Kill it: every connection is lost."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self._folder)
