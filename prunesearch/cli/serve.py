"""The command `serve`. It starts without torch."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunesearch.cli.help import Command
from prunesearch.cli.options.execution import THREADS, WORKERS
from prunesearch.cli.options.groups import RAY_OPTIONS
from prunesearch.cli.options.places import CACHE, JSON, STORAGE
from prunesearch.cli.parameters import SharedOption, with_options
from prunesearch.errors import InputError
from prunesearch.report.emit import emit

if TYPE_CHECKING:
    from prunesearch.service.settings import ServiceSettings

EXTRAS = ("fastapi", "uvicorn", "dbos", "limits", "prometheus_client", "a2wsgi", "jinja2")
"""Packages of the extra `service`, by the names under which they are imported."""
_MODELS, _DATA, _EXPORTS = "storage/models", "storage/data", "storage/exports"
SERVICE_OPTIONS = (
    SharedOption(
        "--model-folder",
        "models",
        multiple=True,
        default=(_MODELS,),
        show_default=True,
        help="Folder whose models a recipe may name; repeatable.",
    ),
    SharedOption(
        "--data-folder",
        "data",
        multiple=True,
        default=(_DATA,),
        show_default=True,
        help="Folder whose texts and documents a recipe may name; repeatable.",
    ),
    SharedOption(
        "--exports", default=_EXPORTS, show_default=True, help="Folder of the jobs' exports."
    ),
    SharedOption("--allow-hub", is_flag=True, help="Let recipes name models and data of the hub."),
    SharedOption(
        "--devices", help="Devices that jobs share: cuda:0,cuda:1.  [default: one, chosen]"
    ),
    SharedOption(
        "--jobs-per-device",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Jobs on a device at once.",
    ),
    THREADS,
    WORKERS,
    *RAY_OPTIONS,
)
"""Options of `serve` and `runner`: what jobs may use."""


def settings_of(values: Mapping[str, Any]) -> "ServiceSettings":
    """Build the settings of a service from the options of a command.

    Raises:
        InputError: the extra `service` is not installed, or an option is not accepted.
    """
    require_extra()
    from prunesearch.service.settings import ServiceSettings

    devices = str(values["devices"] or "").split(",")
    return ServiceSettings(
        storage=values["storage"],
        cache=values["cache"],
        exports=Path(values["exports"]),
        models=tuple(Path(folder) for folder in values["models"]),
        data=tuple(Path(folder) for folder in values["data"]),
        allow_hub=values["allow_hub"],
        devices=tuple(device.strip() for device in devices if device.strip()),
        jobs_per_device=values["jobs_per_device"],
        threads=values["threads"],
        workers=values["workers"],
        engine=values["engine"],
        ray_address=values["ray_address"],
        gpus_per_worker=values["gpus_per_worker"],
    )


def require_extra() -> None:
    """Check that the packages of the service are installed.

    Raises:
        InputError: one is missing.
    """
    from importlib.util import find_spec

    for name in EXTRAS:
        if find_spec(name) is None:
            raise InputError(f"the service needs {name}: pip install 'prunesearch[service]'")


@click.command(cls=Command)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8712, show_default=True, help="Port."
)
@click.option(
    "--dashboard-port",
    type=click.IntRange(1, 65535),
    default=8713,
    show_default=True,
    help="Port of the dashboard.",
)
@click.option(
    "--trusted-host", multiple=True, help="Name by which users reach the service; repeatable."
)
@click.option("--tls-cert", help="File of the certificate; with --tls-key.")
@click.option("--tls-key", help="File of the certificate's key.")
@click.option(
    "--behind-proxy",
    "proxy_addresses",
    help="Addresses of a proxy that terminates TLS; its headers X-Forwarded-* are believed.",
)
@click.option("--open-metrics", is_flag=True, help="Let /metrics answer without a token.")
@click.option("--no-runner", is_flag=True, help="Start no runner: jobs wait for one elsewhere.")
@click.option("--no-dashboard", is_flag=True, help="Start no dashboard.")
@with_options(*SERVICE_OPTIONS)
@STORAGE
@CACHE
@JSON
def serve(
    host: str,
    port: int,
    dashboard_port: int,
    trusted_host: tuple[str, ...],
    tls_cert: str | None,
    tls_key: str | None,
    proxy_addresses: str | None,
    open_metrics: bool,
    no_runner: bool,
    no_dashboard: bool,
    as_json: bool,
    **values: Any,  # noqa: ANN401
) -> None:
    """Serve jobs to a team over HTTP.

    It has web pages and a dashboard, and starts a runner for the jobs. Without options it serves
    this machine alone, with SQLite under storage/.
    """
    settings = settings_of(values)
    from prunesearch.service.http.settings import HttpSettings
    from prunesearch.service.server import Server, log_to_stderr
    from prunesearch.service.server_text import started

    http = HttpSettings(
        host=host,
        port=port,
        dashboard_port=None if no_dashboard else dashboard_port,
        trusted_hosts=trusted_host,
        tls_cert=tls_cert,
        tls_key=tls_key,
        proxy_addresses=proxy_addresses,
        open_metrics=open_metrics,
    )
    log_to_stderr()
    server = Server(settings, http, None if no_runner else runner_arguments(settings))
    with server:
        emit(as_json, server.start(), started)
        sys.stdout.flush()
        server.run()


def runner_arguments(settings: "ServiceSettings") -> tuple[str, ...]:
    """Return the arguments of `prunesearch runner` for the settings of a service.

    Storage and cache are passed by the environment, because they may hold a password.
    """
    arguments = [f"--exports={settings.exports}", f"--jobs-per-device={settings.jobs_per_device}"]
    arguments += [f"--model-folder={folder}" for folder in settings.models]
    arguments += [f"--data-folder={folder}" for folder in settings.data]
    if settings.allow_hub:
        arguments.append("--allow-hub")
    if settings.devices:
        arguments.append(f"--devices={','.join(settings.devices)}")
    for name, value in settings.scoring.items():
        arguments.append(f"--{name.replace('_', '-')}={value}")
    return tuple(arguments)
