"""The command `runner`. It starts without torch."""

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from prunesearch.cli.help import Command
from prunesearch.cli.options.places import CACHE, JSON, STORAGE
from prunesearch.cli.parameters import with_options
from prunesearch.cli.serve import SERVICE_OPTIONS, settings_of
from prunesearch.report.emit import emit
from prunesearch.runtime import stopping

if TYPE_CHECKING:
    from rich.console import Group

    from prunesearch.service.runners import RunnerStarted


@click.command(cls=Command)
@with_options(*SERVICE_OPTIONS)
@STORAGE
@CACHE
@JSON
def runner(as_json: bool, **values: Any) -> None:  # noqa: ANN401
    """Run the jobs of a service, each in a process of its own, until Ctrl-C.

    The jobs wait in the database of --storage. A job that is interrupted goes on in the next
    runner.
    """
    settings = settings_of(values)
    from prunesearch.service.runner import Runner

    running = Runner(settings)
    try:
        emit(as_json, running.start(), _started)
        sys.stdout.flush()
        running.wait()
    except stopping.StopRequested as stop:
        click.echo("stopping; jobs that run go on in the next runner", err=True)
        running.stop()
        sys.stdout.flush()
        sys.stderr.flush()
        # A thread of the queue may wait for a database that is away.
        os._exit(128 + stop.number)


def _started(runner: "RunnerStarted") -> "list[Group | str]":
    """Return the lines about a runner that has started."""
    many = "1 job" if runner.slots == 1 else f"{runner.slots} jobs"
    return [f"runner {runner.id} takes jobs from {runner.database}, {many} at once"]
