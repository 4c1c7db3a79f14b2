"""The command `doctor`. It starts without torch."""

import sys

import click

from prunesearch.cli.help import Command
from prunesearch.cli.options.places import CACHE, JSON, STORAGE
from prunesearch.report.emit import emit


@click.command(cls=Command)
@CACHE
@STORAGE
@JSON
def doctor(cache: str, storage: str, as_json: bool) -> None:
    """Check this machine, the cache and the studies, and say what to fix.

    Exit status 1: something is broken.
    """
    from prunesearch.pipeline.doctor import examine
    from prunesearch.report import cache as render
    from prunesearch.report.checks import BROKEN

    found = examine(cache, storage)
    emit(as_json, found, render.doctor)
    if any(check.status == BROKEN for check in found.checks):
        sys.exit(1)
