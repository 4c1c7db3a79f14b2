"""`prunesearch serve`: the HTTP process, and the processes that it looks after."""

import dataclasses
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from prunesearch.cache.location import shown, sqlite_file
from prunesearch.errors import InputError
from prunesearch.runtime.masking import CACHE_VARIABLE, STORAGE_VARIABLE
from prunesearch.service.access.token_file import holds_token, make_first_token, token_path
from prunesearch.service.http.app import create_app
from prunesearch.service.http.connections import http_server, listen
from prunesearch.service.http.services import Services
from prunesearch.service.http.settings import SETTINGS_VARIABLE, HttpSettings
from prunesearch.service.settings import ServiceSettings
from prunesearch.service.supervisor import Program, Supervisor

logger = logging.getLogger("prunesearch.service")


@dataclass(frozen=True)
class RunningServer:
    """What a newcomer needs to know of a server that has started.

    Attributes:
        url: URL of the web pages and of the HTTP interface.
        dashboard: URL of the dashboard. None: there is none.
        token_file: file with the token of an admin. None: it is gone, or it is of another
            service.
        new_token: whether the file was made by this start.
        storage: URL of the database, without its password.
        models, data: folders whose models and data recipes may name.
        logs: folder of the logs of the other processes.
        processes: process ids of the other processes, by name.
    """

    url: str
    dashboard: str | None
    token_file: str | None
    new_token: bool
    storage: str
    models: tuple[str, ...]
    data: tuple[str, ...]
    logs: str
    processes: dict[str, int]


class Server:
    """The HTTP process with its supervisor.

    Args:
        settings: settings of the service.
        http: settings of the HTTP process.
        runner_arguments: arguments of `prunesearch runner`. None: no runner is started.

    Raises:
        InputError: the address is in use, or tokens would cross a network unencrypted.
        StorageError: the database cannot be opened.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        http: HttpSettings,
        runner_arguments: tuple[str, ...] | None,
    ) -> None:
        http.check()
        self._listener = listen(http.host, http.port)
        # Port 0 stands for any free port.
        http = dataclasses.replace(http, port=self._listener.getsockname()[1])
        self._settings, self._http = settings, http
        app = create_app(settings, http=http)
        services: Services = app.state.services
        self._services = services
        self._server = http_server(app, http, services.events.close)
        self._logs = _folder(settings) / "service"
        programs = _programs(settings, http, runner_arguments)
        self._supervisor = Supervisor(programs, self._logs, settings.storage)

    def start(self) -> RunningServer:
        """Make the folders and the first token, and start the other processes.

        Raises:
            InputError: a folder cannot be made.
            ConflictError: a living server has the other processes of this storage.
        """
        self._supervisor.reserve()
        for folder in (*self._settings.models, *self._settings.data):
            make_folder(folder)
        file = token_path(self._settings.storage)
        made = make_first_token(self._services.access, file)
        self._supervisor.start()
        return RunningServer(
            url=self._http.url,
            dashboard=self._http.dashboard_url,
            token_file=str(file) if holds_token(self._services.access, file) else None,
            new_token=made,
            storage=shown(self._settings.storage),
            models=tuple(str(folder) for folder in self._settings.models),
            data=tuple(str(folder) for folder in self._settings.data),
            logs=str(self._logs),
            processes={child.program.name: child.pid for child in self._supervisor.children},
        )

    def run(self) -> None:
        """Serve until the process is told to end."""
        self._server.run(sockets=[self._listener])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the other processes too."""
        self._supervisor.stop()
        self._services.jobs.close()
        self._listener.close()


def log_to_stderr() -> None:
    """Write warnings and failures of the service to stderr, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    for name in ("prunesearch.service", "uvicorn.error"):
        log = logging.getLogger(name)
        log.addHandler(handler)
        log.setLevel(logging.WARNING)
        log.propagate = False


def make_folder(folder: Path) -> None:
    """Make a folder, if it does not exist.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot use folder {str(folder)!r}: {error.strerror}") from None


def _folder(settings: ServiceSettings) -> Path:
    """Return the folder for files of the service on this host."""
    file = sqlite_file(settings.storage)
    return file.parent if file is not None else Path("storage")


def _programs(
    settings: ServiceSettings, http: HttpSettings, runner_arguments: tuple[str, ...] | None
) -> list[Program]:
    """Return the processes that belong to the server."""
    # URLs may hold passwords, and other users of the machine can read command lines.
    environment = {STORAGE_VARIABLE: settings.storage, CACHE_VARIABLE: settings.cache}
    programs = []
    if runner_arguments is not None:
        arguments = ("-m", "prunesearch", "runner", *runner_arguments)
        programs.append(Program("runner", arguments, environment))
    if http.dashboard_port is not None:
        environment = {**environment, SETTINGS_VARIABLE: http.written()}
        arguments = ("-m", "prunesearch.service.dashboard")
        programs.append(Program("dashboard", arguments, environment))
    return programs
