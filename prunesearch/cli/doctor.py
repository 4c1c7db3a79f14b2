"""The command `doctor`. It starts without torch."""

import sys
from dataclasses import asdict

import click

from prunesearch.cli.help import Command
from prunesearch.cli.options import CACHE, JSON, STORAGE
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

    checks = examine(cache, storage)
    emit(as_json, {"checks": [asdict(check) for check in checks]}, render.doctor)
    if any(check.status == "broken" for check in checks):
        sys.exit(1)
